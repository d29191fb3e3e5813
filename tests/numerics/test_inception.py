"""Inception-v3 with random weights in torch-fidelity's format: its distance against torch-fidelity's own.

The weights of FID are in no package, so what is tested is all around them: file, resize, network, distance, name.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from smooth.config import ConfigError, EvaluateConfig, RunConfig
from smooth.evaluate import networks
from smooth.evaluate.frechet import gaussian_distance
from smooth.evaluate.inception import InceptionNetwork
from smooth.evaluate.moments import Moments

PICTURES = 4


def find(path: str | None) -> networks.Network:
    """Inception-v3, which is at hand."""
    _, found = networks.find(EvaluateConfig(inception_weights=path), 64)
    return found


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state dict as torch-fidelity's converter writes it, of weights that keep the features' size."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    torch.manual_seed(0)
    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        state = FeatureExtractorInceptionV3("random", ["2048"], feature_extractor_weights_path=empty).state_dict()
    for name, value in state.items():
        if name.endswith("conv.weight"):
            value *= 6**0.5
        elif name.endswith("running_mean"):
            value += 0.1 * torch.randn_like(value)
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    """Two sets of crops of photographs, (PICTURES, 72, 72, 3) uint8, one photograph a set."""
    rng = np.random.default_rng(0)
    sets = []
    for photograph in (data.astronaut(), data.coffee()):
        corners = rng.integers(0, 300, (PICTURES, 2))
        sets.append(np.stack([photograph[top : top + 72, left : left + 72] for top, left in corners]))
    return sets


def test_distance_is_torch_fidelitys_on_the_same_folders(
    weights: Path, pictures: list[np.ndarray], tmp_path: Path
) -> None:
    from torch_fidelity import calculate_metrics

    for name, crops in zip("ab", pictures, strict=True):
        (tmp_path / name).mkdir()
        for number, picture in enumerate(crops):
            Image.fromarray(picture).save(tmp_path / name / f"{number}.png")
    found = find(str(weights))
    network = InceptionNetwork(found, networks.contents(found))
    a, b = (Moments.of(network(crops)) for crops in pictures)
    ours = gaussian_distance(a.mean, a.covariance, b.mean, b.covariance)
    theirs = calculate_metrics(
        input1=str(tmp_path / "a"),
        input2=str(tmp_path / "b"),
        fid=True,
        feature_extractor_weights_path=str(weights),
        batch_size=PICTURES,
        cuda=False,
        cache=False,
        save_cpu_ram=True,  # and no worker processes
        verbose=False,
    )["frechet_inception_distance"]
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert ours > 0.1 * np.trace(a.covariance + b.covariance)


def test_only_the_known_weights_are_called_fid(weights: Path) -> None:
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    other = find(str(weights))
    assert (other.label, other.stamp["weights"]) == (f"Inception-v3 {digest[:8]}", digest)
    known = networks.inception(networks.INCEPTION_SHA256, {})
    assert f"FID ({known.label})" == networks.FID
    assert networks.INCEPTION_FILE.endswith(f"-{networks.INCEPTION_SHA256[:8]}.pth")  # as torch's hub names files


def test_missing_weights_name_their_place_and_wrong_ones_their_checksum(
    weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    place = tmp_path / "hub" / "checkpoints" / networks.INCEPTION_FILE
    assert [network.kind for network in networks.find(EvaluateConfig(), 64)] == ["efficientnet"]
    assert str(place) in networks.missing("inception")
    assert "evaluate.inception_weights" in networks.missing("inception")
    place.parent.mkdir(parents=True)
    place.write_bytes(weights.read_bytes())
    known = networks.INCEPTION_SHA256
    with pytest.raises(ConfigError, match=rf"has SHA-256 [0-9a-f]{{64}}, .* has {known}; fetch it again"):
        find(None)
    monkeypatch.setattr(networks, "INCEPTION_SHA256", hashlib.sha256(place.read_bytes()).hexdigest())
    assert find(None) == find(str(weights))
    with pytest.raises(ConfigError, match=r"evaluate\.inception_weights=/nowhere: no such file"):
        find("/nowhere")


class Evil:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("kind", ["code", "pickle", "cut", "other"])
def test_a_file_of_anything_else_is_refused_and_runs_nothing(kind: str, weights: Path, tmp_path: Path) -> None:
    path, trace = tmp_path / "weights.pth", tmp_path / "unpickled"
    match kind:
        case "code":
            torch.save({"fc.weight": Evil(trace)}, path)
        case "pickle":
            path.write_bytes(pickle.dumps(Evil(trace), protocol=2))
        case "cut":
            path.write_bytes(weights.read_bytes()[:1_000_000])
        case "other":
            torch.save({"fc.weight": torch.zeros(2)}, path)
    found = find(str(path))
    with pytest.raises(ConfigError, match=rf"SHA-256 {found.stamp['weights']}\) is no state dict of torch-fidelity's"):
        InceptionNetwork(found, networks.contents(found))
    assert not trace.exists()


def test_other_weights_are_another_evaluation(weights: Path, tmp_path: Path) -> None:
    plain = RunConfig.load("tiny", [])
    named = RunConfig.load("tiny", [f"evaluate.inception_weights={weights}"])
    assert plain.fingerprint("train") == named.fingerprint("train")
    assert plain.fingerprint("evaluate") != named.fingerprint("evaluate")
    with pytest.raises(ConfigError, match=r"evaluate\.inception_weights=/nowhere: no such file"):
        RunConfig.load("tiny", ["evaluate.inception_weights=/nowhere"]).fingerprint("evaluate")
