"""The command line: quick help, clear errors, exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from smooth import stages, store
from smooth.cli import app
from smooth.config import STAGES, RunConfig
from smooth.evaluate import networks

REMOTE = ["-o", "model.base=someone/some-model"]
HEAVY = ("torch", "ray", "mlflow", "diffusers", "transformers", "deepspeed", "prefect", "pandas", "numpy", "pydantic")


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom smooth.cli import app\n"
        "try: app(['--help'])\nexcept SystemExit: pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "stages" in result.stdout
    assert result.stdout.splitlines()[-1] == "[]"


def test_config_show_prints_the_resolved_config() -> None:
    result = CliRunner().invoke(app, ["config", "show", *REMOTE, "-o", "train.steps=7"])
    assert result.exit_code == 0
    assert RunConfig.parse(yaml.safe_load(result.stdout)) == RunConfig.load("tiny", [REMOTE[1], "train.steps=7"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["config", "show", "-o", "train.step=3"], "error: unknown key train.step; nearest is train.steps"),
        (["config", "show", "--preset", "tini"], "error: unknown preset 'tini'; nearest is tiny"),
        (["stage", "tain"], "error: unknown stage 'tain'; there are: ingest"),
        (["stage", "train", "--config", "none.yaml"], "error: --config none.yaml: no such file"),
        (["stage", "train", "--config", "none.yaml", "-o", "seed=1"], "takes no --override"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_stages_tells_what_would_be_reused(tmp_path: Path) -> None:
    options = [*REMOTE, "-o", f"storage.root={tmp_path}"]
    config = RunConfig.load("tiny", [REMOTE[1], f"storage.root={tmp_path}"])
    for stage in STAGES[:-1]:
        measured = {"networks": dict.fromkeys(networks.names(config.evaluate)), networks.PER_PROMPT: {}}
        store.write_manifest(config.stage_dir(stage), {"digest": "a", "ingest": "a", **measured})
    lines = CliRunner().invoke(app, ["stages", *options]).stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [[stage, config.fingerprint(stage)] for stage in STAGES]
    assert [line.split(maxsplit=2)[2].split("  ")[0] for line in lines] == ["complete"] * 4 + ["to do"]


def test_what_was_made_of_other_data_is_not_taken_for_new(tmp_path: Path) -> None:
    options = [*REMOTE, "-o", f"storage.root={tmp_path}"]
    config = RunConfig.load("tiny", [REMOTE[1], f"storage.root={tmp_path}"])
    for stage in STAGES:
        store.write_manifest(config.stage_dir(stage), {"digest": "b" if stage == "ingest" else "a", "ingest": "a"})
    lines = CliRunner().invoke(app, ["stages", *options]).stdout.splitlines()
    assert [line.split(maxsplit=2)[2].split("  ")[0] for line in lines] == [
        "complete",
        "to do",
        "stale",
        "stale",
        "stale",
    ]
    result = CliRunner().invoke(app, ["stage", "train", *options])
    assert result.exit_code == 2
    assert "set another seed" in result.stderr


def run_fake_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, package: str = ""
) -> tuple[int, str, str]:
    """Run the command with a stage whose module is ``body``; ``package`` is the name it believes to have."""
    (tmp_path / "fake_stage.py").write_text(f"__name__ = {package or 'fake_stage'!r}\n{body}")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "fake_stage", raising=False)
    monkeypatch.setitem(stages.MODULES, "train", "fake_stage")
    result = CliRunner().invoke(app, ["stage", "train", *REMOTE])
    return result.exit_code, result.stdout, result.stderr


def test_a_stage_prints_its_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = (
        "def run(config):\n    return {'fingerprint': 'abc', 'seconds': 1.25, 'summary': {'steps': config.train.steps}}"
    )
    steps = RunConfig.load("tiny").train.steps
    printed = f"train abc finished in 1.2 s\n  steps: {steps}\n"
    assert run_fake_stage(tmp_path, monkeypatch, body) == (0, printed, "")


def test_a_refusal_by_our_own_code_has_no_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, error = run_fake_stage(
        tmp_path, monkeypatch, "def run(config):\n    raise ValueError('turn the knob')", package="smooth.train.launch"
    )
    assert (code, error) == (2, "error: turn the knob\n")


def test_a_bug_keeps_its_traceback_and_ends_with_its_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, error = run_fake_stage(tmp_path, monkeypatch, "def run(config):\n    return int('seven')")
    assert code == 1
    assert "Traceback" in error
    assert error.splitlines()[-1] == "error: ValueError: invalid literal for int() with base 10: 'seven'"
