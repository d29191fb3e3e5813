"""Is quality paid for the cheaper estimators? Fine-tunes of the built-in base with each of them, on several seeds.

All arms of a seed see the same samples, prompts and noises; a seed changes all of them. Prints a Markdown table and
writes ``.smooth/bench/quality-variation.json``. Some 5 minutes an arm and seed on 2 cores; finished stages are
reused, those of `make demo` too, so it goes on where it was stopped. Not a part of `make bench`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile

import ray

from smooth import stages
from smooth.config import STAGES, RunConfig
from smooth.evaluate.compare import ISTD, KID
from tests.benchmarks.results import Result, folder, report

ARMS = {
    "double backward": ["train.variation.estimator=double_backward"],
    "central difference": ["train.variation.estimator=central_difference"],
    "one-sided difference": [],
    "one-sided, lazy k = 4": ["train.variation.every=4"],
}
Values = dict[tuple[str, str], float]  # (metric, model) => value


def run(overrides: list[str]) -> Values:
    """Make what is missing up to the evaluate stage; return its values."""
    config = RunConfig.load("tiny", overrides)
    for stage in STAGES[: STAGES.index("evaluate") + 1]:
        manifest = stages.run(stage, config)
    values = {(metric["name"], metric["model"]): metric["value"] for metric in manifest["metrics"]}
    return {key: value for key, value in values.items() if value is not None}


def table(values: dict[str, list[Values]]) -> str:
    """Mean over the seeds ± their standard deviation, and each seed's value."""
    lines = ["| | ISTD ↓ | smooth − base, paired | KID ×10³ ↓ |", "|---|---|---|---|"]
    columns = [(ISTD, "smooth"), (ISTD, "smooth - base"), (KID, "smooth")]
    for arm, seeds in values.items():
        cells = []
        for key in columns:
            column = [value[key] for value in seeds]
            digits = 0 if key[0] == KID else 2
            spread = statistics.stdev(column) if len(column) > 1 else float("nan")
            each = ", ".join(f"{value:.{digits}f}" for value in column)
            cells.append(f"{statistics.mean(column):.{digits}f} ± {spread:.{digits}f} ({each})")
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("overrides", nargs="*", help="for all arms, as train.steps=100")
    given = parser.parse_args()
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{folder().absolute()}/mlflow.db")
    values: dict[str, list[Values]] = {arm: [] for arm in ["base", *ARMS]}
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as temporary:
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=temporary)
        for seed in given.seeds:
            for arm, overrides in ARMS.items():
                print(f"seed {seed}, {arm}", flush=True)
                values[arm].append(run([f"seed={seed}", *overrides, *given.overrides]))
            first = values[next(iter(ARMS))][-1]
            unchanged = {(ISTD, "smooth - base"): 0.0}
            values["base"].append({(name, "smooth"): first[name, "base"] for name in (ISTD, KID)} | unchanged)
        ray.shutdown()
    print(table(values))
    report(
        "quality-variation",
        [
            Result(f"{arm}, seed {seed}: {name}", value[name, "smooth"], "")
            for arm, seeds in values.items()
            for seed, value in zip(given.seeds, seeds, strict=True)
            for name in (ISTD, KID)
        ],
    )


if __name__ == "__main__":
    main()
