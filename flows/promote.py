"""Flow ``smooth-promote``: the gate before a model goes into production, and the way back.

Its deployments are ``production`` and ``rollback``. One of all their runs is at work at a time, by a global concurrency
limit of Prefect's whose lease runs out where a run is killed.
"""

from __future__ import annotations

import getpass
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

from prefect import State, flow, get_run_logger, pause_flow_run
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.concurrency.asyncio import AcquireConcurrencySlotTimeoutError
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectAlreadyExists
from prefect.input import RunInput
from prefect.states import Failed
from pydantic import Field

from flows import reports
from smooth.promotion import PromotionError

if TYPE_CHECKING:
    from smooth.promotion.promote import Asked, Verdict
    from smooth.promotion.records import Record

LIMIT = "smooth-promote"
LEASE_SECONDS = 60  # the least that Prefect takes; renewed while the holder lives
WAIT_SECONDS = 1800
POLL_SECONDS = 2  # between two looks at whether a person has answered


class Approval(RunInput):
    """What a person is asked before a model goes into production."""

    approved: bool = False
    by: str = Field(pattern=r"\S", description="Who answers; not blank.")
    why: str = ""


@flow(name="smooth-promote", flow_run_name="promote {version}", validate_parameters=True)
def promote(
    version: str | int = "candidate",
    why: str = "",
    who: str = "",
    quality_margin: float = 1.1,
    clip_margin: float = 0.5,
    approve: bool = False,
    approval_timeout_s: Annotated[int, Field(ge=1)] = 24 * 3600,
    dry_run: bool = False,
    model: str = "smooth-diffusion",
) -> dict[str, Any] | State[Any]:
    """Put a version into production if it passes the gate: the alias `production` moves, `previous` keeps the way back.

    It is judged against the version in production, the first one against its own base model. A closed gate fails the
    flow run with the lines that failed, and nothing is changed.

    Args:
        version: number or alias.
        why: is kept with the version.
        who: likewise; the worker's user where it is empty.
        quality_margin: how many times the FID or KID of what it replaces its own may be.
        clip_margin: how many points of CLIP score it may be below.
        approve: ask a person, once the gate is passed: the flow run pauses for its form in Prefect.
        approval_timeout_s: after so many seconds without an answer nothing is changed and the flow run fails.
        dry_run: only judge.
        model: name in the MLflow registry.

    Returns:
        model, version, what it was judged against, whether production moved, and a note.
    """
    try:
        return _promote(
            model,
            str(version),
            why,
            who or _user(),
            (quality_margin, clip_margin),
            approval_timeout_s if approve else None,
            dry_run,
        )
    except PromotionError as error:  # a closed gate is an answer and no crash: no traceback
        return Failed(message=str(error))


@flow(name="smooth-promote", flow_run_name="rollback", validate_parameters=True)
def rollback(
    why: str = "",
    who: str = "",
    version: str | int | None = None,
    dry_run: bool = False,
    model: str = "smooth-diffusion",
) -> dict[str, Any] | State[Any]:
    """Put back what was in production before. There is no gate, but it must load and paint.

    Where `production` was moved by hand, it goes back to where the last promotion or rollback put it. A second rollback
    in a row names its version.

    Args:
        why: is kept with the version.
        who: likewise; the worker's user where it is empty.
        version: another one that was in production at some time, number or alias.
        dry_run: only tell where it would go, and whether that loads.
        model: name in the MLflow registry.

    Returns:
        As of a promotion.
    """
    try:
        return _roll_back(model, None if version is None else str(version), why, who or _user(), dry_run)
    except PromotionError as error:
        return Failed(message=str(error))


def _promote(
    model: str, version: str, why: str, who: str, margins: tuple[float, float], approval_s: int | None, dry_run: bool
) -> dict[str, Any]:
    """``margins`` of quality and CLIP score; with ``approval_s`` a person is asked, and waited for so long."""
    from smooth.promotion import promote as steps
    from smooth.promotion.gate import Margins, check

    allowed = Margins(*margins)
    asked = steps.ask(model, version)
    if asked.is_done:
        return _already(asked, dry_run)
    with exclusive():
        verdict = steps.judge(asked, allowed)
        _show(asked, verdict)
        check(verdict.lines)
        if dry_run:
            return _told(asked, verdict.against, None)
        if approval_s is None:
            return _told(asked, verdict.against, steps.commit(asked, verdict, who=who, why=why))
    answer = _ask_a_person(asked, verdict, why, approval_s)
    with exclusive():
        record = steps.commit(asked, verdict, who=who, why=why, approved=answer)
    return _told(asked, verdict.against, record)


def _roll_back(model: str, version: str | None, why: str, who: str, dry_run: bool) -> dict[str, Any]:
    from smooth.promotion import promote as steps

    asked = steps.ask_back(model, version)
    if asked.is_done:
        return _already(asked, dry_run)
    with exclusive():
        reports.show_png("rollback", "drawn.png", steps.check_loads(asked))
        record = None if dry_run else steps.commit_back(asked, who=who, why=why)
    return _told(asked, f"version {asked.production}", record)


@contextmanager
def exclusive() -> Iterator[None]:
    """Hold the only slot there is; wait for it while another promotion has it.

    Raises:
        TimeoutError: it was not free for half an hour.
    """
    with get_client(sync_client=True) as client:
        try:
            client.upsert_global_concurrency_limit_by_name(LIMIT, 1)
        except ObjectAlreadyExists:  # another one that saw none was quicker
            get_run_logger().debug("concurrency limit %s is there by now", LIMIT)
    try:
        with concurrency(LIMIT, timeout_seconds=WAIT_SECONDS, lease_duration=LEASE_SECONDS, strict=True):
            yield
    except AcquireConcurrencySlotTimeoutError as error:
        raise TimeoutError(
            f"another promotion held {LIMIT} for {WAIT_SECONDS} s, nothing was changed; if none is at work, free it: "
            f"prefect global-concurrency-limit update {LIMIT} --active-slots 0"
        ) from error


def _ask_a_person(asked: Asked, verdict: Verdict, why: str, timeout_s: int) -> str:
    """Pause for the form; return who approved."""
    text = f"Version {asked.version} passed the gate against {verdict.against}. {why}\n\n{verdict.table}\n"
    form = Approval.with_initial_data(description=text)
    answer = pause_flow_run(wait_for_input=form, timeout=timeout_s, poll_interval=POLL_SECONDS)
    told = f"{answer.by}: {answer.why}" if answer.why else answer.by
    if not answer.approved:
        raise PromotionError(f"version {asked.version} was not approved by {told}; nothing was changed")
    return told


def _already(asked: Asked, dry_run: bool) -> dict[str, Any]:
    """Nothing to move; what a broken-off move left is mended."""
    from smooth.promotion import promote as steps

    if not dry_run:
        with exclusive():
            for mended in steps.mend(asked.registry.name):
                get_run_logger().info("mended: %s", mended)
    return _told(asked, "itself", None, "it is in production already")


def _told(asked: Asked, against: str, record: Record | None, note: str = "") -> dict[str, Any]:
    told = note or ("dry run, nothing was changed" if record is None else record.text())
    get_run_logger().info("%s version %s: %s", asked.registry.name, asked.version, told)
    return {
        "model": asked.registry.name,
        "version": asked.version,
        "against": against,
        "moved": record is not None,
        "note": told,
    }


def _show(asked: Asked, verdict: Verdict) -> None:
    heading = f"{asked.registry.name} version {verdict.version} against {verdict.against}"
    get_run_logger().info("%s\n%s", heading, verdict.table)
    create_markdown_artifact(f"# {heading}\n\n{verdict.table}\n", key="promote-gate", description=heading)
    for name, content in verdict.pictures.items():
        reports.show_png("promote", name, content)


def _user() -> str:
    return f"{getpass.getuser()}@{socket.gethostname()}"
