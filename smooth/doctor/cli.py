"""The command `smooth doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from smooth.config import RunConfig
    from smooth.doctor.finding import Finding

COLORS = {"ok": typer.colors.GREEN, "warning": typer.colors.YELLOW, "error": typer.colors.RED}
WIDTH = 24  # of the longest check's name


def doctor(
    preset: Annotated[str, typer.Option(help="What is to run: a preset's name, or the path of a .yaml file.")] = "tiny",
    override: Annotated[list[str] | None, typer.Option("--override", "-o", help="dotted.key=value")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Look whether this machine can run a preset, and tell how to mend what can't. Exit status 1: something must be.

    Nothing is changed. For example:

    smooth doctor --preset sd15-laion
    """
    import dataclasses
    import json

    from smooth.cli import FAILURE, load_config, reported

    with reported():
        findings = examine(load_config(preset, override))
        if as_json:
            print(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2, ensure_ascii=False))
        else:
            _print(findings)
        if any(finding.level == "error" for finding in findings):
            raise typer.Exit(FAILURE)


def examine(config: RunConfig) -> list[Finding]:
    """All checks, in the order in which one would mend."""
    from smooth.doctor import clock, machine, services, software, weights

    return [
        software.python(),
        software.packages(),
        software.backport(),
        *machine.disk(config),
        machine.memory(config),
        machine.shared_memory(),
        machine.open_files(),
        *machine.gpus(config),
        clock.clock(),
        weights.base(config),
        *weights.judges(config),
        *services.ports(),
        *services.health(),
        *services.credentials(),
    ]


def _print(findings: list[Finding]) -> None:
    for finding in findings:
        level = typer.style(f"{finding.level:<8}", fg=COLORS[finding.level])
        typer.echo(f"{level} {finding.check:<{WIDTH}} {finding.found}")
        if finding.mend:
            typer.echo(f"{'':<8} {'':<{WIDTH}} -> {finding.mend}")
    counts = {level: sum(finding.level == level for finding in findings) for level in COLORS}
    typer.echo(f"{counts['ok']} well, {counts['warning']} to know, {counts['error']} to mend")
