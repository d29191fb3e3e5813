"""The service on Ray Serve: a front that speaks HTTP, painters that hold the model, and a Ray of their own."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve import metrics
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException
from starlette.applications import Starlette

from smooth.serve import web
from smooth.serve.batching import Batcher
from smooth.serve.order import Order, OrderError
from smooth.serve.settings import Settings

APP, FRONT, PAINTER = "smooth", "Front", "Painter"
REPORT_SECONDS = 2.0  # between two reports of a painter
SILENT_SECONDS = 10.0  # after which a painter counts as gone
RESTART_SECONDS = 15  # that a client is told to wait for a new painter
FRONTS_ROOM = 1_000  # connections beside those that the painters have room for
STORE_BYTES = 2**27  # of Ray's object store; a picture goes past it

logger = logging.getLogger(__name__)

State = dict[str, Any]


def stay_on_loopback() -> None:
    """Bind this replica's own gRPC port to loopback; to be called while the replica is made, before it listens.

    Ray Serve opens one a replica on all interfaces, takes pickles there, asks for no token, and has no option for it.
    """
    from ray.serve._private import replica

    add_port = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, address: add_port(server, address.replace("[::]", "127.0.0.1"))


class Front:
    """Reads requests, answers what can't be painted by itself, and hands the rest to the painters."""

    def __init__(self, painter: Any, settings: Settings, hosts: Sequence[str] | None, token_digest: str | None) -> None:
        stay_on_loopback()
        self._painter, self._settings = painter, settings
        self._hosts, self._token_digest = hosts, token_digest
        self._painters: dict[str, tuple[float, State]] = {}
        self._room = settings.replicas * settings.ongoing + settings.queue
        self._under_way = 0
        self._seconds = 1.0  # of the last picture, waiting included
        self._answers = metrics.Counter("smooth_serve_answers", "Answers to POST /generate.", ("status",))

    def __serve_build_asgi_app__(self) -> Starlette:
        """What Serve calls for the application of this replica."""
        return web.application(
            self._paint, self._health, self._count, self._settings.limits, self._hosts, self._token_digest
        )

    async def report(self, painter: str, state: State) -> None:
        """What a painter tells of itself."""
        self._painters[painter] = time.monotonic(), state

    async def _paint(self, order: Order) -> web.Painted:
        # Counted here, since Serve's own max_queued_requests counts what is on its way to an idle painter, too.
        if self._under_way >= self._room:
            raise web.BusyError("the queue is full", max(1, math.ceil(self._seconds)))
        begun = time.monotonic()
        self._under_way += 1
        try:
            answer: web.Painted | OrderError = await self._painter.paint.remote(order)
        except (DeploymentUnavailableError, RayActorError) as error:
            raise web.BusyError("the painter of this request died, another one starts", RESTART_SECONDS) from error
        finally:
            self._under_way -= 1
        if isinstance(answer, OrderError):
            raise answer
        self._seconds = time.monotonic() - begun
        return answer

    def _health(self) -> State:
        now = time.monotonic()
        self._painters = {name: told for name, told in self._painters.items() if now - told[0] < SILENT_SECONDS}
        painters = {name: state for name, (_, state) in sorted(self._painters.items())}
        return {
            "ready": bool(painters),
            "asked": self._settings.model,
            "models": sorted({state["model"] for state in painters.values()}),
            "problems": sorted({state["problem"] for state in painters.values() if state["problem"]}),
            "painters": painters,
        }

    def _count(self, status: int) -> None:
        self._answers.inc(tags={"status": str(status)})


class Painter:
    """Holds the model and paints batches in a thread of its own; another thread follows the alias."""

    def __init__(self, settings: Settings) -> None:
        import diffusers
        import torch
        import transformers

        from smooth.serve.versions import Version, Versions

        stay_on_loopback()
        torch.set_num_threads(settings.threads)
        diffusers.utils.logging.disable_progress_bar()
        transformers.utils.logging.disable_progress_bar()
        self._settings = settings
        self._versions = Versions(settings.model, settings.scratch)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="painting")
        self._batcher: Batcher[tuple[Version, Order], Any] = Batcher(self._work, settings.batch, settings.wait_seconds)
        self._pictures = metrics.Counter("smooth_serve_pictures", "Pictures painted.", ("model",))
        self._sizes = metrics.Histogram("smooth_serve_batch", "Pictures of a batch.", [1, 2, 4, 8, 16, 32, 64])
        self._times = metrics.Histogram(
            "smooth_serve_batch_seconds", "Painting a batch.", [0.1, 0.3, 1, 3, 10, 30, 100]
        )
        self._waits = metrics.Gauge("smooth_serve_waiting", "Requests that wait in a painter.")
        self._threads = [threading.Thread(target=task, daemon=True) for task in (self._follow, self._report)]
        for thread in self._threads:
            thread.start()

    async def paint(self, order: Order) -> web.Painted | OrderError:
        """A PNG of the version that is served now, or why there is none."""
        from smooth.serve import paint as painting

        version = self._versions.current
        try:
            painting.check_order(version.pipeline, order, self._settings.limits)
        except OrderError as refusal:
            return refusal
        picture = await self._batcher.submit((version.uri, order.group), (version, order))
        return await asyncio.to_thread(painting.png, version, order, picture), version.name

    async def _work(self, batch: list[tuple[Any, Order]]) -> Any:
        from smooth.serve import paint as painting

        begun = time.monotonic()
        version = batch[0][0]
        pictures = await asyncio.get_running_loop().run_in_executor(
            self._thread, painting.paint, version.pipeline, [order for _, order in batch]
        )
        self._pictures.inc(len(batch), tags={"model": version.name})
        self._sizes.observe(len(batch))
        self._times.observe(time.monotonic() - begun)
        self._waits.set(self._batcher.waiting)
        return pictures

    def check_health(self) -> None:
        """What Serve calls; a painter that raises is replaced."""
        if not all(thread.is_alive() for thread in self._threads):
            raise RuntimeError("this painter follows the registry no more")

    def _follow(self) -> None:
        while True:
            time.sleep(self._settings.poll_seconds)
            self._versions.follow()

    def _report(self) -> None:
        name = serve.get_replica_context().replica_id.unique_id
        while True:
            state = {"model": self._versions.current.name, "problem": self._versions.problem}
            try:
                front = serve.get_deployment_handle(FRONT, APP)
                front.report.remote(name, state).result(timeout_s=REPORT_SECONDS)
            except (RayServeException, RayError, TimeoutError) as error:  # the front is about to start, or again
                logger.info("no front to report to: %s", error)
            time.sleep(REPORT_SECONDS)


def build(settings: Settings, hosts: Sequence[str] | None, token_digest: str | None) -> Any:
    """The Serve application.

    Args:
        settings: how it runs.
        hosts: see :func:`smooth.serve.web.application`.
        token_digest: likewise.
    """
    gpus = 1 if ray.cluster_resources().get("GPU") else 0
    painter = serve.deployment(Painter).options(
        name=PAINTER,
        num_replicas=settings.replicas,
        max_ongoing_requests=settings.ongoing,
        max_constructor_retry_count=1,
        ray_actor_options={
            "num_cpus": settings.threads,
            "num_gpus": gpus,
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(settings.threads), "OMP_WAIT_POLICY": "PASSIVE"}},
        },
    )
    room = settings.replicas * settings.ongoing + settings.queue + FRONTS_ROOM
    front = serve.deployment(serve.ingress()(Front)).options(
        name=FRONT, max_ongoing_requests=room, ray_actor_options={"num_cpus": 0}
    )
    return front.bind(painter.bind(settings), settings, hosts, token_digest)


def run(
    settings: Settings,
    *,
    host: str,
    port: int,
    metrics_port: int,
    hosts: Sequence[str] | None,
    token: str | None,
) -> None:
    """Serve until SIGINT or SIGTERM; what is being painted then is finished.

    Raises:
        ValueError: the model can't be loaded.
    """
    stop = threading.Event()
    token_digest = None if token is None else web.digest(token)
    if token_digest is not None:
        path = f"{web.__name__}.{web.of_the_proxy.__name__}"
        os.environ.update({"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": path, web.DIGEST_VARIABLE: token_digest})
    ray.init(
        address="local",
        num_cpus=settings.replicas * settings.threads + 1,
        include_dashboard=False,
        object_store_memory=STORE_BYTES,
        logging_level=logging.WARNING,
        _node_ip_address="127.0.0.1",
        _metrics_export_port=metrics_port,
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": host, "port": port},
            logging_config={"log_level": "WARNING", "enable_access_log": False},
        )
        try:
            application = build(settings, hosts, token_digest)
            serve.run(application, name=APP, logging_config={"log_level": "WARNING", "enable_access_log": False})
        except RuntimeError as error:
            raise ValueError(f"{settings.model} can't be served: {error}") from None
        shown = f"[{host}]" if ":" in host else host
        print(f"Smooth serves {settings.model}: http://{shown}:{port}/generate (Ctrl+C ends it)", flush=True)
        print(f"Prometheus metrics: http://127.0.0.1:{metrics_port}/metrics", flush=True)
        stop.wait()
    finally:
        serve.shutdown()
        ray.shutdown()
