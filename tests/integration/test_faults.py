"""What breaks under a run of smooth-train/full, one after the other, and what becomes of the run: it goes on.

Each test is a row of the README's table "When something breaks" and prints the seconds that its recovery took.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling
from ray.job_submission import JobStatus, JobSubmissionClient

from flows.automations import NOTIFY_URL
from flows.demo import DEPLOYMENT
from infra.local import http
from smooth import store
from tests import small
from tests.clusters import ScratchCluster
from tests.faults import PICTURES, Gate, Run, overrides, wait

# Ray's job client passes ssl=None, which newer aiohttp deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:ssl=None is deprecated, please use ssl=True:DeprecationWarning")

AWAY_S = 5.0
STEPS = 20
TRAINING = [
    f"train.steps={STEPS}", "train.global_batch_size=4", "train.micro_batch_size=2", "train.validate_every=5",
    "train.checkpoint_every=5", "train.istd_every=null", "train.zero_stage=0", "train.workers=1", "evaluate.actors=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def gate() -> Iterator[Gate]:
    with Gate().serving() as gate:
        yield gate


@pytest.fixture(scope="module")
def prefect(cluster: ScratchCluster) -> Iterator[SyncPrefectClient]:
    with temporary_settings({PREFECT_API_URL: cluster.state["prefect_api"]}), get_client(sync_client=True) as client:
        yield client


@pytest.fixture(scope="module")
def ray_jobs(cluster: ScratchCluster) -> JobSubmissionClient:
    token = Path(cluster.state["ray_token_path"]).read_text().strip()
    return JobSubmissionClient(cluster.state["ray_dashboard"], headers={"Authorization": f"Bearer {token}"})


def started(
    cluster: ScratchCluster, prefect: SyncPrefectClient, ray_jobs: JobSubmissionClient, changes: list[str]
) -> Run:
    deployment = prefect.read_deployment_by_name(DEPLOYMENT)
    parameters = {"preset": "tiny", "overrides": changes}
    run = prefect.create_flow_run_from_deployment(deployment.id, parameters=parameters)
    return Run(cluster, prefect, ray_jobs, run.id, changes)


@pytest.fixture(scope="module")
def run(
    cluster: ScratchCluster,
    prefect: SyncPrefectClient,
    ray_jobs: JobSubmissionClient,
    gate: Gate,
    tmp_path_factory: pytest.TempPathFactory,
) -> Run:
    """A run whose ingest waits for the gate."""
    root = tmp_path_factory.mktemp("run")
    base = small.write_pipeline(root / "base")
    run = started(cluster, prefect, ray_jobs, [f"model.base={base}", *overrides(root, gate), *TRAINING])
    wait(lambda: [job.status for job in run.jobs("ingest")] == [JobStatus.RUNNING], "the ingest runs")
    return run


@pytest.fixture(scope="module")
def second(
    cluster: ScratchCluster, prefect: SyncPrefectClient, ray_jobs: JobSubmissionClient, run: Run, gate: Gate
) -> Run:
    """Another run of the same deployment, with a key that does not exist; failures are told to the gate."""
    url = f"http://{gate.host}/hook?token=not-for-logs"
    told = cluster.run("-m", "flows.automations", PREFECT_API_URL=cluster.state["prefect_api"], **{NOTIFY_URL: url})
    assert told.returncode == 0, told.stderr
    return started(cluster, prefect, ray_jobs, ["train.step=1"])


def kill(cluster: ScratchCluster, service: str) -> None:
    psutil.Process(cluster.status()[service]["pid"]).kill()


def test_a_killed_worker(cluster: ScratchCluster, run: Run) -> None:
    """It is started again; the flow's process, which outlived it, is ended, and the next finds the same job."""
    kill(cluster, "worker")
    assert cluster.local("up").returncode == 0
    seconds = wait(lambda: run.found_again() == 1, "the job is found again")
    (job,) = run.jobs("ingest")
    assert job.status == JobStatus.RUNNING
    assert run.state == "Running"
    assert run.now.run_count == 2
    print(f"\na killed worker: the job was followed again {seconds:.0f} s after `make cluster-up`")


def test_a_second_run_waits_for_the_first(run: Run, second: Run) -> None:
    wait(lambda: second.state == "AwaitingConcurrencySlot", "the second run waits")
    assert run.state == "Running"


def test_a_prefect_server_that_is_away(cluster: ScratchCluster, run: Run, second: Run, gate: Gate) -> None:
    """A stage ends meanwhile, and its flow learns of it later."""
    kill(cluster, "prefect")
    gate.opened.set()
    wait(lambda: run.jobs("ingest")[0].status == JobStatus.SUCCEEDED, "the ingest ends")
    time.sleep(AWAY_S)
    assert cluster.local("up").returncode == 0
    seconds = wait(lambda: run.tasks().get("latents") == "Running", "the next stage starts")
    assert len(run.jobs("ingest")) == 1
    assert run.tasks()["ingest"] == "Completed"
    assert run.now.run_count == 2
    assert store.read_manifest(run.config.stage_dir("ingest"))["kept"] == PICTURES
    print(f"\na Prefect server that was away: the flow went on {seconds:.0f} s after `make cluster-up`")


def test_an_mlflow_server_that_is_away(cluster: ScratchCluster, run: Run) -> None:
    """Training goes on, and no value of any step is lost."""
    checkpoints = Path(run.config.stage_dir("train")) / "checkpoints"
    server = psutil.Process(cluster.status()["mlflow"]["pid"])  # looked up before: the training takes seconds
    members = (server, *server.children(recursive=True))  # its worker alone would go on answering
    wait(lambda: list(checkpoints.glob("step-*")), "the training has begun")
    for process in members:
        with suppress(psutil.NoSuchProcess):  # it ended with its parent
            process.kill()
    before = len(list(checkpoints.glob("step-*")))
    assert not http.is_ok(f"{cluster.state['mlflow_uri']}/health")
    wait(lambda: len(list(checkpoints.glob("step-*"))) > before, "the training goes on without MLflow")
    time.sleep(AWAY_S)
    assert cluster.local("up").returncode == 0
    seconds = wait(lambda: store.is_complete(run.config.stage_dir("train")), "the training ends")
    wait(lambda: [job.status for job in run.jobs("train")] == [JobStatus.SUCCEEDED], "its only job ends")
    client = MlflowClient(cluster.state["mlflow_uri"])
    run_id = store.read_manifest(run.config.stage_dir("train"))["run_id"]
    assert client.get_run(run_id).info.status == "FINISHED"
    for name in ("loss", "norm", "learning_rate"):
        assert sorted(point.step for point in client.get_metric_history(run_id, name)) == list(range(1, STEPS + 1))
    print(f"\nan MLflow server that was away: the training had ended {seconds:.0f} s after `make cluster-up`")


def test_a_cancelled_run(run: Run, prefect: SyncPrefectClient) -> None:
    wait(lambda: run.running() is not None, "a job runs")
    stage = run.running()
    assert stage is not None
    begun = time.monotonic()
    prefect.set_flow_run_state(run.id, Cancelling())
    wait(lambda: run.jobs(stage)[-1].status == JobStatus.STOPPED, "the job is stopped")
    stopped_s = time.monotonic() - begun
    wait(lambda: run.state == "Cancelled", "the run is cancelled")
    assert stopped_s < 120  # some seconds where nobody else computes
    print(f"\na cancelled run: its job was stopped {stopped_s:.1f} s after, the run {time.monotonic() - begun:.1f} s")


def test_a_bad_key_is_refused_and_told_of(
    cluster: ScratchCluster, prefect: SyncPrefectClient, ray_jobs: JobSubmissionClient, second: Run, gate: Gate
) -> None:
    """The second run has its turn, and fails before any stage; of the next one's failure somebody is told.

    Not of the second's at once: Prefect's automations wait 15 minutes for what came before a restart of the server.
    """
    wait(lambda: second.state == "Failed", "the second run has its turn")
    assert "unknown key train.step; nearest is train.steps" in second.message
    assert second.tasks() == {}
    third = started(cluster, prefect, ray_jobs, ["train.stepps=1"])
    wait(lambda: third.state == "Failed", "the third run has its turn")
    wait(lambda: gate.posts, "the failure is told of")
    assert b"Failed" in gate.posts[-1]
    assert b"unknown key train.stepps; nearest is train.steps" in gate.posts[-1]
    logs = [path for path in (cluster.layout.home / "cluster" / "logs").iterdir() if path.is_file()]
    assert not [path.name for path in logs if b"not-for-logs" in path.read_bytes()]
