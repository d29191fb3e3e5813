"""Promotion on a real MLflow and a real Prefect: the gate line by line, the way back, twenty at once, kills between."""

from __future__ import annotations

import contextvars
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow.entities.model_registry import ModelVersion
from prefect import State
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.exceptions import FailedRun
from prefect.flow_runs import resume_flow_run
from prefect.settings import PREFECT_API_URL, temporary_settings
from safetensors.numpy import save_file
from typer.testing import CliRunner

from flows.promote import promote, rollback
from smooth.cli import app
from smooth.config import RunConfig
from smooth.models import WEIGHTS_NAME
from smooth.promotion import moves
from smooth.promotion import promote as steps
from smooth.promotion.registry import HISTORY_TAG, Registry
from tests import broken_off, promotions
from tests.clusters import ScratchCluster
from tests.evaluated import trained
from tests.promotions import BASE_KID, Shelf

AT_ONCE = 20


@dataclass(frozen=True)
class House:
    """The services, and one version that all others are made of."""

    cluster: ScratchCluster
    config: RunConfig
    source: ModelVersion
    root: Path

    def shelf(self, name: str) -> Shelf:
        return Shelf(name, self.source, self.root / "evaluations", self.config.model.base)


@pytest.fixture(scope="module")
def house(cluster: ScratchCluster, tiny_base: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    root = tmp_path_factory.mktemp("promotion")
    (root / "evaluations").mkdir()
    before = os.environ.get("MLFLOW_TRACKING_URI"), mlflow.get_tracking_uri()
    with pytest.MonkeyPatch.context() as patch, temporary_settings({PREFECT_API_URL: cluster.state["prefect_api"]}):
        patch.setenv("MLFLOW_TRACKING_URI", cluster.state["mlflow_uri"])
        config, source = promotions.registered(tiny_base, root, ["register.name=promoted"])
        yield House(cluster, config, source, root)
    mlflow.set_tracking_uri(before[1])
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # MLflow's own setting changes the variable, too
    if before[0] is not None:
        os.environ["MLFLOW_TRACKING_URI"] = before[0]


def run(model: str, version: str, **parameters: Any) -> State[Any]:
    return promote(version, model=model, who="ana", return_state=True, **parameters)


def put(shelf: Shelf, version: str) -> None:
    """As a promotion ends; nothing is judged."""
    found = Registry(shelf.name)
    moves.promote(found, found.books(), version, gate="| |", who="test", why="", approved="")


def told(model: str) -> tuple[int, dict[str, Any]]:
    result = CliRunner().invoke(app, ["registry", "status", "--model", model, "--json"])
    found: dict[str, Any] = json.loads(result.stdout)
    return result.exit_code, found


def pictures_of(state: State[Any]) -> dict[str, str]:
    """Artifacts of a flow run: key -> Markdown."""
    with get_client(sync_client=True) as client:
        chosen = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[state.state_details.flow_run_id]))
        return {str(each.key): str(each.data) for each in client.read_artifacts(artifact_filter=chosen)}


def test_what_the_chain_registered_is_promoted_right_away(house: House) -> None:
    """The first is judged against its own base model, the next against it."""
    assert told("promoted")[0] == 1
    state = run("promoted", "candidate", why="the first")
    assert state.is_completed(), state.message
    code, found = told("promoted")
    assert (code, found["production"], found["previous"], found["passed_gate"]) == (0, "1", None, True)
    assert (found["promotion"]["who"], found["promotion"]["why"]) == ("ana", "the first")
    artifacts = pictures_of(state)
    assert set(artifacts) == {"promote-gate", "promote-strips", "promote-curves", "promote-drawn"}
    assert "against its base builtin:tiny" in artifacts["promote-gate"]
    again = run("promoted", "1")
    assert again.is_completed()
    assert again.result()["note"] == "it is in production already"


@dataclass(frozen=True)
class Closed:
    """A version that one line of the gate refuses."""

    line: str
    says: str
    evaluation: dict[str, Any]
    tags: dict[str, str | None]


CLOSED = [
    Closed("protocol", "frames: 7 against None", {"istd": 1.0, "frames": 7}, {}),
    Closed("ISTD", "not shown to be smoother than version 1: the interval ends 0.", {"istd": 2.1}, {}),
    Closed(promotions.KID, "50 over the limit", {"istd": 1.0, "kid": 1.1 * BASE_KID + 50}, {}),
    Closed("CLIP score", "-0.75 against 27 of version 1, 0.25 below the limit", {"istd": 1.0, "clip": 26.25}, {}),
    Closed("lineage", "missing: tag smooth.fingerprint.ingest", {"istd": 1.0}, {"smooth.fingerprint.ingest": None}),
]


@pytest.fixture(scope="module")
def guarded(house: House) -> Shelf:
    """A model with a version in production, and a better one."""
    shelf = house.shelf("guarded")
    first = shelf.add(2.0, clip=27.0)
    assert run(shelf.name, first).is_completed()
    return shelf


@pytest.mark.parametrize("closed", CLOSED, ids=lambda closed: closed.line)
def test_a_line_that_fails_closes_the_gate_and_changes_nothing(guarded: Shelf, closed: Closed) -> None:
    before = guarded.aliases()
    version = guarded.add(**({"clip": 27.0} | closed.evaluation))
    if closed.tags:
        version = guarded.clone(guarded.tags(version) | closed.tags)
    tags = guarded.tags(version)
    state = run(guarded.name, version)
    assert state.is_failed()
    assert f"{closed.line}: " in str(state.message)
    assert closed.says in str(state.message)
    assert "nothing was changed" in str(state.message)
    (row,) = [line for line in pictures_of(state)["promote-gate"].splitlines() if line.startswith(f"| {closed.line} |")]
    assert "| FAILED |" in row
    assert guarded.aliases() == before
    assert guarded.tags(version) == tags


def test_a_model_that_does_not_load_is_refused(house: House, tiny_base: str) -> None:
    changes = ["seed=43", "register.name=broken"]
    config = trained(tiny_base, house.root, *changes)
    save_file({"nobody": np.zeros(1)}, Path(config.stage_dir("train"), WEIGHTS_NAME))
    promotions.registered(tiny_base, house.root, changes)
    state = run("broken", "candidate")
    assert state.is_failed()
    assert "1 of 6 lines failed" in str(state.message)
    assert "load: " in str(state.message)
    assert told("broken")[1]["production"] is None


def test_a_dry_run_judges_and_changes_nothing(house: House) -> None:
    shelf = house.shelf("dry")
    better = shelf.add(2.0)
    assert run(shelf.name, better, dry_run=True).result()["note"] == "dry run, nothing was changed"
    assert shelf.aliases() == {}
    state = run(shelf.name, "nobody")
    assert "dry has no version or alias 'nobody'; newest versions: 1; aliases: none" in str(state.message)


def test_production_goes_back_once_and_further_back_by_name(house: House) -> None:
    shelf = house.shelf("back")
    for _ in range(3):
        shelf.clone({})
    put(shelf, "1")
    put(shelf, "2")
    assert shelf.aliases() == {"production": "2", "previous": "1"}
    state = rollback("paints badly", "bo", model=shelf.name, return_state=True)
    assert state.result()["version"] == "1"
    assert shelf.aliases() == {"production": "1"}
    code, found = told(shelf.name)
    assert (code, found["rollback"]["who"], found["rollback"]["why"]) == (0, "bo", "paints badly")
    assert found["promotion"]["who"] == "test"
    with pytest.raises(FailedRun, match=r"a second rollback .* name one that was in production: 2"):
        rollback(model=shelf.name)
    with pytest.raises(FailedRun, match="version 3 of back was never promoted"):
        rollback(version=3, model=shelf.name)
    assert rollback(version=2, model=shelf.name)["moved"]
    assert shelf.aliases() == {"production": "2"}


def test_an_alias_moved_by_hand_is_noticed_put_back_and_judged(house: House) -> None:
    shelf = house.shelf("hand")
    first, better = shelf.add(2.5), shelf.add(2.0)
    shelf.point("production", first)
    assert told(shelf.name)[0] == 1
    put(shelf, first)  # as a promotion of what a hand put there ends
    assert told(shelf.name)[0] == 0
    shelf.point("production", better)
    code, found = told(shelf.name)
    assert (code, found["passed_gate"], found["previous"]) == (1, False, first)
    assert "production is on version 2 by hand" in found["says"]
    assert rollback(model=shelf.name)["version"] == first
    assert told(shelf.name)[0] == 0
    shelf.point("production", better)
    assert run(shelf.name, better).result()["against"] == f"version {first}"
    assert told(shelf.name)[0] == 0
    assert shelf.aliases() == {"production": better, "previous": first}
    shelf.client.delete_registered_model_alias(shelf.name, "production")
    code, found = told(shelf.name)
    assert code == 1
    assert "production was taken away by hand" in found["says"]


@pytest.mark.parametrize("answer", ["yes", "no", "yes, too late"])
def test_a_person_is_asked(house: House, answer: str) -> None:
    shelf = house.shelf(f"asked-{answer.replace(', ', '-').replace(' ', '-')}")
    version, other = shelf.add(2.0), shelf.add(2.2)
    with ThreadPoolExecutor(1) as pool, get_client(sync_client=True) as client:
        future = pool.submit(contextvars.copy_context().run, run, shelf.name, version, approve=True)
        paused = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.PAUSED])))
        while not (found := client.read_flow_runs(flow_run_filter=paused)):
            assert not future.done(), future.result().message
            time.sleep(0.2)
        assert shelf.aliases() == {}
        if answer == "yes, too late":
            put(shelf, other)
        for nobody in ("", "  "):
            with pytest.raises(RuntimeError, match=r"Cannot resume this run: .* does not match"):
                resume_flow_run(found[0].id, run_input={"approved": True, "by": nobody})
        resume_flow_run(found[0].id, run_input={"approved": answer != "no", "by": "bo", "why": "looked at it"})
        state = future.result()
    if answer == "yes":
        assert told(shelf.name)[1]["promotion"]["approved"] == "bo: looked at it"
    elif answer == "no":
        assert "was not approved by bo: looked at it; nothing was changed" in str(state.message)
        assert shelf.aliases() == {}
    else:
        assert "production moved" in str(state.message)
        assert shelf.aliases() == {"production": other}


def test_of_twenty_at_once_one_wins(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = house.shelf("crowd")
    put(shelf, shelf.add(2.5))
    better = shelf.add(2.0)
    versions = [better, *(shelf.clone(dict(shelf.tags(better))) for _ in range(AT_ONCE - 1))]
    all_asked, ask = threading.Barrier(AT_ONCE), steps.ask

    def ask_together(*arguments: str) -> steps.Asked:
        found = ask(*arguments)
        all_asked.wait()
        return found

    monkeypatch.setattr(steps, "ask", ask_together)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        waiting = [pool.submit(contextvars.copy_context().run, run, shelf.name, version) for version in versions]
        states = dict(zip(versions, (future.result() for future in waiting), strict=True))
    (winner,) = [version for version, state in states.items() if state.is_completed()]
    lost = {str(state.message) for version, state in states.items() if version != winner}
    assert len(lost) == 1
    assert f"production moved from 1 to {winner} while this waited: look, and ask again" in lost.pop()
    assert shelf.aliases() == {"production": winner, "previous": "1"}
    assert [each for each in ["1", *versions] if HISTORY_TAG in shelf.tags(each)] == ["1", winner]
    code, found = told(shelf.name)
    assert (code, found["unfinished"]) == (0, [])


@pytest.mark.parametrize(
    ("kind", "after"), [(kind, after) for kind, writes in broken_off.MOVES.items() for after in range(len(writes) + 1)]
)
def test_a_kill_between_two_writes_leaves_the_old_or_the_new_state(house: House, kind: str, after: int) -> None:
    shelf = house.shelf(f"killed-{kind}-{after}")
    for _ in range(4):
        shelf.clone({})
    put(shelf, "1")
    put(shelf, "2")
    before = told(shelf.name)[1]
    target = {"promotion": "3", "rollback": "1"}[kind]
    assert broken_off.break_off(kind, shelf.name, target, after) == -signal.SIGKILL
    code, found = told(shelf.name)
    assert code == 0
    is_new = after > broken_off.MOVES[kind].index("production")
    if is_new:
        assert (found["production"], found["previous"]) == (target, {"promotion": "2", "rollback": None}[kind])
        assert found[kind]["who"] == "ana"
    else:
        for key in ("production", "previous", "promotion", "rollback", "says"):
            assert found[key] == before[key], key
    put(shelf, "4")
    assert shelf.aliases() == {"production": "4", "previous": target if is_new else "2"}
    books = Registry(shelf.name).books()
    assert books.unfinished() == []
    assert ("3" in books.once_in_production) == (is_new and kind == "promotion")


def test_the_deployment_does_it_on_the_worker(house: House) -> None:
    shelf = house.shelf("deployed")
    put(shelf, shelf.add(2.5))
    version = shelf.add(2.0)
    parameters = (f"model={shelf.name}", f"version={version}", "why=better")
    options = (part for parameter in parameters for part in ("--param", parameter))
    command = ("-m", "prefect", "deployment", "run", "smooth-promote/production", "--watch", *options)
    result = house.cluster.run(*command, PREFECT_API_URL=house.cluster.state["prefect_api"])
    assert result.returncode == 0, result.stdout + result.stderr
    assert shelf.aliases() == {"production": version, "previous": "1"}
    assert told(shelf.name)[1]["promotion"]["why"] == "better"
    with get_client(sync_client=True) as client:
        back = client.read_deployment_by_name("smooth-promote/rollback")
    assert set(back.parameter_openapi_schema["properties"]) == {"why", "who", "version", "dry_run", "model"}
