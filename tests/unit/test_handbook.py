"""Each command that a README tells exists as it is written: targets, variables, subcommands, deployments, modules."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer
import yaml
from typer.core import TyperGroup

from infra.local.layout import PROJECT
from smooth.cli import app
from smooth.config import RunConfig

UsageError = typer.BadParameter.__mro__[1]  # of the click that typer brings
MAKEFILE = (PROJECT / "Makefile").read_text()
PROGRAMS = ("make", "smooth", ".venv/bin/smooth", "prefect", ".venv/bin/prefect", "python", ".venv/bin/python")
ASSIGNMENT = re.compile(r"([A-Z][A-Z0-9_]*)=(.*)", re.DOTALL)
# What another checkout, machine or person brings.
BROUGHT = {"OMP_NUM_THREADS", "HF_HUB_OFFLINE", "AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command in a README's indented lines, variables before it included."""
    for line in re.sub(r" *\\\n *", " ", text).splitlines():
        if not line.startswith("    "):
            continue
        first = re.sub(r"^([A-Z][A-Z0-9_]*=\S* )*", "", line.strip()).split(" ")[0]
        if first in PROGRAMS:
            yield from split(line)


def split(line: str) -> Iterator[list[str]]:
    """A line may hold several, one after the other."""
    words = shlex.split(line, comments=True)
    begin = 0
    for end in [*(place for place, word in enumerate(words) if word in ("&&", "||", "|", ";")), len(words)]:
        yield words[begin:end]
        begin = end + 1


def readmes() -> list[list[str]]:
    # The parameters of a deployment go over several lines, within quotes.
    texts = [(PROJECT / name).read_text() for name in ("README.md", "infra/README.md")]
    lists = re.compile(r"'(overrides|also)=\[[^']*\]'")
    joined = [lists.sub(lambda match: match[0].replace("\n", " "), text) for text in texts]
    return [words for text in joined for words in commands(text)]


COMMANDS = readmes()


def sources() -> str:
    files = [*PROJECT.glob("infra/**/*.py"), *PROJECT.glob("smooth/**/*.py"), *PROJECT.glob("flows/*.py")]
    files += [*PROJECT.glob("infra/*.yaml"), *PROJECT.glob("infra/*.sh"), PROJECT / "Makefile"]
    return "\n".join(file.read_text() for file in files)


def faults(words: list[str]) -> list[str]:
    """What of a command isn't there."""
    found = []
    variables = {}
    while match := ASSIGNMENT.fullmatch(words[0]):
        variables[match[1]] = match[2]
        words = words[1:]
    name = words[0].rpartition("/")[2]
    if name == "make":
        given = [ASSIGNMENT.fullmatch(word) for word in words[1:]]
        variables |= {match[1]: match[2] for match in given if match}
        targets = [word for word, match in zip(words[1:], given, strict=True) if not match]
        found += [f"no target {target}" for target in targets if not re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)]
    if name == "smooth":
        found += of_the_command_line(words[1:])
    if name == "prefect" and words[1:3] == ["deployment", "run"]:
        found += of_a_deployment(words[3], words[4:])
    if name == "python" and words[1] == "-m" and find_spec(words[2]) is None:
        found.append(f"no module {words[2]}")
    return found + [f"nobody reads {one}" for one in variables.keys() - BROUGHT if not is_read(one)]


def is_read(variable: str) -> bool:
    """By the Makefile, or where it is one of Smooth's, by any program."""
    text = sources() if variable.startswith("SMOOTH_") else MAKEFILE
    return re.search(rf"[\"'${{(]{variable}\b", text) is not None


def of_the_command_line(words: list[str]) -> list[str]:
    """Parsed as it would be, without being run."""
    command = typer.main.get_command(app)
    while isinstance(command, TyperGroup) and words and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
    if isinstance(command, TyperGroup) and words and not words[0].startswith("-"):
        return [f"no subcommand {words[0]}"]
    try:
        command.make_context(command.name, list(words))
    except UsageError as error:
        return [error.format_message()]
    return []


def of_a_deployment(name: str, words: list[str]) -> list[str]:
    flow, _, deployment = name.partition("/")
    for entry in yaml.safe_load((PROJECT / "infra" / "prefect.yaml").read_text())["deployments"]:
        path, _, function = entry["entrypoint"].partition(":")
        parameters, known_as = flow_of(PROJECT / path, function)
        if (known_as, entry["name"]) == (flow, deployment):
            given = dict(words[place + 1].split("=", 1) for place, word in enumerate(words) if word == "--param")
            overrides = json.loads(given.get("overrides", "[]"))
            if "preset" not in given or not given["preset"].startswith("sd"):
                RunConfig.load("tiny", overrides)
            return [f"{name} takes no {key}" for key in given.keys() - parameters]
    return [f"no deployment {name}"]


def flow_of(path: Path, function: str) -> tuple[set[str], str]:
    """Parameters of a flow's function, and the name that Prefect knows it by."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and node.name == function:
            (call,) = (
                one for one in node.decorator_list if isinstance(one, ast.Call) and ast.unparse(one.func) == "flow"
            )
            (given,) = (keyword.value for keyword in call.keywords if keyword.arg == "name")
            assert isinstance(given, ast.Constant)
            return {argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)}, str(given.value)
    raise AssertionError(f"{path} has no flow {function}")


def test_the_readmes_hold_commands_of_each_kind() -> None:
    kinds = {word.rpartition("/")[2] for words in COMMANDS for word in words[:2]}
    assert {"make", "smooth", "prefect", "python"} <= kinds
    assert len(COMMANDS) > 25


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words)[:60])
def test_each_command_exists(words: list[str]) -> None:
    assert faults(words) == []


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("make cluster-upp", "no target cluster-upp"),
        ("make backup FOLDER=x", "nobody reads FOLDER"),
        ("SMOOTH_NO_SUCH_PORT=1 make cluster-up", "nobody reads SMOOTH_NO_SUCH_PORT"),
        ("smooth genrate heart", "no subcommand genrate"),
        ("smooth doctor --present tiny", "No such option"),
        (".venv/bin/prefect deployment run smooth-train/ful", "no deployment smooth-train/ful"),
        (".venv/bin/prefect deployment run smooth-train/full --param presets=tiny", "takes no presets"),
        ("python -m infra.backups", "no module infra.backups"),
    ],
)
def test_a_command_that_does_not_exist_is_noticed(line: str, fault: str) -> None:
    (found,) = faults(shlex.split(line))
    assert fault in found
