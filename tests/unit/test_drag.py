"""Drag editing on a network whose features are known, a blob that the latents' mean moves, and on the built-in base."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn
from torch.nn import functional

from smooth.data.openmoji import Style, drawings, render
from smooth.edit.drag import MAX_POINTS, DragSettings, drag, sampled
from smooth.models.pipeline import load_pipeline

SIDE = 64  # pixels; latents have 16, the feature grid 32
GREY = np.full((SIDE, SIDE, 3), 128, np.uint8)
SETTINGS = DragSettings(steps=10, iterations=60)


class Blob(nn.Module):
    """Features: a blob and its two slopes, whose middle the mean of the latents moves."""

    scale = 40  # pixels of the picture for a mean of 1

    def middle(self, latents: Tensor) -> Tensor:
        """(x, y) in pixels."""
        return 24.0 + self.scale * latents[0, :2].mean((1, 2))

    def forward(self, latents: Tensor) -> Tensor:
        x, y = self.middle(latents)
        cells = 4 * torch.arange(16) + 1.5  # the middle of each latent, in pixels
        across, down = (cells - x)[None, :] / 12, (cells - y)[:, None] / 12
        blob = torch.exp(-(across**2 + down**2) / 2)
        return torch.stack([blob, blob * across, blob * down])[None]


class Network(nn.Module):
    """It predicts no noise, so that a walk only scales."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(addition_embed_type=None, sample_size=16)
        self.blob = Blob()
        self.up_blocks = nn.ModuleList([self.blob, nn.Identity()])
        self.seen: dict[int, Tensor] = {}

    def forward(self, latents: Tensor, timestep: int, encoder_hidden_states: Tensor) -> SimpleNamespace:
        self.blob(latents)
        self.seen[timestep] = latents.detach().clone()
        return SimpleNamespace(sample=torch.zeros_like(latents))


class Autoencoder:
    """Means of 4 x 4 pixels."""

    config = SimpleNamespace(scaling_factor=1.0)

    def encode(self, x: Tensor) -> Any:
        mean = functional.avg_pool2d(x, 4)
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: mean))

    def decode(self, latents: Tensor) -> Any:
        return SimpleNamespace(sample=functional.interpolate(latents, scale_factor=4))


@pytest.fixture
def known() -> Any:
    return SimpleNamespace(
        unet=Network(),
        vae=Autoencoder(),
        scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False),
        encode_prompt=lambda prompt, **_: (torch.zeros(len(prompt), 1, 1),) * 2,
        vae_scale_factor=4,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )


def moved(known: Any) -> Tensor:
    """The latents that denoising starts from: the last that the network saw at its noisiest step."""
    seen: dict[int, Tensor] = known.unet.seen
    return seen[max(seen)]


@pytest.mark.parametrize("target", [(44.0, 24.0), (30.0, 40.0), (24.0, 8.0)])
def test_a_blob_is_dragged_to_its_target(known: Any, target: tuple[float, float]) -> None:
    start = tuple(known.unet.blob.middle(torch.zeros(1, 3, 16, 16)).tolist())
    found = drag(known, GREY, "", [start], [target], settings=SETTINGS)
    assert found.arrived
    assert len(found.handles) == len(found.losses) + 1 < 60
    assert (found.losses > 0).all()
    middle = known.unet.blob.middle(moved(known)).numpy()
    assert np.linalg.norm(middle - target) <= 3  # a pixel of the grid, two of the picture, and half of one to track
    assert found.handles[0, 0] == pytest.approx(start)
    assert np.linalg.norm(found.handles[-1, 0] - middle) <= 2
    left = np.linalg.norm(found.handles[:, 0] - target, axis=1)
    assert (np.diff(left[::8]) < 0).all()  # nearer and nearer


def test_the_mask_holds_what_lies_outside(known: Any) -> None:
    """Every latent moves the blob as well as another, so without a mask all of them change."""
    mask = np.zeros((SIDE, SIDE), bool)
    mask[:, :32] = True
    settings = DragSettings(steps=10, iterations=60, mask_weight=1.0)
    free = drag(known, GREY, "", [(24, 24)], [(34, 24)], settings=settings)
    change = (moved(known) - free_start(known)).abs()[0, 0]
    assert change[:, 8:].min() > 0.1
    held = drag(known, GREY, "", [(24, 24)], [(34, 24)], mask=mask, settings=settings)
    change = (moved(known) - free_start(known)).abs()[0, 0]
    assert held.arrived
    assert change[:, :8].min() > 0.3
    assert change[:, 8:].max() < 0.05
    assert np.abs(held.picture[:, 32:].astype(int) - 128).max() <= 8
    assert np.abs(free.picture[:, 32:].astype(int) - 128).max() > 8


def free_start(known: Any) -> Tensor:
    """The latents of the noise level before they were moved: the grey, scaled by the walk."""
    clean = known.vae.encode(torch.full((1, 3, SIDE, SIDE), 128 / 127.5 - 1)).latent_dist.mode()
    alphas = known.scheduler.alphas_cumprod
    scaled: Tensor = clean * (alphas[max(known.unet.seen)] / known.scheduler.final_alpha_cumprod).sqrt()
    return scaled


def test_what_has_arrived_is_left_as_it_is(known: Any) -> None:
    found = drag(known, GREY, "", [(24, 24), (30, 30)], [(24, 24), (30, 31)], settings=SETTINGS)
    assert found.arrived
    assert not len(found.losses)
    assert found.handles.tolist() == [[[24, 24], [30, 30]]]
    assert (found.picture == GREY).all()


def test_progress_counts_every_step_and_ends_the_work(known: Any) -> None:
    seen = []
    drag(
        known,
        GREY,
        "",
        [(24, 24)],
        [(60, 24)],
        settings=DragSettings(steps=10, depth=0.5, iterations=3),
        progress=lambda *step: seen.append(step),
    )
    assert seen == [(step, 13) for step in range(1, 14)]

    def cancel(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drag(known, GREY, "", [(24, 24)], [(60, 24)], settings=SETTINGS, progress=cancel)
    assert not known.unet.up_blocks[0]._forward_hooks


def test_features_are_sampled_between_the_cells() -> None:
    features = torch.arange(12.0).reshape(1, 1, 3, 4)
    places = torch.tensor([[[0.0, 0.0], [3.0, 2.0], [1.5, 0.5], [-5.0, 9.0]]])
    assert sampled(features, places)[0, :, 0].tolist() == pytest.approx([0, 11, 3.5, 8], abs=1e-5)


@pytest.mark.parametrize(
    ("handles", "targets", "message"),
    [
        ([], [], "0 handle and 0 target"),
        ([(1, 1)], [], "1 handle and 0 target"),
        ([(1, 1), (64, 2)], [(2, 2), (3, 3)], r"handle point \(64, 2\) is outside of the picture, 64 x 64"),
        ([(1, 1)], [(2, -1)], r"target point \(2, -1\)"),
        ([(1, 1)], [(float("nan"), 1)], r"target point \(nan, 1\)"),
        ([(1, 1)] * (MAX_POINTS + 1), [(2, 2)] * (MAX_POINTS + 1), "at most 32"),
    ],
)
def test_bad_points_are_refused(known: Any, handles: list[Any], targets: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        drag(known, GREY, "", handles, targets)


def test_bad_settings_are_refused(known: Any) -> None:
    with pytest.raises(ValueError, match=r"give booleans of \(64, 64\)"):
        drag(known, GREY, "", [(1, 1)], [(2, 2)], mask=np.ones((32, 32), bool))
    with pytest.raises(ValueError, match="multiples of 4"):
        drag(known, GREY[:63], "", [(1, 1)], [(2, 2)])
    with pytest.raises(ValueError, match="depth=0"):
        drag(known, GREY, "", [(1, 1)], [(2, 2)], settings=DragSettings(depth=0))
    with pytest.raises(ValueError, match="2 upsampling blocks"):
        drag(known, GREY, "", [(1, 1)], [(2, 2)], settings=DragSettings(steps=5, block=2))


def test_the_tip_of_a_heart_goes_down() -> None:
    (heart,) = (drawing for drawing in drawings() if drawing.caption == "red heart")
    picture = render(heart, SIDE, Style.draw(heart.key, 2000))
    mask = np.ones((SIDE, SIDE), bool)
    mask[:8] = False
    settings = DragSettings(steps=10, iterations=15, learning_rate=0.06, depth=0.5)
    pipeline = load_pipeline("builtin:tiny")
    found = drag(pipeline, picture, "red heart", [(32, 44)], [(32, 54)], mask=mask, settings=settings)
    assert found.handles[-1, 0, 1] >= 48
    assert abs(found.handles[-1, 0, 0] - 32) <= 4
    assert lowest_outline(found.picture) >= lowest_outline(picture) + 2
    assert all(parameter.grad is None for parameter in pipeline.unet.parameters())


def lowest_outline(picture: np.ndarray) -> int:
    """The lowest row with a black pixel."""
    return int(np.flatnonzero((picture.max(axis=2) < 90).any(axis=1)).max())
