"""The end of a sweep: its table, its picture and its recommendation, beside the artifacts and in MLflow."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from smooth import store, tracking
from smooth.evaluate.compare import ISTD, KID
from smooth.sweep import figures, picture
from smooth.sweep.arms import Arm

PARETO, TABLE, RESULTS = "pareto.png", "table.md", "results.json"


def conclude(arms: Sequence[Arm], failed: Mapping[str, str], margin: float) -> tuple[str, dict[str, Any]]:
    """Read the evaluations of all arms but the failed, and say what they show. Returns folder and manifest.

    The trainings' MLflow runs become children of the sweep's own, where its picture and table are.

    Args:
        arms: the control first.
        failed: why, by the name of the arm; what is left is concluded from.
        margin: how many times the control's KID is allowed.

    Raises:
        ValueError: the control is among the failed.
        store.ArtifactError: an evaluation isn't finished.
    """
    if arms[0].name in failed:
        raise ValueError(
            f"nothing to conclude, as all is read against the control, and that is among what failed: {told(failed)}. "
            "Mend that and run the sweep again: what is finished is kept"
        )
    started = time.monotonic()
    done = [arm for arm in arms if arm.name not in failed]
    manifests = {arm.name: [store.read_manifest(c.stage_dir("evaluate")) for c in arm.configs] for arm in done}
    among = figures.points({name: [m["metrics"] for m in found] for name, found in manifests.items()})
    best, why = figures.recommend(among, margin)
    config = arms[0].configs[0]
    inputs = [
        str(margin),
        *sorted(failed),
        *(f"{arm.name} {c.fingerprint('evaluate')}" for arm in done for c in arm.configs),
    ]
    fingerprint = hashlib.sha256("\n".join(inputs).encode()).hexdigest()[:16]
    folder = store.join(config.stage_dir("evaluate").rpartition("/evaluate/")[0], "sweep", fingerprint)
    if store.is_complete(folder):
        return folder, store.read_manifest(folder)
    table = figures.table(among)
    store.write_bytes(store.join(folder, TABLE), f"{table}\n\n{why}\n".encode())
    store.write_json(store.join(folder, RESULTS), [asdict(point) for point in among])
    picture.draw(store.join(folder, PARETO), among, best, margin)
    tags = {"smooth.sweep": fingerprint, "smooth.preset": config.preset, "mlflow.note.content": why}
    with tracking.start_evaluation(config, f"sweep of {len(done)} arms", tags) as tracked:
        tracked.log_picture(store.join(folder, PARETO), "sweep")
        for name in (TABLE, RESULTS):
            tracked.log_artifact(store.join(folder, name), "sweep")
        if best is not None:
            tracked.log_metrics({"sweep/istd_ratio": best.ratios[ISTD].mean})
            tracked.log_metrics({"sweep/kid_ratio": best.ratios[KID].mean})
        tracked.adopt([m["run_id"] for found in manifests.values() for m in found])
    return folder, store.write_manifest(
        folder,
        {
            "stage": "sweep",
            "fingerprint": fingerprint,
            "seconds": time.monotonic() - started,
            "run_id": tracked.run_id,
            "arms": {arm.name: [c.fingerprint("train") for c in arm.configs] for arm in done},
            "failed": dict(failed),
            "recommended": None if best is None else best.name,
            "why": why,
            "table": table,
            "pictures": [PARETO],
        },
    )


def told(failed: Mapping[str, str]) -> str:
    """Each arm that failed, and why."""
    return "; ".join(f"{name}: {message}" for name, message in failed.items())
