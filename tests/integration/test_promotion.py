"""Promotion on a real MLflow and a real Prefect: the gate line by line, the way back, twenty at once, kills between."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.entities.model_registry import ModelVersion
from prefect import State
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.settings import PREFECT_API_URL, temporary_settings
from typer.testing import CliRunner

from flows.promote import promote
from smooth.cli import app
from smooth.config import RunConfig
from tests import promotions
from tests.clusters import ScratchCluster
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
    Closed("ISTD", "not shown to be smoother than version 1: the interval ends 0.", {"istd": 2.0}, {}),
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
