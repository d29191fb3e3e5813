"""Every command's help has an example that works when pasted."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from smooth.cli import app

ROOT: Any = typer.main.get_command(app)
EXIT_CODES = {"doctor": (0, 1)}  # 1: this machine can't run the example's preset
# Examples that are only parsed here, and why.
PARSED = {
    "stage": "fetches the built-in list for minutes; the chain's tests run each stage",
    "ingest retry": "needs a finished ingest; tests/integration/test_retry.py has one",
    "latents verify": "needs finished latents; tests/integration/test_latents.py has them",
    "latents repair": "likewise",
    "evaluate": "needs finished data and a registered model; tests/integration/test_evaluate.py runs the command",
    "export": "needs a registered model; tests/integration/test_registry.py runs this very example",
    "registry status": "needs a registry; tests/integration/test_promotion.py runs the command",
    "serve": "serves until it is interrupted; tests/integration/test_serving.py does",
    "studio": "likewise, tests/integration/test_studio.py",
    "pretrain": "trains for half an hour; tests/unit/test_pretrain.py trains a little",
    **dict.fromkeys(("generate", "interpolate", "invert", "edit", "drag", "show-params"), "run by test_edit_cli.py"),
}


def found(group: Any = ROOT, path: tuple[str, ...] = ()) -> Iterator[str]:
    """Commands that do something, also groups that do it without a command of theirs."""
    for name, command in group.commands.items():
        if not hasattr(command, "commands"):
            yield " ".join((*path, name))
            continue
        if command.invoke_without_command:
            yield " ".join((*path, name))
        yield from found(command, (*path, name))


COMMANDS = sorted(found())


def examples(name: str) -> list[list[str]]:
    """Words of the help's lines that can be pasted; one that is wrapped at 80 columns can't be."""
    result = CliRunner().invoke(app, [*name.split(), "--help"], env={"COLUMNS": "80"})
    return [shlex.split(line) for line in map(str.strip, result.stdout.splitlines()) if line.startswith("smooth ")]


def parsed(words: list[str]) -> str:
    """The command of a line, whose options and arguments are there; nothing is run."""
    command, path, context = ROOT, words[:1], None
    rest = words[1:]
    while True:
        context = command.make_context(path[-1], list(rest), parent=context)
        rest = [*context._protected_args, *context.args] if hasattr(command, "commands") else []
        if not rest:
            return " ".join(path[1:])
        name, command, rest = command.resolve_command(context, rest)
        path.append(name)


def test_what_is_only_parsed_is_a_command() -> None:
    assert PARSED.keys() <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_that_it_understands(name: str) -> None:
    assert name in [parsed(words) for words in examples(name)]


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in PARSED])
def test_quick_examples_work_when_pasted(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words in examples(name):
        result = CliRunner().invoke(app, words[1:])
        assert result.exit_code in EXIT_CODES.get(name, (0,)), result.output
        assert result.stdout
