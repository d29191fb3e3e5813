"""The command `smooth studio`."""

from __future__ import annotations

import tempfile
from typing import Annotated

import typer

from smooth.edit.options import BUILTIN, BaseOption

PORT = 7860


def studio(
    model: Annotated[
        list[str] | None,
        typer.Option("--model", help="To offer beside the built-in base and the registry's; give more for more."),
    ] = None,
    base: BaseOption = BUILTIN,
    host: Annotated[str, typer.Option("--host", help="To listen on; beyond loopback only with --auth.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 is any free one.")] = PORT,
    auth: Annotated[str | None, typer.Option("--auth", help="A file whose first line is user:password.")] = None,
) -> None:
    """Open a web page to generate, interpolate, invert, edit and drag, base beside smooth.

    For example:

        smooth studio --port 7861
    """
    from smooth.cli import reported

    with reported(), tempfile.TemporaryDirectory(prefix="smooth-studio-") as scratch:
        from smooth.studio import server

        known = server.read_auth(host, auth)
        try:
            server.serve([*(model or []), BUILTIN], base, host, port, known, scratch)
        except ModuleNotFoundError as error:
            if error.name != "gradio":
                raise
            raise ValueError("the studio needs the package gradio: pip install 'smooth[studio]'") from error
