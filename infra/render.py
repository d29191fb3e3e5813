"""``python -m infra.render FILE``: print a file with each ``${NAME}`` filled in; it needs only Python."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

NAME = re.compile(r"\$\{([A-Z][A-Z0-9_]*)\}")


def render(text: str, values: Mapping[str, str]) -> str:
    """Replace every ``${NAME}``; ``$NAME`` stays, for the shell that reads the result.

    Raises:
        ValueError: names without a value, all of them.
    """
    if missing := sorted({name for name in NAME.findall(text) if not values.get(name)}):
        raise ValueError(f"not set: {', '.join(missing)}; export each, the file's head shows how")
    return NAME.sub(lambda match: values[match[1]], text)


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m infra.render", description="Fill in a file's names.")
    parser.add_argument("file", type=Path)
    path: Path = parser.parse_args().file
    try:
        # Comments may name what the environment lacks, and no program reads them.
        lines = [line for line in path.read_text().splitlines(keepends=True) if not line.lstrip().startswith("#")]
        print(render("".join(lines), os.environ), end="")
    except (OSError, ValueError) as error:
        print(f"error: {path}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
