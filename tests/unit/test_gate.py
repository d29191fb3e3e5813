"""The gate's lines by their figures, files that a model may not bring, and books that say where a hand was."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prefect.exceptions import ParameterTypeError

from flows.promote import promote
from smooth.evaluate.metric import Metric
from smooth.evaluate.networks import EFFICIENTNET, FID
from smooth.evaluate.protocol import Protocol
from smooth.evaluate.smoothness import istd_difference, istd_of
from smooth.promotion import PromotionError, gate, records, status
from smooth.promotion.drawing import PYFUNC, Drawn, check_files
from smooth.promotion.evidence import Evidence, Measured
from smooth.promotion.gate import GateError, Line, Margins
from smooth.promotion.records import Books, Record

KID = f"KID ({EFFICIENTNET}) x1000"
PROTOCOL = Protocol(
    prompts=("a", "b", "c", "d"), picture_prompts=(), frames=5, strips=1, seed=3, image_size=64, steps=2,
    guidance=1.0, base="base", data="data",
)  # fmt: skip
DISTANCES = np.random.default_rng(0).uniform(1, 5, (4, 4))
DRAWN = Drawn(b"PNG", "64 x 64 pixels", "a picture", "base")


def measured(name: str, scale: float, **others: float | None) -> Measured:
    """A model whose neighbour distances are so many times the base's."""
    metrics = [istd_of(PROTOCOL, "smooth", scale * DISTANCES)]
    metrics += [Metric(each, "smooth", value, None, None, 9, {"n": 9}) for each, value in others.items()]
    named = {metric.name.replace("KID", KID).replace("FID", FID) if metric.name in ("KID", "FID") else metric.name:
             metric for metric in metrics}  # fmt: skip
    renamed = {key: replace(metric, name=key) for key, metric in named.items()}
    return Measured(name, renamed, tuple((scale * DISTANCES).std(axis=1)))


def candidate(of: Measured, *missing: str) -> Evidence:
    return Evidence("2", of, measured("its base", 1.0), missing, {})


def judged(ours: Measured, theirs: Measured, drawn: Drawn = DRAWN, *missing: str) -> dict[str, Line]:
    lines = gate.judge(candidate(ours, *missing), theirs, Margins(), drawn)
    assert gate.table(lines).count("\n") == 1 + len(lines)
    return {line.name: line for line in lines}


def test_the_interval_is_the_evaluations_own() -> None:
    ours, theirs = measured("version 2", 0.5, KID=100.0), measured("version 1", 1.0, KID=100.0)
    lines = judged(ours, theirs)
    known = istd_difference(PROTOCOL, DISTANCES, 0.5 * DISTANCES)
    assert lines["ISTD"].figure == f"{known.value:+.4g} [{known.low:+.4g}, {known.high:+.4g}]"
    assert {name: line.passed for name, line in lines.items()} == {
        "protocol": True, "ISTD": True, KID: True, "CLIP score": None, "lineage": True, "load": True,
    }  # fmt: skip
    gate.check(list(lines.values()))
    swapped = judged(theirs, ours)
    known = istd_difference(PROTOCOL, 0.5 * DISTANCES, DISTANCES)
    assert (
        swapped["ISTD"].words == f"not shown to be smoother than version 2: the interval ends {known.high:.4g} above 0"
    )
    with pytest.raises(GateError, match="1 of 6 lines failed, nothing was changed: ISTD: not shown"):
        gate.check(list(swapped.values()))


@pytest.mark.parametrize(
    ("ours", "theirs", "passed"),
    [(110.0, 100.0, True), (110.1, 100.0, False), (-9.1, -10.0, True), (-8.9, -10.0, False), (0.0, 0.0, True)],
)
def test_quality_may_be_worse_by_its_margin_even_below_zero(ours: float, theirs: float, passed: bool) -> None:
    line = judged(measured("version 2", 0.5, KID=ours), measured("version 1", 1.0, KID=theirs))[KID]
    assert line.passed is passed
    if not passed:
        assert line.words.endswith("0.1 over the limit")


def test_fid_is_judged_where_both_have_a_sound_one() -> None:
    ours, theirs = (measured(f"version {n}", s, KID=100.0, FID=f) for n, s, f in ((2, 0.5, 30.0), (1, 1.0, 20.0)))
    line = judged(ours, theirs)[FID]
    assert (line.passed, line.margin, line.words) == (
        False, "at most 22, 1.1 times 20", "worse: +10 against version 1, 8 over the limit",
    )  # fmt: skip
    biased = {FID: replace(theirs.metrics[FID], note="biased upwards")}
    assert judged(ours, replace(theirs, metrics={**theirs.metrics, **biased}))[KID].passed
    none = judged(measured("version 2", 0.5, KID=None), theirs)["quality"]
    assert (none.passed, none.figure) == (False, "none")


def test_clip_is_needed_where_what_it_replaces_has_it() -> None:
    with_clip, without = ({"KID": 1.0, "CLIP score": value} for value in (27.0, None))
    old, new = measured("version 1", 1.0, **with_clip), measured("version 2", 0.5, **without)
    assert judged(new, old)["CLIP score"].passed is False
    assert (
        judged(measured("version 2", 0.5, **with_clip), measured("version 1", 1.0, **without))["CLIP score"].passed
        is None
    )
    worse = measured("version 2", 0.5, KID=1.0, **{"CLIP score": 26.25})
    assert judged(worse, old)["CLIP score"].words == "-0.75 against 27 of version 1, 0.25 below the limit"


def test_other_stamps_and_missing_evaluations_close_the_gate() -> None:
    ours, theirs = measured("version 2", 0.5, KID=100.0), measured("version 1", 1.0, KID=100.0)
    other = {**theirs.metrics, KID: replace(theirs.metrics[KID], stamp={"n": 10})}
    lines = judged(ours, replace(theirs, metrics=other))
    assert (lines["protocol"].passed, lines["ISTD"].passed, lines[KID].passed) == (False, True, False)
    assert "n: 9 against 10" in lines["protocol"].words
    nothing = judged(ours, Measured("version 1", {}, ()))
    assert [nothing[name].passed for name in ("protocol", "ISTD", "quality")] == [False] * 3
    assert "the registry has no ISTD of version 1; evaluate and register it again" in nothing["protocol"].words
    assert judged(ours, theirs, DRAWN, "tag x")["lineage"].words == "missing: tag x"
    assert judged(ours, theirs, replace(DRAWN, base_identity="another"))["lineage"].passed is False
    assert judged(ours, theirs, Drawn(None, "nothing", "KeyError: x", None))["load"].words == "KeyError: x"


def test_margins_are_checked() -> None:
    for wrong in ({"quality": 0.9}, {"quality": float("nan")}, {"clip": -1.0}):
        with pytest.raises(PromotionError, match="quality_margin="):
            Margins(**wrong)


LORA = "adapter_weights/pytorch_lora_weights.safetensors"


@pytest.mark.parametrize(
    ("added", "changed", "says"),
    [
        ("adapter_weights/extra.pkl", {}, "weights must be safetensors: adapter_weights/extra.pkl"),
        ("adapter_weights/pytorch_lora_weights.BIN", {}, "weights must be safetensors"),
        ("code/evil.py", {}, "did not put there: code/evil.py"),
        ("code/numpy.zip", {}, "did not put there: code/numpy.zip"),
        ("adapter_weights/unet.py", {}, "did not put there: adapter_weights/unet.py"),
        (None, {"loader_module": "mlflow.pyfunc.model"}, "did not put there: loader_module: mlflow.pyfunc.model"),
        (None, {"code": "adapter_weights/strips.png"}, "did not put there: code: adapter_weights/strips.png"),
        (None, {"code": "code/../adapter_weights"}, "did not put there: code: code/../adapter_weights"),
        (None, {"code": None}, "did not put there: code: None"),
        (None, {"model_code_path": "x.py", "data": "y"}, "did not put there: data: y, model_code_path: x.py"),
    ],
)
def test_a_model_brings_no_pickle_and_no_program(
    tmp_path: Path, added: str | None, changed: dict[str, Any], says: str
) -> None:
    pyfunc = {"code": "code", "env": {}, "loader_module": "registry_pyfunc", "python_version": "3.11.7"}
    described: dict[str, Any] = {
        "flavors": {"python_function": pyfunc, "diffusers": {"code": "code", "adapter_weights": "adapter_weights"}}
    }
    for name in ("code/registry_pyfunc.py", LORA, "adapter_weights/strips.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    check_files(tmp_path, described)
    if added is not None:
        (tmp_path / added).touch()
    pyfunc.update(changed)
    with pytest.raises(PromotionError, match=re.escape(says)):
        check_files(tmp_path, described)


@pytest.mark.parametrize("weights", ["..", "/", "adapter"])
def test_a_models_weights_are_its_own(tmp_path: Path, weights: str) -> None:
    (tmp_path / "adapter_weights").mkdir()
    (tmp_path / LORA).touch()
    flavors = {"python_function": dict(PYFUNC), "diffusers": {"adapter_weights": weights}}
    with pytest.raises(PromotionError, match="it holds no safetensors in"):
        check_files(tmp_path, {"flavors": flavors})


def test_an_approval_waits_for_a_second_at_least() -> None:
    with pytest.raises(ParameterTypeError, match="approval_timeout_s"):
        promote.validate_parameters({"approval_timeout_s": 0, "approve": True})


def record(number: int, after: int, kind: records.Kind = "promotion", previous: str | None = None) -> Record:
    return Record(f"id{number}", kind, f"id{after}" if after else "", previous, "ana", "now", "")


def test_the_books_tell_a_hand_from_a_move_that_was_broken_off() -> None:
    """Version 2 was promoted twice, and rolled back from in between."""
    first, second = record(1, 0), record(2, 1, previous="1")
    back, again = record(3, 2, "rollback", "2"), record(4, 3, previous="1")
    histories = {"1": (first, back), "2": (second, again), "3": ()}
    done = Books("m", {"production": "2", "previous": "1"}, "id4", histories)
    assert (done.move, done.previous, done.unfinished()) == (again, "1", [])
    before_commit = replace(done, aliases={"production": "1"}, head="id3")
    assert (before_commit.move, before_commit.previous, before_commit.broken_off) == (back, None, ["2"])
    assert before_commit.promotion("2") == second
    assert status.of(before_commit).passed_gate
    before_head = replace(done, aliases={"production": "2"}, head="id3")
    assert (before_head.move, before_head.previous, len(before_head.unfinished())) == (again, "1", 2)
    for number in ("1", "3"):
        by_hand = replace(done, aliases={"production": number, "previous": "1"})
        assert (by_hand.is_by_hand, by_hand.previous, by_hand.unfinished()) == (True, "2", [])
        assert not status.of(by_hand).passed_gate
    assert records.from_tag("2", records.to_tag((second, again))) == (second, again)
    for text in ("[{}]", "{", '[{"id": 1}]'):
        with pytest.raises(PromotionError, match="version 7: its tag of promotions"):
            records.from_tag("7", text)
