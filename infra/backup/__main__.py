"""``python -m infra.backup save [--to FOLDER]`` and ``python -m infra.backup restore --from FOLDER``."""

from __future__ import annotations

import argparse
import os
import shlex
import sqlite3
import sys
from datetime import datetime
from importlib import metadata
from pathlib import Path

from infra.backup.parts import BackupError
from infra.backup.restore import UNDER_WAY, restore, under_way
from infra.backup.save import elsewhere, save
from smooth import settings

OWNER_ONLY = 0o077


def save_command(home: Path, target: Path | None) -> None:
    """Save and tell where."""
    target = target or Path(".smooth-backups", datetime.now().strftime("%Y-%m-%dT%H-%M-%S"))
    index = save(home, target)
    print(f"saved {home} in {target}: {index.told()}, each read again")
    for text in elsewhere(home, index):
        print(f"not in it: {text}")
    print(f"restore it with:  make restore FROM={shlex.quote(str(target))}")


def restore_command(home: Path, source: Path) -> None:
    """Restore and tell what else is to do."""
    index = restore(source, home)
    print(f"restored {home} as it was at {index.made:%Y-%m-%d %H:%M} UTC: {index.told()}")
    for name, version in index.versions.items():
        if version != (here := metadata.version(name)):
            print(f"note: saved with {name} {version}, here is {here}: see Upgrade in infra/README.md")
    if count := under_way(home):
        print(f"note: {count} flow runs were under way and hold their deployment's place; once the cluster is up:")
        states = " ".join(f"--state-type {state}" for state in UNDER_WAY)
        print(f"  .venv/bin/prefect flow-run ls {states}  and for each  .venv/bin/prefect flow-run delete ID")
    print("start it with:  make cluster-up  (its credentials are made anew)")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m infra.backup", description="Save and restore the local cluster.")
    commands = parser.add_subparsers(dest="command", required=True)
    saving = commands.add_parser("save", help="while the services run, or not")
    saving.add_argument("--to", type=Path, help="a new folder; else one named by the time under .smooth-backups/")
    restoring = commands.add_parser("restore", help="into a home ($SMOOTH_HOME) that is empty or not there")
    restoring.add_argument("--from", dest="source", type=Path, required=True, help="a backup's folder")
    return parser.parse_args()


def main() -> int:
    """Run the command and return its exit code."""
    arguments = parse()
    home = settings.home()
    os.umask(OWNER_ONLY)  # databases may hold what their servers were trusted with
    try:
        if arguments.command == "save":
            save_command(home, arguments.to)
        else:
            restore_command(home, arguments.source)
    except (BackupError, OSError, sqlite3.Error) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
