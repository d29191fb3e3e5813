"""Flow ``smooth-sweep``: λ × rank × lazy k on several seeds, the Pareto picture, and what it recommends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefect import allow_failure, flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.futures import PrefectFuture

from flows import reports
from flows.parameters import Override, Preset
from flows.stages import configured, run_stage, stopping_jobs
from smooth import stages, store
from smooth.config import Stage
from smooth.sweep.arms import Arm, arms

MEASURED: tuple[Stage, Stage] = ("train", "evaluate")


@flow(name="smooth-sweep", flow_run_name="{preset}", validate_parameters=True)
def smooth_sweep(
    preset: Preset = "tiny",
    overrides: tuple[Override, ...] = (),
    weights: tuple[float, ...] = (0.1, 1.0, 10.0),
    ranks: tuple[int, ...] = (4, 8, 16),
    every: tuple[int, ...] = (),
    also: tuple[str, ...] = (),
    seeds: tuple[int, ...] = (42, 43, 44),
    parallel: int = 1,
    kid_margin: float = 1.1,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Train and measure every combination, and say which to take. What is finished is reused.

    An arm that fails does not stop the others: the sweep concludes from them, and then fails with its name.

    Args:
        preset: name of a preset, or path of a .yaml file.
        overrides: dotted.key=value changes to it for all arms.
        weights: λ of the grid; the control, λ = 0, is always trained.
        ranks: LoRA ranks of the grid; none leaves the preset's.
        every: lazy k of the grid; none leaves the preset's.
        also: arms beside the grid, as "train.method=full" or "train.steps=400 train.learning_rate=1e-3".
        seeds: of every arm.
        parallel: trainings (with their evaluations) under way at once; the cluster's resources bound it, too.
        kid_margin: how many times the control's KID a recommended arm may have.
        dry_run: only list the arms, and what is finished of them.

    Returns:
        The manifest of the conclusion; of a dry run the states.
    """
    if parallel < 1:
        raise ValueError(f"parallel={parallel}: give the number of trainings under way at once, 1 or more")
    planned = arms(preset, overrides, weights=weights, ranks=ranks, every=every, also=also, seeds=seeds)
    states = _show_plan(planned)
    if dry_run:
        return states
    first = planned[0].configs[0]
    run_stage("ingest", first)
    run_stage("latents", first)
    with stopping_jobs():
        failed = _measure(planned, parallel)
    return _conclude(planned, failed, kid_margin)


def _show_plan(planned: Sequence[Arm]) -> dict[str, Any]:
    """A table of the arms, and of how much is there already."""
    states = {
        arm.name: {stage: [stages.status(stage, config) for config in arm.configs] for stage in MEASURED}
        for arm in planned
    }
    rows = [
        f"| {name} | {' | '.join(', '.join(state[stage]) for stage in MEASURED)} |" for name, state in states.items()
    ]
    lines = ["| arm | train, by seed | evaluate, by seed |", "|---|---|---|", *rows]
    create_markdown_artifact("\n".join(lines), key="sweep-plan", description="What is trained and measured")
    get_run_logger().info("%d arms of %d seeds:\n%s", len(planned), len(planned[0].configs), "\n".join(lines))
    return states


def _measure(planned: Sequence[Arm], parallel: int) -> dict[str, str]:
    """Train and evaluate all, seed by seed, ``parallel`` at a time; return the failures by arm."""
    ends: list[tuple[str, PrefectFuture[Any], PrefectFuture[Any]]] = []
    for seed in range(len(planned[0].configs)):
        for arm in planned:
            config = arm.configs[seed]
            # An arm waits for the one `parallel` places before, whatever became of it.
            before = [allow_failure(ends[-parallel][2])] if len(ends) >= parallel else []
            trained = configured("train", config).submit("train", config, return_state=False, wait_for=before)
            measured = configured("evaluate", config).submit("evaluate", config, return_state=False, wait_for=[trained])
            ends.append((arm.name, trained, measured))
    failed: dict[str, str] = {}
    for name, trained, measured in ends:
        measured.wait()
        for end in (measured, trained):  # an evaluation that had no training says nothing of why
            if not end.state.is_completed():
                failed[name] = (end.state.message or "no message").splitlines()[0]
    return failed


def _conclude(planned: Sequence[Arm], failed: dict[str, str], margin: float) -> dict[str, Any]:
    from smooth.sweep.conclude import conclude, told  # MLflow and matplotlib, not needed for a dry run

    folder, manifest = conclude(planned, failed, margin)
    for name in manifest["pictures"]:
        reports.show_picture("sweep", store.join(folder, name))
    create_markdown_artifact(
        f"{manifest['why']}\n\n{manifest['table']}\n\nArtifact: `{folder}`\n",
        key="sweep-summary",
        description="What smoothness costs, and what to take",
    )
    get_run_logger().info("%s", manifest["why"])
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(planned)} arms failed, the others are concluded: {told(failed)}")
    return manifest
