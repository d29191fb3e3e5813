"""The command `smooth registry`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

NOT_BY_GATE = 1

registry_app = typer.Typer(help="Look at the registered model.", no_args_is_help=True)


@registry_app.callback()
def registry() -> None:
    """Look at the registered model."""


@registry_app.command("status")
def status_command(
    model: Annotated[str, typer.Option(help="Name in the MLflow registry.")] = "smooth-diffusion",
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Tell what is in production, and whether it passed the gate. Exit status 1: it did not.

    For example:

        smooth registry status --json
    """
    from smooth.cli import reported
    from smooth.promotion import status
    from smooth.promotion.registry import Registry

    with reported():
        found = status.of(Registry(model).books())
        print(json.dumps(found.as_dict(), indent=2) if as_json else "\n".join(found.lines()))
        if not found.passed_gate:
            raise typer.Exit(NOT_BY_GATE)
