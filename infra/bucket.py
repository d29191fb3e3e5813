"""``python -m infra.bucket NAME``: make a bucket of the store at ``$AWS_ENDPOINT_URL``, if it lacks it."""

from __future__ import annotations

import argparse
import os

import fsspec


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m infra.bucket", description="Make a bucket.")
    parser.add_argument("name")
    name: str = parser.parse_args().name
    store = fsspec.filesystem("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    if store.exists(name):
        print(f"bucket {name} is there already")
    else:
        store.mkdir(name)
        print(f"made bucket {name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
