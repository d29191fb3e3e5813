"""The page's server: loopback, or a password."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from smooth.listening import host_names, is_loopback, listen

if TYPE_CHECKING:
    from fastapi import FastAPI

    from smooth.studio.models import Models

GRACE_SECONDS = 2  # for pages that are open at the end
# Nothing of this process calls home, and a registry that is away is given up soon.
ENVIRONMENT = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
}


def read_auth(host: str, path: str | None) -> tuple[str, str] | None:
    """User and password.

    Args:
        host: to listen on.
        path: of a file whose first line is ``user:password``.

    Raises:
        ValueError: none for a host that others reach, or a file that holds none.
    """
    if path is None:
        if not is_loopback(host):
            raise ValueError(
                f"--host {host} can be reached from other machines; give --auth FILE, a file with user:password, or "
                "stay on 127.0.0.1"
            )
        return None
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"--auth {path}: no such file; write user:password into it")
    user, _, password = file.read_text().partition("\n")[0].strip().partition(":")
    if not user or not password:
        raise ValueError(f"--auth {path}: its first line is not user:password")
    return user, password


def serve(names: Sequence[str], base: str, host: str, port: int, auth: tuple[str, str] | None, scratch: str) -> None:
    """Serve the page until the process is interrupted.

    Args:
        names: models, the first one chosen at the start and loaded at once.
        base: that a LoRA among them belongs to.
        host: to listen on.
        port: likewise; 0 is any free one.
        auth: user and password, if asked for.
        scratch: folder for uploads and results.

    Raises:
        ValueError: a model can't be loaded, or the address can't be had.
    """
    from smooth.studio.models import Models

    os.environ.update(ENVIRONMENT | {"GRADIO_TEMP_DIR": str(Path(scratch, "files"))})
    with listen(host, port) as listening:
        models = Models(names, base)
        models.open(names[0])
        import uvicorn

        config = uvicorn.Config(
            _application(models, host, auth, scratch),
            log_level="warning",
            proxy_headers=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        name = f"[{host}]" if ":" in host else host
        print(f"Smooth studio: http://{name}:{listening.getsockname()[1]}/ (Ctrl+C ends it)", flush=True)
        uvicorn.Server(config).run(sockets=[listening])


def _application(models: Models, host: str, auth: tuple[str, str] | None, scratch: str) -> FastAPI:
    import gradio as gr
    from fastapi import FastAPI
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from smooth.edit.media import MOST_BYTES
    from smooth.studio import page
    from smooth.studio.desk import Desk

    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    if names := host_names(host):  # else any site could give its own name this machine's address, and read the page
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=names)
    gr.mount_gradio_app(
        app, page.build(Desk(models, scratch)), path="/", auth=auth, max_file_size=MOST_BYTES, show_error=False,
        theme=page.theme(), css=page.CSS, footer_links=[], run_history=False, enable_monitoring=False, pwa=False,
        ssr_mode=False, mcp_server=False,
    )  # fmt: skip
    return app
