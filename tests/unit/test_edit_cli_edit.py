"""The commands `smooth edit` and `smooth drag`; that their examples work is tested with those of the others."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from smooth.cli import app
from smooth.data.openmoji import Style, drawings, render
from smooth.edit import media
from tests.evaluated import write_adapter

QUICK = ["--steps", "3", "--null-text-steps", "0"]


def run(*words: str) -> str:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, result.stderr
    return result.stdout


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder with a picture and a mask that leaves its lower half free."""
    monkeypatch.chdir(tmp_path)
    (heart,) = (drawing for drawing in drawings() if drawing.caption == "red heart")
    Image.fromarray(render(heart, 64, Style.draw(heart.key, 2000))).save("heart.png")
    free = np.zeros((64, 64), np.uint8)
    free[32:] = 255
    Image.fromarray(free).save("mask.png")
    Path("words.png").write_text("no picture at all")


def pixels(path: str) -> np.ndarray:
    with Image.open(path) as opened:
        return np.asarray(opened.convert("RGB")).astype(int)


def again(path: str) -> None:
    """The command that a picture tells makes it anew, to the byte."""
    before = Path(path).read_bytes()
    told = run("show-params", path)
    Path(path).unlink()
    run(*shlex.split(told)[1:])
    assert Path(path).read_bytes() == before


def test_ratios_and_the_baseline_of_both_models_in_one_picture(tmp_path: Path) -> None:
    write_adapter("builtin:tiny", "adapter")
    run("edit", "heart.png", "red heart", "blue heart", "--model", "adapter", "--compare", "--ratio", "0", "--ratio",
        "1", "--sdedit", "0.7", "--out", "all.png", *QUICK)  # fmt: skip
    assert pixels("all.png").shape[0] > 4 * 64
    assert pixels("all.png").shape[1] > 3 * 64
    again("all.png")
    parameters, _ = media.read_parameters(Path("all.png"))
    assert (parameters["ratio"], parameters["sdedit"]) == ([0, 1], [0.7])


def test_one_ratio_is_the_edited_picture_alone() -> None:
    given, found = pixels("heart.png"), {}
    for ratio in ("0", "1"):
        run("edit", "heart.png", "red heart", "blue heart", "--ratio", ratio, "--out", f"{ratio}.png", *QUICK)
        found[ratio] = pixels(f"{ratio}.png")
        assert found[ratio].shape == given.shape
    red, _, blue = np.moveaxis(np.stack([found["0"], found["1"]])[:, 28:36, 28:36].mean(axis=(1, 2)), 1, 0)
    assert red[0] - blue[0] > red[1] - blue[1] + 50


def test_a_point_is_dragged_within_the_mask() -> None:
    words = ["drag", "heart.png", "red heart", "--move", "32,44:32,54", "--steps", "4", "--learning-rate", "0.05"]
    told = run(*words, "--iterations", "3", "--mask", "mask.png", "--out", "d.png")
    assert told.startswith("smooth: not all arrived after 3 iterations\n  (32, 44) came to (")
    assert pixels("d.png").shape == (64, 64, 3)
    again("d.png")
    parameters, _ = media.read_parameters(Path("d.png"))
    assert len(parameters["found"]["smooth"]["handles"]) == 4
    assert len(parameters["found"]["smooth"]["losses"]) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["edit", "words.png", "a", "b"], "words.png is no picture"),
        (["edit", "heart.png", "a", "b", "--ratio", "1.5"], "ratios=[1.5]: give one or more from 0 to 1"),
        (["edit", "heart.png", "a", "b", "--sdedit", "0.1"], "for one step"),
        (["edit", "heart.png", "a", "b", "--out", "e.gif"], "give a name that ends in .png"),
        (["drag", "heart.png", "a", "--move", "1,2"], "--move 1,2: give X,Y:X,Y, as 32,44:32,54"),
        (["drag", "heart.png", "a", "--move", "1,2:3,x"], "--move 1,2:3,x: give"),
        (["drag", "heart.png", "a", "--move", "1,2:64,3"], "target point (64, 3) is outside of the picture, 64 x 64"),
        (["drag", "heart.png", "a", "--move", "1,2:3,3", "--mask", "none.png"], "none.png: no such file"),
    ],
)
def test_a_user_s_mistake_is_one_line_and_exit_code_2(words: list[str], message: str) -> None:
    result = CliRunner().invoke(app, [*words, *(QUICK if words[0] == "edit" else ["--steps", "3"])])
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
