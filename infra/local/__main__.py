"""``python -m infra.local up|down|status [--json]``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time

from infra.local.cluster import DEPLOYMENT, Health, LocalCluster, changing
from infra.local.layout import ClusterError, Layout


def up(layout: Layout) -> int:
    """Start what is missing and print where everything is."""
    begin = time.monotonic()
    with changing(layout) as cluster:
        changed = cluster.up()
    started = [name for name in changed if name in cluster.names]
    if removed := [name for name in changed if name not in cluster.names]:
        print(f"stopped {', '.join(removed)}")
    if started:
        print(f"started {', '.join(started)} in {time.monotonic() - begin:.0f} s; logs: {layout.home / 'cluster'}")
    elif not removed:
        print("the cluster is up already; nothing was changed")
    for service in cluster.services:
        if url := service.url():
            print(f"  {service.title:<8} {url}")
    if cluster.options.is_open:
        print(f"on {cluster.options.bind} everything asks for a credential of {layout.credentials}")
    for name, value in cluster.access.hints().items():
        print(f"Prefect's own commands need here:  export {name}={value}")
    print(f"run the chain:  make demo  or  .venv/bin/prefect deployment run {DEPLOYMENT} --watch")
    return 0


def down(layout: Layout) -> int:
    """Stop everything that was started."""
    with changing(layout) as cluster:
        stopped = {name: count for name, count in cluster.down().items() if count}
    if stopped:
        print("stopped " + ", ".join(f"{name} ({count} processes)" for name, count in stopped.items()))
    else:
        print("nothing of the cluster was running")
    return 0


def status(layout: Layout, as_json: bool) -> int:
    """Print each service's health; exit code 1 unless all are well."""
    parts: list[Health] = LocalCluster(layout).health()
    if as_json:
        print(json.dumps([dataclasses.asdict(part) for part in parts], indent=2))
    else:
        for part in parts:
            pid = f"pid {part.pid}" if part.pid else ""
            print(f"{part.title:<12} {part.status:<14} {pid:<12} {part.url or ''}".rstrip())
    return 0 if all(part.status == "healthy" for part in parts) else 1


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m infra.local", description="The local cluster.")
    parser.add_argument("command", choices=["up", "down", "status"])
    parser.add_argument("--json", action="store_true", help="status for programs")
    arguments = parser.parse_args()
    try:
        layout = Layout.load()
        if arguments.command == "up":
            return up(layout)
        return down(layout) if arguments.command == "down" else status(layout, arguments.json)
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
