"""LPIPS with random AlexNet weights against the package's own way to load them, and LPIPS-ISTD by a loop."""

from __future__ import annotations

import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from smooth.config import ConfigError
from smooth.evaluate import perceptual
from smooth.evaluate.networks import ALEXNET_FILE, hub_path


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of torch's with random weights under the name of torchvision's, which loads what is cached unseen."""
    from torchvision.models import alexnet

    home = tmp_path_factory.mktemp("torch")
    place = home / "hub" / "checkpoints" / ALEXNET_FILE
    place.parent.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(alexnet(weights=None).state_dict(), place)
    return home


def test_lpips_and_its_istd_are_the_packages(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lpips

    monkeypatch.setenv("TORCH_HOME", str(hub))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it asks torchvision in its old way
        theirs = lpips.LPIPS(net="alex", verbose=False)
    network = perceptual.PerceptualNetwork(hub_path(ALEXNET_FILE))
    pictures = np.random.default_rng(0).integers(0, 256, (2, 4, 64, 64, 3), np.uint8)
    expected = []
    with torch.no_grad():
        for strip in torch.tensor(pictures).permute(0, 1, 4, 2, 3) / 127.5 - 1:
            expected.append([float(theirs(a[None], b[None])) for a, b in pairwise(strip)])
    assert np.min(expected) > 0
    for images in (pictures, torch.tensor(pictures).permute(0, 1, 4, 2, 3) / 255):
        np.testing.assert_allclose(perceptual.perceptual_distances(images, network), expected, rtol=1e-4)
        found = perceptual.lpips_istd(images, network)
        assert found.value == pytest.approx(np.std(expected, axis=1).mean(), rel=1e-3)
    assert network.stamp["distance"] == f"LPIPS 0.1 heads on AlexNet {network.sha256[:8]}"
    with pytest.raises(ConfigError, match=r"not 7be5be79\.\.\.; fetch it again"):
        perceptual.PerceptualNetwork()


def test_missing_and_foreign_weights_name_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=rf"put it at {tmp_path}/hub/checkpoints/{ALEXNET_FILE}"):
        perceptual.PerceptualNetwork()
    other = tmp_path / "other.pth"
    torch.save({"features.0.weight": torch.zeros(1)}, other)
    with pytest.raises(ConfigError, match="no state dict of torchvision's AlexNet"):
        perceptual.PerceptualNetwork(str(other))
