"""``python -m infra.credentials FILE``: make the credentials of a cluster once, for this user's eyes alone.

The file is one ``NAME=value`` a line, as Docker Compose and ``kubectl create secret --from-env-file`` read it. It needs
nothing but Python: a new machine has no environment yet.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from collections.abc import Callable
from pathlib import Path

BYTES = 32

CREDENTIALS: dict[str, Callable[[], str]] = {
    "SMOOTH_CREDENTIALS": lambda: "1",  # no secret: tells that this file was read
    "SMOOTH_RAY_TOKEN": lambda: secrets.token_hex(BYTES),  # of every client and node of Ray
    "SMOOTH_MLFLOW_PASSWORD": lambda: secrets.token_hex(BYTES),  # of MLflow's user admin
    "SMOOTH_MLFLOW_SESSION_KEY": lambda: secrets.token_hex(BYTES),  # signs the forms of MLflow's pages
    "SMOOTH_PREFECT_AUTH": lambda: f"smooth:{secrets.token_hex(BYTES)}",  # user:password of Prefect's API and pages
    "SMOOTH_POSTGRES_PASSWORD": lambda: secrets.token_hex(BYTES),
    "SMOOTH_STORE_PASSWORD": lambda: secrets.token_hex(BYTES),  # of the S3-compatible store
    "SMOOTH_SERVE_TOKEN": lambda: secrets.token_hex(BYTES),  # of every client of the served model
}
"""Name -> how it is made. Letters and digits alone: no quoting anywhere, and a URL can hold them."""


def read(path: Path) -> dict[str, str]:
    """Name -> value of each credential in ``path``."""
    return dict(line.split("=", 1) for line in path.read_text().splitlines() if line)


def write_missing(path: Path) -> list[str]:
    """Add what ``path`` lacks, keep what it has, and return the names of what was added.

    Raises:
        ValueError: others than the owner may read the file.
    """
    known: dict[str, str] = {}
    if path.exists():
        if path.stat().st_mode & 0o077:
            raise ValueError(f"{path} can be read by others: chmod 600 {path}, and make new credentials if they did")
        known = read(path)
    added = {name: make() for name, make in CREDENTIALS.items() if not known.get(name)}
    if added:
        temporary = path.with_name(f"{path.name}.partial")
        temporary.unlink(missing_ok=True)
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as handle:
            handle.writelines(f"{name}={value}\n" for name, value in (known | added).items())
        temporary.replace(path)
    return list(added)


def main() -> int:
    """Run the command and return its exit code. Names are printed, values never."""
    parser = argparse.ArgumentParser(prog="python -m infra.credentials", description="The credentials of a cluster.")
    parser.add_argument("file", type=Path, help="as infra/cluster.env; made with mode 0600, or completed")
    path: Path = parser.parse_args().file
    try:
        added = write_missing(path)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{path}: " + (f"made {', '.join(added)}" if added else "complete already, nothing was changed"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
