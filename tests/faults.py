"""A flow run to be disturbed: its first stage fetches from a web that answers when the test says so."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId, TaskRunFilter, TaskRunFilterFlowRunId
from prefect.client.schemas.objects import FlowRun
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from smooth.config import STAGES, RunConfig, Stage
from tests.clusters import ScratchCluster
from tests.hostile import picture

PATIENCE_S = 600.0  # a busy machine imports torch for minutes
PICTURES = 12


class Gate(ThreadingHTTPServer):
    """Serves one picture under every path, once it is open; keeps what is posted to it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.opened = threading.Event()
        self.picture = picture()
        self.posts: list[bytes] = []

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    @contextmanager
    def serving(self) -> Iterator[Gate]:
        with self:
            threading.Thread(target=self.serve_forever, daemon=True).start()
            yield self
            self.opened.set()
            self.shutdown()


class _Handler(BaseHTTPRequestHandler):
    server: Gate

    def do_GET(self) -> None:
        self.server.opened.wait()
        self._answer(self.server.picture)

    def do_POST(self) -> None:
        self.server.posts.append(self.rfile.read(int(self.headers["Content-Length"])))
        self._answer(b"")

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def overrides(root: Path, gate: Gate) -> list[str]:
    """Of a run that stays in its ingest until the gate is opened."""
    root.mkdir(parents=True, exist_ok=True)
    urls = [f"http://{gate.host}/{number}" for number in range(PICTURES)]
    pq.write_table(pa.table({"url": urls, "caption": [f"picture {n}" for n in range(PICTURES)]}), root / "list.parquet")
    free = [f"ingest.{name}=null" for name in ("min_aesthetic", "max_punsafe", "max_pwatermark", "min_similarity")]
    return [
        f"storage.root={root}", "ingest.demo_web=null", f"ingest.url_list={root}/list.parquet", "ingest.timeout_s=600",
        "ingest.deadline_s=600", f'ingest.allowed_hosts=["{gate.host}"]', "ingest.min_size=0", *free,
    ]  # fmt: skip


def wait(condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> float:
    """Wait until it holds; the seconds that this took."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() < begun + patience_s, f"in vain for {patience_s:.0f} s: {what}"
        time.sleep(0.2)
    return time.monotonic() - begun


@dataclass(frozen=True)
class Run:
    """A run of smooth-train/full, seen through the servers' APIs."""

    cluster: ScratchCluster
    prefect: SyncPrefectClient
    ray: JobSubmissionClient
    id: Any
    changes: list[str]

    @cached_property
    def config(self) -> RunConfig:
        return RunConfig.load("tiny", self.changes)

    @property
    def now(self) -> FlowRun:
        return self.prefect.read_flow_run(self.id)

    @property
    def state(self) -> str:
        """Name of its state."""
        state = self.now.state
        return "" if state is None else state.name or ""

    @property
    def message(self) -> str:
        state = self.now.state
        return "" if state is None else state.message or ""

    def log(self) -> list[str]:
        of_this = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[self.id]))
        return [line.message for line in self.prefect.read_logs(of_this, limit=200)]

    def found_again(self) -> int:
        """How often a process has found the job of an earlier one."""
        return sum("found the running Ray job" in line for line in self.log())

    def tasks(self) -> dict[str, str]:
        """Stage -> name of the state of its latest task run."""
        of_this = TaskRunFilter(flow_run_id=TaskRunFilterFlowRunId(any_=[self.id]))
        runs = sorted(self.prefect.read_task_runs(task_run_filter=of_this), key=lambda run: run.created)
        return {run.name.partition(" ")[0]: run.state.name for run in runs if run.state is not None}

    def jobs(self, stage: Stage) -> list[JobDetails]:
        """All attempts at a stage, the first first."""
        prefix = f"smooth-{stage}-{self.config.fingerprint(stage)}-"
        return sorted(
            (job for job in self.ray.list_jobs() if (job.submission_id or "").startswith(prefix)),
            key=lambda job: job.submission_id or "",
        )

    def running(self) -> Stage | None:
        """The stage whose job runs."""
        of_now = (stage for stage in STAGES if [1 for job in self.jobs(stage) if job.status == JobStatus.RUNNING])
        return next(of_now, None)

    def processes(self) -> list[psutil.Process]:
        """That run the flow on this machine; not those of its Ray jobs."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("PREFECT__FLOW_RUN_ID") == str(self.id):
                    found.append(process)
            except psutil.Error:  # it ended meanwhile, or is somebody else's
                continue
        return [process for process in found if process.pid != os.getpid()]

    def kill_process(self) -> None:
        for process in self.processes():
            process.kill()
