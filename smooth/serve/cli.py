"""The command `smooth serve`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from smooth.serve.settings import Settings

# Ray calls nobody, and believes that it can have no other machines: then even what asks for no token is on loopback.
OWN_RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
# Serve gives a proxy up that is silent for 5 s, as one is that has yet to load on a busy machine.
PATIENT = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "30"}
QUIET = {"MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}


def serve(
    model: Annotated[
        str, typer.Option("--model", help="models:/NAME@ALIAS, which is followed, or models:/NAME/VERSION.")
    ] = "models:/smooth-diffusion@production",
    host: Annotated[
        str, typer.Option("--host", help="To listen on; beyond loopback only with SMOOTH_SERVE_TOKEN.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Of HTTP.")] = 8000,
    metrics_port: Annotated[
        int, typer.Option("--metrics-port", min=1, max=65535, help="Of Prometheus metrics, on loopback.")
    ] = 8001,
    replicas: Annotated[int, typer.Option("--replicas", min=1, help="Painters, each with the model; one a GPU.")] = 1,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Of a painter on the CPU; else what is left of the cores.")
    ] = None,
    batch: Annotated[int, typer.Option("--max-batch", min=1, max=256, help="Pictures painted together.")] = 8,
    wait: Annotated[
        float, typer.Option("--batch-wait", min=0, max=10, help="Seconds that an idle painter waits for more.")
    ] = 0.05,
    queue: Annotated[int, typer.Option("--queue", min=0, help="Requests that wait before more get a 503.")] = 64,
    steps: Annotated[int, typer.Option("--max-steps", min=1, help="That a request may ask for.")] = 100,
    size: Annotated[
        int | None, typer.Option("--max-size", min=8, help="Pixels that a request may ask for; else the model's own.")
    ] = None,
    poll: Annotated[float, typer.Option("--poll", min=0.1, help="Seconds between looks at the registry.")] = 5.0,
) -> None:
    """Serve a registered model over HTTP, in batches; where its alias moves, the service follows.

    For example, with a model that carries the alias:

    smooth serve --model models:/smooth-diffusion@production --port 8000
    """
    from smooth.cli import reported

    with reported():
        import os
        from pathlib import Path

        from smooth.sections import StorageConfig
        from smooth.serve.order import Limits
        from smooth.serve.settings import Settings

        settings = Settings(
            model=model,
            scratch=str(Path(StorageConfig().root, "models").absolute()),
            limits=Limits(steps, size),
            replicas=replicas,
            threads=threads or max(1, ((os.cpu_count() or 1) - 1) // replicas),
            batch=batch,
            wait_seconds=wait,
            queue=queue,
            poll_seconds=poll,
        )
        _run(settings, host, port, metrics_port)


def _run(settings: Settings, host: str, port: int, metrics_port: int) -> None:
    """Look whether all is at hand, which Ray would take long to find out, and serve.

    Raises:
        ValueError: a host without a token, a taken port, a model that is not registered, no Ray Serve.
    """
    import os
    from secrets import token_hex

    from smooth.config import REGISTERED
    from smooth.listening import LOOPBACK, host_names, listen
    from smooth.serve.settings import take_token
    from smooth.studio.server import ENVIRONMENT

    token = take_token(host)
    if port == metrics_port:
        raise ValueError(f"--port {port} is --metrics-port, too: give them two numbers")
    listen(host, port).close()
    listen(LOOPBACK, metrics_port, "--metrics-port").close()
    os.environ.update(ENVIRONMENT | QUIET)
    if not settings.model.startswith(REGISTERED):
        raise ValueError(f"--model {settings.model}: give a registered one, models:/NAME@ALIAS or models:/NAME/VERSION")
    from smooth import registry, tracking

    registry.resolve(settings.model)
    os.environ.update(OWN_RAY | PATIENT)
    os.environ.update({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token_hex(32)})  # of this Ray, known to it alone
    os.environ["MLFLOW_TRACKING_URI"] = tracking.tracking_uri()  # the painters work in another folder
    try:
        from smooth.serve.app import run
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith(("grpc_reflection", "fastapi", "uvicorn", "starlette")):
            raise
        raise ValueError("serving needs Ray Serve: pip install 'smooth[serve]'") from error
    run(settings, host=host, port=port, metrics_port=metrics_port, hosts=host_names(host), token=token)
