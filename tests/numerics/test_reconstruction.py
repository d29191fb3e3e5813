"""Measures of reconstruction against their formulas, and on the built-in base the order that they must have."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio

from smooth.evaluate import reconstruction
from smooth.evaluate.perceptual import PerceptualNetwork
from smooth.evaluate.real import Captioned
from smooth.evaluate.reconstruction import DDIM, LPIPS, MSE, NULL_TEXT, PSNR, SSIM, VAE, Reconstructed, measure, metrics
from smooth.models.pipeline import load_pipeline
from tests.protocols import protocol

RNG = np.random.default_rng(0)


def pictures(count: int) -> np.ndarray:
    """Smooth noise, so that SSIM has structure to see."""
    coarse = RNG.uniform(0, 255, (count, 8, 8, 3))
    return np.kron(coarse, np.ones((1, 8, 8, 1))).astype(np.uint8)


def wang(a: np.ndarray, b: np.ndarray) -> float:
    """Eq. 13 of Wang et al. 2004 by scipy's filter, where the window of 11 lies within the picture."""

    def window(x: np.ndarray) -> np.ndarray:
        return gaussian_filter(x, 1.5, truncate=3.5)[5:-5, 5:-5]

    means, variances = (window(a), window(b)), (window(a * a) - window(a) ** 2, window(b * b) - window(b) ** 2)
    covariance = window(a * b) - means[0] * means[1]
    top = (2 * means[0] * means[1] + 0.01**2) * (2 * covariance + 0.03**2)
    bottom = (means[0] ** 2 + means[1] ** 2 + 0.01**2) * (sum(variances) + 0.03**2)
    return float((top / bottom).mean())


def test_measures_are_those_of_the_books() -> None:
    count = 5
    originals = pictures(count)
    painted = np.clip(originals + RNG.normal(0, 20, originals.shape), 0, 255).astype(np.uint8)
    found = measure(originals, painted)
    for index, (a, b) in enumerate(zip(originals / 255, painted / 255, strict=True)):
        assert found[MSE][index] == pytest.approx(mean_squared_error(a, b), rel=1e-9)
        assert found[PSNR][index] == pytest.approx(peak_signal_noise_ratio(a, b, data_range=1.0), rel=1e-9)
        assert found[SSIM][index] == pytest.approx(np.mean([wang(a[..., c], b[..., c]) for c in range(3)]), rel=1e-9)


def test_a_picture_that_comes_back_whole_is_finite() -> None:
    same = pictures(2)
    found = measure(same, same)
    assert (found[MSE] == 0).all()
    assert found[PSNR].tolist() == [100, 100]
    assert found[SSIM] == pytest.approx(1)


def test_every_way_has_its_metrics_and_the_differences_are_paired() -> None:
    originals = pictures(6)
    base, smooth = (
        np.clip(originals[:, None] + RNG.normal(0, sigma, (6, 3, *originals.shape[1:])), 0, 255).astype(np.uint8)
        for sigma in (30, 10)
    )
    found = {
        (metric.name, metric.model): metric
        for metric in metrics(protocol(reconstructions=6), Reconstructed(originals, base, smooth), None)
    }
    difference = found[f"PSNR ({DDIM})", "smooth - base"]
    expected = measure(originals, smooth[:, 1])[PSNR] - measure(originals, base[:, 1])[PSNR]
    assert difference.value == pytest.approx(expected.mean())
    assert difference.low is not None
    assert difference.low > 0
    assert found[f"MSE ({NULL_TEXT})", "base"].value == pytest.approx(measure(originals, base[:, 2])[MSE].mean())
    assert (f"MSE ({VAE})", "smooth - base") not in found
    missing = found[f"LPIPS ({VAE})", "base"]
    assert missing.value is None
    assert "put it at" in missing.note


def test_lpips_is_the_networks(tmp_path: object) -> None:
    """With any weights: which they are is the stamp's."""
    import torchvision

    path = f"{tmp_path}/alexnet.pth"
    torch.save(torchvision.models.alexnet(weights=None).state_dict(), path)
    network = PerceptualNetwork(path)
    originals, painted = pictures(3), pictures(3)
    a, b = (torch.tensor(x).permute(0, 3, 1, 2) / 255 for x in (originals, painted))
    assert measure(originals, painted, network)[LPIPS] == pytest.approx(network(a, b).numpy(), rel=1e-4)


def test_the_vae_bounds_what_comes_back_and_null_text_is_nearer_than_ddim() -> None:
    """On pictures that the base itself painted."""
    pipeline = load_pipeline("builtin:tiny")
    captions = ("red heart", "grinning face", "green apple")
    torch.manual_seed(0)
    drawn = pipeline(list(captions), num_inference_steps=20, guidance_scale=3.0, output_type="np").images
    real = Captioned((drawn * 255).round().astype(np.uint8), captions)
    asked = protocol(reconstructions=3, steps=6, guidance=3.0)
    painted = reconstruction.paint(pipeline, asked, real, range(3))
    assert painted.shape == (3, 3, *real.pictures.shape[1:])
    vae, ddim, null_text = (measure(real.pictures, painted[:, way])[PSNR].mean() for way in range(3))
    assert vae > null_text > ddim
    alone = reconstruction.paint(pipeline, asked, real, range(1, 2))
    assert np.abs(alone[0, :2].astype(int) - painted[1, :2]).max() <= 2  # of its batch it does not depend
