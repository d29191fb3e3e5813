"""A machine that is gone with worker and flow, and a flow's process that is killed: runs are found and go on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from ray.job_submission import JobStatus, JobSubmissionClient

from flows.automations import SILENT
from flows.demo import DEPLOYMENT
from tests.clusters import ScratchCluster
from tests.faults import Gate, Run, overrides, wait
from tests.integration.conftest import scratch

pytestmark = [
    pytest.mark.timeout(1800),
    # Ray's job client passes ssl=None, which newer aiohttp deprecates.
    pytest.mark.filterwarnings("ignore:ssl=None is deprecated, please use ssl=True:DeprecationWarning"),
]
SILENT_S = 40  # a heartbeat comes every 30 s; 600 by default


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ScratchCluster]:
    cluster = scratch(tmp_path / "smooth-home")
    up = cluster.local("up", **{SILENT: str(SILENT_S)})
    assert up.returncode == 0, up.stdout + up.stderr
    yield cluster
    assert cluster.local("down").returncode == 0


@pytest.fixture
def run(cluster: ScratchCluster, tmp_path: Path) -> Iterator[Run]:
    """A run whose ingest waits for ever."""
    token = Path(cluster.state["ray_token_path"]).read_text().strip()
    ray_jobs = JobSubmissionClient(cluster.state["ray_dashboard"], headers={"Authorization": f"Bearer {token}"})
    with (
        Gate().serving() as gate,
        temporary_settings({PREFECT_API_URL: cluster.state["prefect_api"]}),
        get_client(sync_client=True) as prefect,
    ):
        changes = overrides(tmp_path / "run", gate)
        deployment = prefect.read_deployment_by_name(DEPLOYMENT)
        parameters = {"preset": "tiny", "overrides": changes}
        made = prefect.create_flow_run_from_deployment(deployment.id, parameters=parameters)
        run = Run(cluster, prefect, ray_jobs, made.id, changes)
        wait(lambda: [job.status for job in run.jobs("ingest")] == [JobStatus.RUNNING], "the ingest runs")
        yield run


def test_a_killed_process_and_then_a_zombie(cluster: ScratchCluster, run: Run) -> None:
    begun = time.monotonic()
    run.kill_process()
    wait(lambda: run.found_again() == 1, "the job is found again")
    print(f"\na flow's process killed: the job was followed again {time.monotonic() - begun:.0f} s after")

    begun = time.monotonic()
    psutil.Process(cluster.status()["worker"]["pid"]).kill()
    run.kill_process()
    assert cluster.local("up", **{SILENT: str(SILENT_S)}).returncode == 0
    assert run.state == "Running"  # as far as anybody knows
    wait(lambda: run.state != "Running", "the run is known to be dead")
    crashed_s = time.monotonic() - begun
    wait(lambda: run.found_again() == 2, "the job is found again")
    states = [state.message or "" for state in run.prefect.read_flow_run_states(run.id)]
    assert f"no heartbeat for {SILENT_S} s: the process that ran this flow is gone" in states
    (job,) = run.jobs("ingest")
    assert job.status == JobStatus.RUNNING
    print(
        f"a zombie: Crashed {crashed_s:.0f} s after, its job was followed again after {time.monotonic() - begun:.0f} s"
    )
