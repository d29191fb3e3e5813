"""A sweep's arms, its figures over seeds against scipy, the front, and what is recommended when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from smooth.config import ConfigError
from smooth.evaluate.compare import ISTD, KID
from smooth.sweep import conclude, figures, picture
from smooth.sweep.arms import BASE, CONTROL, Arm, arms


def planned(**changes: Any) -> list[Arm]:
    asked = {"weights": (0.1, 10.0), "ranks": (), "every": (), "also": (), "seeds": (1, 2)} | changes
    return arms("tiny", ["train.steps=10"], **asked)


def metrics(istd: float, kid: float, base: tuple[float, float] = (3.0, 100.0)) -> list[dict[str, Any]]:
    values = {"base": dict(zip((ISTD, KID), base, strict=True)), "smooth": {ISTD: istd, KID: kid}}
    return [
        {"name": name, "model": model, "value": value}
        for model, found in values.items()
        for name, value in found.items()
    ]


def test_the_grid_is_every_combination_on_every_seed_and_the_control() -> None:
    found = planned(ranks=(4, 16), every=(2,), also=("train.method=full",))
    assert [arm.name for arm in found] == [
        CONTROL,
        "λ = 0.1, rank = 4, k = 2",
        "λ = 0.1, rank = 16, k = 2",
        "λ = 10, rank = 4, k = 2",
        "λ = 10, rank = 16, k = 2",
        "train.method=full",
    ]
    train = found[2].configs[1].train
    assert (train.variation.weight, train.lora.rank, train.lora.alpha, train.variation.every) == (0.1, 16, 16, 2)
    assert [config.seed for config in found[0].configs] == [1, 2]
    assert all(config.train.steps == 10 for arm in found for config in arm.configs)
    assert found[0].configs[0].train.variation.weight == 0


def test_what_trains_the_same_is_trained_once() -> None:
    """The preset has λ = 100 and rank 8."""
    found = planned(weights=(0.0, 100.0), ranks=(8,), also=("train.variation.weight=100", "train.lora.rank=8"))
    assert [arm.name for arm in found] == [CONTROL, "λ = 100, rank = 8"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": ()}, r"seeds=\[\]: give one or more"),
        ({"seeds": (1, 1)}, r"seeds=\[1, 1\]: give one or more, each once"),
        ({"ranks": (0,)}, r"train\.lora\.rank"),
        ({"weights": (0.0, -1.0)}, r"train\.variation\.weight"),
        ({"also": ("train.step=3",)}, r"unknown key train\.step"),
        ({"also": ("train.steps=3 evaluate.steps=7",)}, r"changes more than train\.\*"),
    ],
)
def test_what_can_not_be_trained_is_refused_at_once(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        planned(**changes)


def test_figures_over_seeds_are_students_and_ratios_go_seed_by_seed() -> None:
    control, arm = [(2.0, 100.0), (4.0, 300.0), (3.0, 90.0)], [(1.0, 110.0), (3.0, 290.0), (1.2, 99.0)]
    found = figures.points({CONTROL: [metrics(*v) for v in control], "a": [metrics(*v) for v in arm]})
    assert [point.name for point in found] == [BASE, CONTROL, "a"]
    istd = found[2].values[ISTD]
    low, high = stats.t.interval(0.95, 2, np.mean([1, 3, 1.2]), stats.sem([1, 3, 1.2]))
    assert (istd.mean, istd.low, istd.high) == pytest.approx((np.mean([1, 3, 1.2]), low, high))
    ratio = found[2].ratios[ISTD]
    assert ratio.each == pytest.approx((0.5, 0.75, 0.4))
    logs = np.log([0.5, 0.75, 0.4])
    low, high = np.exp(stats.t.interval(0.95, 2, logs.mean(), stats.sem(logs)))
    assert (ratio.mean, ratio.low, ratio.high) == pytest.approx((stats.gmean([0.5, 0.75, 0.4]), low, high))
    assert found[1].ratios[ISTD].mean == 1


def test_one_seed_has_no_interval() -> None:
    found = figures.points({CONTROL: [metrics(2, 100)], "a": [metrics(1, 105)]})
    assert found[2].values[ISTD].low is None
    best, why = figures.recommend(found, 1.1)
    assert best is not None
    assert "One seed tells nothing of the spread" in why


def test_the_front_is_what_no_other_beats_in_both() -> None:
    """Against the definition."""
    drawn = np.random.default_rng(0).uniform(1, 2, (40, 2))
    found = figures.points({CONTROL: [metrics(2, 2)]} | {str(n): [metrics(*v)] for n, v in enumerate(drawn)})[2:]
    unbeaten = {str(n) for n, v in enumerate(drawn) if not any((other < v).all() for other in drawn)}
    assert {point.name for point in figures.front(found)} == unbeaten


def test_the_smoothest_within_the_margin_is_recommended() -> None:
    found = figures.points(
        {
            CONTROL: [metrics(2, 100)],
            "good": [metrics(1.2, 109)],
            "safe": [metrics(1.6, 90)],
            "broken": [metrics(0.2, 300)],
        }
    )
    best, why = figures.recommend(found, 1.1)
    assert best is found[2]
    assert "0.60 of the control's" in why
    assert "2 of 3 arms" in why
    best, _ = figures.recommend(found, 1.0)
    assert best is found[3]
    best, why = figures.recommend(found, 0.5)
    assert best is None
    assert "Nearest in KID is safe with 0.90 at 0.80" in why


def test_a_kid_below_zero_has_no_ratio_and_is_not_recommended() -> None:
    """It is unbiased, so it can be."""
    found = figures.points({CONTROL: [metrics(2, 100)], "a": [metrics(1, -1)], "b": [metrics(1.5, 100)]})
    best, _ = figures.recommend(found, 1.1)
    assert best is found[3]
    assert KID not in found[2].ratios
    assert " | – | " in figures.table(found)


def test_without_a_control_it_is_told_what_failed() -> None:
    failed = {CONTROL: "no MLflow run", "λ = 10": "out of memory"}
    with pytest.raises(ValueError, match=r"read against the control.*control: no MLflow run; λ = 10: out of memory\."):
        conclude.conclude(planned(), failed, 1.1)


def test_the_table_has_a_row_an_arm_and_the_picture_is_drawn(tmp_path: Path) -> None:
    found = figures.points({CONTROL: [metrics(2, 100), metrics(3, 90)], "a": [metrics(1, 110), metrics(2, 80)]})
    rows = figures.table(found).splitlines()
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows[2:]] == [BASE, CONTROL, "a"]
    assert "(1, 2)" in rows[4]
    path = str(tmp_path / "pareto.png")
    picture.draw(path, found, found[2], 1.1)
    with Image.open(path) as drawn:
        assert drawn.width > 800
