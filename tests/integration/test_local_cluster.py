"""The local cluster with its real services: up, up again, wounded and healed, down to the last process."""

from __future__ import annotations

import socket
import sqlite3
import stat
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from flows import stages
from infra.local import http, processes
from infra.local.cluster import DEPLOYMENT
from infra.local.layout import HOST, PROJECT
from infra.local.options import Options
from infra.local.processes import Identity, Record
from infra.local.services import SERVICES
from smooth.cluster import StageError, submit_stage
from smooth.config import RunConfig
from tests.clusters import ScratchCluster

# Ray's job client passes ssl=None, which newer aiohttp deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:ssl=None is deprecated, please use ssl=True:DeprecationWarning")

NAMES = [service.name for service in SERVICES]


def all_processes(cluster: ScratchCluster) -> list[psutil.Process]:
    return [
        process
        for name in NAMES
        for process in processes.members(
            processes.read_record(cluster.layout.record(name)), cluster.layout.marker(name)
        )
    ]


def test_a_taken_port_is_named_with_its_variable_and_nothing_is_started(stopped_cluster: ScratchCluster) -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = str(taken.getsockname()[1])
        result = stopped_cluster.local("up", SMOOTH_MLFLOW_PORT=port)
    assert result.returncode == 2
    assert f"port {port} of MLflow is taken by process" in result.stderr
    assert "set SMOOTH_MLFLOW_PORT to another port" in result.stderr
    assert all_processes(stopped_cluster) == []


def test_a_port_must_be_a_number(stopped_cluster: ScratchCluster) -> None:
    result = stopped_cluster.local("up", SMOOTH_PREFECT_PORT="many")
    assert result.returncode == 2
    assert "SMOOTH_PREFECT_PORT='many' is not a port number" in result.stderr


def test_every_service_answers(cluster: ScratchCluster) -> None:
    status = cluster.status()
    assert list(status) == NAMES
    assert {part["status"] for part in status.values()} == {"healthy"}
    assert http.is_ok(f"{cluster.state['mlflow_uri']}/health")
    assert http.is_ok(f"{cluster.state['prefect_api']}/deployments/name/{DEPLOYMENT}")


def test_ray_wants_the_token_and_only_this_user_can_read_it(cluster: ScratchCluster) -> None:
    jobs = f"{cluster.state['ray_dashboard']}/api/jobs/"
    answer = http.request(jobs)
    assert answer is not None
    assert answer[0] == 401
    assert http.is_ok(jobs, {"Authorization": f"Bearer {cluster.layout.token.read_text()}"})
    assert stat.S_IMODE(cluster.layout.token.stat().st_mode) == 0o600


def test_up_again_changes_nothing(cluster: ScratchCluster) -> None:
    before = cluster.status()
    result = cluster.local("up")
    assert result.returncode == 0
    assert "nothing was changed" in result.stdout
    assert cluster.status() == before


def test_up_again_confines_an_mlflow_that_the_last_one_did_not(cluster: ScratchCluster) -> None:
    """As where it was killed after MLflow's start, or was of a version before."""
    query = "SELECT name FROM sqlite_master WHERE type = 'trigger' AND name LIKE 'smooth_place%' ORDER BY name"
    with closing(sqlite3.connect(cluster.layout.home / "mlflow" / "mlflow.db", timeout=60)) as database:
        guards = [name for (name,) in database.execute(query)]
        assert len(guards) == 2
        for name in guards:
            database.execute(f"DROP TRIGGER {name}")
        database.commit()
        result = cluster.local("up")
        assert result.returncode == 0, result.stdout + result.stderr
        assert [name for (name,) in database.execute(query)] == guards


def test_a_running_service_can_not_be_moved_by_a_variable(cluster: ScratchCluster) -> None:
    result = cluster.local("up", SMOOTH_PREFECT_PORT="4999")
    assert result.returncode == 2
    assert "`make cluster-down` first" in result.stderr


def test_a_missing_worker_and_a_lost_log_are_noticed_and_mended_alone(cluster: ScratchCluster) -> None:
    before = cluster.status()
    psutil.Process(before["worker"]["pid"]).kill()
    record = processes.read_record(cluster.layout.record("mlflow"))
    assert record is not None
    psutil.Process(record.keeper.pid).kill()
    sick = {name: part["status"] for name, part in cluster.status().items() if part["status"] != "healthy"}
    assert sick == {"mlflow": "not logging", "worker": "stopped"}
    result = cluster.local("up")
    assert "started mlflow, worker in" in result.stdout, result.stderr
    after = cluster.status()
    assert {part["status"] for part in after.values()} == {"healthy"}
    assert [name for name in NAMES if after[name]["pid"] != before[name]["pid"]] == ["mlflow", "worker"]


def test_what_runs_can_not_become_another_cluster(cluster: ScratchCluster) -> None:
    secret = "postgresql://me:hidden@127.0.0.1/other"
    for change in ({"SMOOTH_BIND": "0.0.0.0"}, {"SMOOTH_DATABASE": secret}, {"SMOOTH_STORE": "s3://bucket"}):
        result = cluster.local("up", **change)
        assert result.returncode == 2
        assert next(iter(change)) in result.stderr
        assert "`make cluster-down` first" in result.stderr
        assert "hidden" not in result.stdout + result.stderr


@pytest.fixture
def config(cluster: ScratchCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> RunConfig:
    """A run on the tests' cluster whose base model does not matter to its first stage."""
    monkeypatch.setenv("SMOOTH_HOME", str(cluster.layout.home))
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN_PATH", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return RunConfig.load("tiny", ["model.base=someone/some-model", f"storage.root={tmp_path}"])


def test_a_stage_without_its_input_fails_with_a_clear_message(config: RunConfig) -> None:
    with pytest.raises(StageError, match="no finished artifact") as failure:
        list(submit_stage("latents", config).follow())
    assert not failure.value.retryable


def test_the_same_work_is_found_again_and_an_interruption_stops_it(config: RunConfig) -> None:
    job = submit_stage("ingest", config)
    again = submit_stage("ingest", config)
    assert (again.job_id, again.attached, job.attached) == (job.job_id, True, False)
    with pytest.raises(KeyboardInterrupt), stages._JOBS.submitted("ingest", config):
        raise KeyboardInterrupt
    with pytest.raises(StageError, match="it was stopped"):
        list(again.follow())
    later = submit_stage("ingest", config)
    later.stop()
    assert (later.attached, later.job_id) == (False, f"smooth-ingest-{config.fingerprint('ingest')}-2")


def test_down_leaves_no_process_and_no_state(cluster: ScratchCluster) -> None:
    before = all_processes(cluster)
    assert len(before) >= len(NAMES)
    result = cluster.local("down")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("stopped worker")
    assert all_processes(cluster) == []
    assert not [process for process in before if processes.is_living(process)]
    assert not cluster.layout.state.exists()
    assert not cluster.layout.ray_folder.exists()
    assert {part["status"] for part in cluster.status().values()} == {"stopped"}
    assert "nothing of the cluster was running" in cluster.local("down").stdout


def test_after_a_reboot_strangers_with_old_pids_are_left_alone(cluster: ScratchCluster) -> None:
    """Records of the last boot name pids that others have now."""
    with psutil.Popen(["sleep", "600"]) as stranger:
        try:
            now = Identity.of(stranger.pid)
            old = Identity(pid=stranger.pid, start=f"another-boot:{now.start.partition(':')[2]}")
            for name in (*NAMES, "ray-node-3"):
                record = Record(main=old, keeper=old, created=stranger.create_time(), ports={"SMOOTH_MLFLOW_PORT": 1})
                cluster.layout.record(name).write_text(record.model_dump_json())
            cluster.layout.record("ray").write_text('{"pid": 1')  # the power went while it was written
            cluster.layout.options.write_text(Options(bind="0.0.0.0").model_dump_json())
            assert {part["status"] for part in cluster.status().values()} == {"stopped"}
            assert "nothing of the cluster was running" in cluster.local("down").stdout
            assert stranger.is_running()
        finally:
            stranger.kill()


def test_up_may_be_killed_at_any_moment(cluster: ScratchCluster) -> None:
    """Before anything was started, amid the starts, and before the worker is well: the next one makes it whole."""
    moments = (None, cluster.layout.record("ray"), cluster.layout.record("worker"))
    for moment in moments:
        command = [sys.executable, "-m", "infra.local", "up"]
        with subprocess.Popen(command, cwd=PROJECT, env=cluster.environment, stdout=subprocess.PIPE) as up:
            deadline = time.monotonic() + 600
            while moment is not None and not moment.exists():
                assert time.monotonic() < deadline
                time.sleep(0.02)
            time.sleep(0.3)
            up.kill()
        assert not cluster.layout.state.exists()
    result = cluster.local("up")
    assert result.returncode == 0, result.stdout + result.stderr
    assert {part["status"] for part in cluster.status().values()} == {"healthy"}
    for name in NAMES:
        record = processes.read_record(cluster.layout.record(name))
        assert record is not None
        for process in processes.members(None, cluster.layout.marker(name)):
            ancestors = {process.pid, *(parent.pid for parent in process.parents())}
            assert ancestors & {record.main.pid, record.keeper.pid}, process.cmdline()
