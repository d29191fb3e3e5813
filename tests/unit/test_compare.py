"""From measurements to metrics: what is told of each model, under which names and stamps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from smooth.evaluate import networks
from smooth.evaluate.compare import metric_key, metrics_of, summary_of
from smooth.evaluate.frechet import BiasWarning, gaussian_distance
from smooth.evaluate.manifold import manifold
from smooth.evaluate.metric import Metric, StampError
from smooth.evaluate.perceptual import PerceptualNetwork
from tests.protocols import protocol

OWN = networks.efficientnet(64)
PROTOCOL = protocol(
    prompts=("red heart", "a cat", "a hat", "a dog"), picture_prompts=("a dog",) * 20, frames=4, networks=(OWN,)
)


@dataclass(frozen=True)
class Found:
    """Of four prompts and twenty pictures, from random numbers."""

    distances: np.ndarray
    spreads: np.ndarray
    features: list[np.ndarray]
    perceptual: np.ndarray | None = None
    path_lengths: Sequence[np.ndarray] = ()


def found(seed: int) -> Found:
    rng = np.random.default_rng(seed)
    return Found(rng.uniform(1, 2, (4, 3)), rng.uniform(3, 4, 4), [rng.standard_normal((20, 8)).astype(np.float32)])


@pytest.fixture(scope="module")
def metrics() -> dict[tuple[str, str], Metric]:
    reference = [np.random.default_rng(2).standard_normal((20, 8)).astype(np.float32)]
    return {(metric.name, metric.model): metric for metric in metrics_of(PROTOCOL, found(0), found(1), reference)}


def test_diversity_stands_beside_istd(metrics: dict[tuple[str, str], Metric]) -> None:
    metric = metrics["sample diversity", "smooth"]
    spread = found(1).spreads
    assert metric.value == pytest.approx(np.sqrt(2 * spread.sum() / 3))
    assert metric.low is not None
    assert metric.high is not None
    assert metric.low < metric.value < metric.high
    assert metric_key(metric) == "evaluate/sample_diversity_smooth"
    assert metric.stamp["diversity"] == "RMS of L2 over pairs of prompts at the same frame"
    summary = summary_of(list(metrics.values()), found(0).distances, found(1).distances, 7)
    assert summary["sample diversity smooth"] == round(metric.value, 4)


def test_lpips_istd_is_listed_with_what_it_needs_and_told_where_its_network_is(
    metrics: dict[tuple[str, str], Metric], tmp_path: Path
) -> None:
    assert metrics["LPIPS-ISTD", "smooth"].value is None
    assert "alexnet" in metrics["LPIPS-ISTD", "smooth"].note
    torch.save(torchvision.models.alexnet(weights=None).state_dict(), tmp_path / "alexnet.pth")
    network = PerceptualNetwork(str(tmp_path / "alexnet.pth"))
    lengths = np.random.default_rng(3).uniform(1, 2, (2, 2, 200))
    both = [
        replace(found(seed), perceptual=found(seed + 5).distances, path_lengths=tuple(lengths[seed])) for seed in (0, 1)
    ]
    asked = replace(PROTOCOL, path_lengths=200)
    told = {(m.name, m.model): m for m in metrics_of(asked, *both, found(2).features, network=network)}
    for number, (name, stamp) in enumerate(
        {"PPL (pixels)": "squared L2 over all pixels", "PPL (LPIPS)": str(network.stamp["distance"])}.items()
    ):
        base, smooth = lengths[:, number]
        kept = [(np.sort(x)[1] <= x) & (x <= np.sort(x)[-2]) for x in (base, smooth)]  # all but the two extremes
        assert (told[name, "base"].value, told[name, "base"].n) == (pytest.approx(base[kept[0]].mean()), 198)
        difference, shared = told[name, "smooth - base"], kept[0] & kept[1]
        assert (difference.value, difference.n) == (pytest.approx((smooth - base)[shared].mean()), shared.sum())
        assert difference.low < difference.value < difference.high  # type: ignore[operator]
        assert (difference.stamp["epsilon"], difference.stamp["distance"]) == (1e-3, stamp)
        assert metric_key(difference) == f"evaluate/{name[:-1].replace(' (', '_').lower()}_difference"
    told_without = {(m.name, m.model): m for m in metrics_of(asked, *both, found(2).features)}
    assert "alexnet" in told_without["PPL (LPIPS)", "smooth"].note
    assert told_without["PPL (pixels)", "smooth"] == told["PPL (pixels)", "smooth"]
    metric = told["LPIPS-ISTD", "smooth"]
    assert metric.value == pytest.approx(found(6).distances.std(axis=1).mean())
    assert metric.stamp["weights"] == network.sha256


def test_each_value_has_its_own_key_and_compares_with_the_base(metrics: dict[tuple[str, str], Metric]) -> None:
    valued = [metric for metric in metrics.values() if metric.value is not None]
    assert len({metric_key(metric) for metric in valued}) == len(valued)
    for metric in valued:
        if metric.model == "smooth":
            metric.compare(metrics[metric.name, "base"])
            with pytest.raises(StampError, match="steps"):
                metric.compare(replace(metric, stamp={**metric.stamp, "steps": 50}))


def test_precision_and_its_kin_carry_their_k_and_interval(metrics: dict[tuple[str, str], Metric]) -> None:
    reference = np.random.default_rng(2).standard_normal((20, 8)).astype(np.float32)
    parts = manifold(found(1).features[0], reference)
    for name, k in {"precision": 3, "recall": 3, "density": 5, "coverage": 5}.items():
        metric = metrics[f"{name} (EfficientNet-Lite0)", "smooth"]
        assert metric.value == pytest.approx(getattr(parts, name).mean())
        assert metric.low is not None
        assert metric.high is not None
        assert metric.low <= metric.value <= metric.high
        assert (metric.stamp["k"], metric.stamp["features"], metric.n) == (k, "EfficientNet-Lite0", 20)
        assert metric_key(metric) == f"evaluate/{name}_efficientnet_lite0_smooth"


def test_keys_of_mlflow_stay(metrics: dict[tuple[str, str], Metric]) -> None:
    keys = {metric_key(metric) for metric in metrics.values()}
    assert keys >= {
        "evaluate/istd_base",
        "evaluate/istd_difference",
        "evaluate/neighbour_distance_smooth",
        "evaluate/variation_coefficient_smooth",
        "evaluate/kid_efficientnet_lite0_x1000_smooth",
        "evaluate/frechet_efficientnet_lite0_base",
    }


def test_inceptions_features_follow_and_give_fid(metrics: dict[tuple[str, str], Metric]) -> None:
    assert "give its path as evaluate.inception_weights" in metrics[networks.FID, "smooth"].text()
    rng = np.random.default_rng(5)
    sets = [[rng.standard_normal((20, size)).astype(np.float32) for size in (8, 6)] for _ in range(3)]
    base, smooth = (replace(found(seed), features=sets[seed]) for seed in (0, 1))
    known = networks.INCEPTION_SHA256
    for digest, name in ((known, networks.FID), ("ab" * 32, "Fréchet distance (Inception-v3 abababab)")):
        at_hand = (OWN, networks.inception(digest, {}))
        both = metrics_of(replace(PROTOCOL, networks=at_hand), base, smooth, sets[2])
        (metric,) = [metric for metric in both if (metric.name, metric.model) == (name, "smooth")]
        ours, theirs = ((x.mean(0, dtype=np.float64), np.cov(x, rowvar=False)) for x in (sets[1][1], sets[2][1]))
        assert metric.value == pytest.approx(gaussian_distance(*ours, *theirs), rel=1e-5)
        assert not metric.note
        assert metric.stamp["weights"] == digest
        assert len({metric_key(metric) for metric in both}) == len(both)
    assert metric_key(metric) == "evaluate/frechet_inception_v3_abababab_smooth"


@pytest.mark.filterwarnings("ignore::smooth.evaluate.frechet.BiasWarning")  # they are few
def test_five_pictures_leave_precision_unavailable() -> None:
    few = replace(found(0), features=[found(0).features[0][:5]])
    metrics = {metric.name: metric for metric in metrics_of(PROTOCOL, few, few, found(3).features)}
    assert metrics["precision (EfficientNet-Lite0)"].value is None
    assert "more than 5 pictures, has 5; raise evaluate.pictures" in metrics["coverage (EfficientNet-Lite0)"].text()


def test_two_prompts_leave_the_diversity_unavailable() -> None:
    few = replace(found(0), distances=found(0).distances[:2], spreads=found(0).spreads[:2])
    reference = found(3).features
    metrics = metrics_of(replace(PROTOCOL, prompts=PROTOCOL.prompts[:2]), few, few, reference)
    (metric,) = [metric for metric in metrics if (metric.name, metric.model) == ("sample diversity", "base")]
    assert metric.text() == "unavailable: 2 prompts tell no interval of the diversity; raise evaluate.prompts to 3"


def test_a_frechet_distance_of_fewer_pictures_than_dimensions_is_warned_of_in_the_log_and_beside_the_value() -> None:
    few = replace(found(0), features=[found(0).features[0][:7]])
    with pytest.warns(
        BiasWarning, match=r"is biased upwards: the covariance of 7 pictures.* 8 dimensions; compare KID"
    ):
        metrics = metrics_of(PROTOCOL, few, found(1), found(3).features)
    notes = {m.model: m.note for m in metrics if m.name == "Fréchet distance (EfficientNet-Lite0)"}
    assert notes["base"].startswith("biased upwards: the covariance of 7 pictures is singular in 8 dimensions")
    assert not notes["smooth"]
