"""Which tests share a process of the suite."""

from __future__ import annotations

from pathlib import Path

# Files that need the same service of the session; pytest-xdist's own groups do not work with pytest 9.2.
SERVICES = {
    "cluster": ("test_artifact_paths", "test_chain", "test_faults"),
    "another cluster": (  # in the suite's other process: together they would outlast all else
        "test_cluster_upkeep",
        "test_local_cluster",
        "test_promotion",
        "test_reach",  # takes the cluster down
    ),
    "ray": (
        "test_evaluate",
        "test_full_disk",
        "test_hostile_web",
        "test_ingest",
        "test_interruptions",
        "test_latents",
        "test_retry",
        "test_train",
        "test_watch",
        "test_xl",
    ),
}


def scope_of(nodeid: str) -> str:
    """The service that a test needs, else its file."""
    file = Path(nodeid.partition("::")[0]).stem
    return next((service for service, files in SERVICES.items() if file in files), file)
