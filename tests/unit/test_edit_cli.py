"""The commands that make pictures: their examples, what they write, and pictures that tell how they were made."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from smooth import store
from smooth.cli import app
from smooth.edit import media
from tests.evaluated import write_adapter

QUICK = ["--steps", "2"]
REAL = ["--picture", "a.png", "--picture", "b.png"]


def commands() -> list[str]:
    """Those of this room."""
    found = ((command.name, command.callback) for command in app.registered_commands)
    return [str(name) for name, call in found if call is not None and call.__module__.startswith("smooth.edit.")]


def run(*words: str) -> str:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, result.stderr
    return result.stdout


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("adapter")
    write_adapter("builtin:tiny", str(folder))
    return str(folder)


def pixels(path: str) -> np.ndarray:
    with Image.open(path) as opened:
        return np.asarray(opened.convert("RGB"))


@pytest.mark.parametrize("name", commands())
def test_the_examples_of_the_help_work_when_pasted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")  # an example that is wrapped at this width can't be pasted
    lines = [line.strip() for line in run(name, "--help").splitlines()]
    examples = [shlex.split(line) for line in lines if line.startswith("smooth ")]
    assert any(example[1] == name for example in examples)
    for example in examples:
        run(*example[1:])
    written = [example[example.index("--out") + 1] for example in examples if "--out" in example]
    assert all(Path(path).stat().st_size > 100 for path in written)


def test_generate_interpolate_and_invert_are_there() -> None:
    assert {"generate", "interpolate", "invert", "show-params"} <= set(commands())


def again(path: str) -> None:
    """The command that a picture tells makes it anew, to the byte."""
    before = Path(path).read_bytes()
    told = run("show-params", path)
    Path(path).unlink()
    run(*shlex.split(told)[1:])
    assert Path(path).read_bytes() == before


def test_a_picture_s_own_command_makes_it_again(adapter: str) -> None:
    run("generate", "cat", "it's a \"heart\" — ♥", "--seed", "1", "--seed", "2", "--negative", "blue", "--out", "p.png",
        "--model", adapter, "--strength", "0.75", "--compare", *QUICK)  # fmt: skip
    assert sorted(str(path) for path in Path().glob("*.png")) == ["p-1.png", "p-2.png", "p-3.png", "p-4.png"]
    again("p-4.png")
    parameters, _ = media.read_parameters(Path("p-4.png"))
    assert parameters["prompts"] == ['it\'s a "heart" — ♥']
    assert (parameters["seed"], parameters["strength"], parameters["steps"]) == ([2], 0.75, 2)


def test_several_pictures_may_go_to_a_remote_folder() -> None:
    run("generate", "cat", "dog", "--out", "memory://bucket/p.png", *QUICK)
    assert all(store.exists(f"memory://bucket/p-{number}.png") for number in (1, 2))
    assert list(Path().iterdir()) == []


def test_the_printed_command_runs_in_a_shell() -> None:
    run("generate", "--out", "dash.png", *QUICK, "--", "-1 of everything; $HOME")
    before = Path("dash.png").read_bytes()
    told = run("show-params", "dash.png").strip()
    assert told.startswith("smooth generate ")
    Path("dash.png").unlink()
    program = shlex.join([sys.executable, "-m", "smooth"])
    subprocess.run(["/bin/sh", "-c", f"{program} {told.removeprefix('smooth ')}"], check=True, capture_output=True)
    assert Path("dash.png").read_bytes() == before


def test_a_strip_between_real_pictures_by_every_method() -> None:
    run("generate", "red heart", "grinning face", "--out", "end.png", "--steps", "3")
    real = ["--picture", "end-1.png", "--picture", "end-2.png", "--frames", "3", "--null-text-steps", "1"]
    strips = {}
    for method in ("noise", "vae", "anid"):
        out = f"{method}.png"
        run("interpolate", "red heart", "grinning face", *real, "--method", method, "--out", out, *QUICK)
        strips[method] = pixels(out)
        assert strips[method].shape == (64, 3 * 64 + 2 * media.GAP, 3)
    assert not np.array_equal(strips["noise"], strips["vae"])
    again("noise.png")
    parameters, _ = media.read_parameters(Path("noise.png"))
    assert parameters["inputs"]["end-1.png"] == store.sha256("end-1.png")
    assert len(parameters["found"]["smooth"]["distances"]) == 2


def test_comparisons_show_both(adapter: str) -> None:
    model = ["--model", adapter, "--compare", *QUICK]
    told = run("interpolate", "cat", *model, "--frames", "2", "--out", "both.png")
    assert [line.split(":")[0] for line in told.splitlines()] == ["base", "smooth", "both.png"]
    alone = run("interpolate", "cat", "--frames", "2", "--out", "alone.png", *QUICK)
    assert alone.splitlines()[0].replace("smooth", "base") == told.splitlines()[0]
    assert pixels("both.png").shape[0] > 2 * 64
    run("interpolate", "cat", *model, "--frames", "3", "--out", "both.gif")
    with Image.open("both.gif") as film:
        assert film.n_frames == 4
        assert film.width > 2 * 64
    run("invert", "alone.png", "cat", *model, "--null-text-steps", "1", "--out", "back.png")
    assert pixels("back.png").shape[0] > 2 * 64
    assert len(list(Path(".smooth/artifacts/inversions").iterdir())) == 2


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "cat\x1b]0;title\x07"],
        ["generate", "\u202etac"],
        ["stage", "train"],
        [],
    ],
)
def test_a_stranger_s_command_is_not_passed_on(words: list[str]) -> None:
    picture = np.zeros((16, 16, 3), np.uint8)
    Path("strange.png").write_bytes(media.png(picture, {}, ["smooth", *words]))
    result = CliRunner().invoke(app, ["show-params", "strange.png"])
    assert result.exit_code == 2
    assert "tells a command that makes no picture, or that hides a part of itself" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generate", "cat", "--out", "cat.jpg"], "--out cat.jpg: give a name that ends in .png"),
        (["generate", "cat", "--model", "none.ckpt"], "is a pickle"),
        (["generate", "cat", "--compare"], "--compare: builtin:tiny is a whole pipeline"),
        (["generate", "cat", "--strength", "0.5"], "strength=0.5: builtin:tiny is a pipeline with no LoRA"),
        (["generate", "cat", "--steps", "0"], "steps=0: give 1 to 1000"),
        (["interpolate", "a", "b", "c"], "3 prompts: give one or two"),
        (["interpolate", "a", "--picture", "a.png"], "1 --picture: give two"),
        (["interpolate", "a", "--frames", "1"], "frames=1: give 2 to 200"),
        (["interpolate", "a", "--method", "vae"], "--method vae goes between real pictures; give two of them"),
        (["interpolate", "a", *REAL, "--negative", "b"], "--negative is for generated pictures"),
        (["interpolate", "a", *REAL, "--seed", "1"], "--seed is for generated pictures, and one for --method anid"),
        (
            ["interpolate", "a", *REAL, "--method", "anid", "--seed", "1", "--seed", "2"],
            "--seed is for generated pictures, and one for --method anid",
        ),
        (["invert", "words.png", "cat"], "words.png is no picture; give a whole PNG"),
        (["invert", "none.png", "cat"], "none.png: no such file"),
        (["show-params", "words.png"], "words.png tells no parameters"),
    ],
)
def test_a_user_s_mistake_is_one_line_and_exit_code_2(words: list[str], message: str) -> None:
    Path("words.png").write_text("no picture at all")
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
