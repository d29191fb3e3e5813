"""Inversions by content: what hits the cache, what misses it, and what comes back."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from smooth.edit.generate import generate
from smooth.edit.invert import Cache, Found, Inversion, invert, reconstruct
from smooth.models.pipeline import decode_latents, load_pipeline
from smooth.store import ArtifactError

PROMPTS = ["red heart", "grinning face"]
SETTINGS: dict[str, Any] = {"steps": 4, "guidance": 3.0, "null_text_steps": 2}


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return load_pipeline("builtin:tiny")


@pytest.fixture(scope="module")
def pictures(pipeline: Any) -> np.ndarray:
    return generate(pipeline, PROMPTS, [7, 8], steps=5, guidance=3.0)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache(str(tmp_path_factory.mktemp("inversions")), "model")


@pytest.fixture(scope="module")
def inverted(pipeline: Any, pictures: np.ndarray, cache: Cache) -> Inversion:
    return invert(pipeline, pictures, PROMPTS, **SETTINGS, cache=cache)


class CalledError(Exception):
    """The network or an encoder was."""


@pytest.fixture
def idle(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The pipeline, none of whose networks may be called."""

    def called(*_: Any, **__: Any) -> None:
        raise CalledError

    for part in (pipeline.unet, pipeline.vae.encoder, pipeline.text_encoder):
        monkeypatch.setattr(part, "forward", called)
    return pipeline


def test_shapes_and_losses(inverted: Inversion) -> None:
    found = inverted.found
    assert inverted.steps == 4
    assert found.walk.shape == (5, 2, 4, 16, 16)
    assert found.nulls.shape[:2] == (4, 2)
    assert found.losses.shape == (4, 3, 2)
    assert (found.losses.diff(dim=1) <= 0).all()
    torch.testing.assert_close(found.errors, found.losses[:, -1])


def test_a_hit_gives_the_same_tensors_without_a_network(
    idle: Any, inverted: Inversion, pictures: np.ndarray, cache: Cache
) -> None:
    told: list[tuple[int, int]] = []
    again = invert(
        idle, pictures, PROMPTS, **SETTINGS, cache=cache, progress=lambda done, total: told.append((done, total))
    )
    for each in fields(Found):
        assert torch.equal(getattr(again.found, each.name), getattr(inverted.found, each.name))
    assert told == [(8, 16), (16, 16)]
    one = invert(idle, pictures[1:], PROMPTS[1:], **SETTINGS, cache=cache)
    assert torch.equal(one.noise, inverted.noise[1:])


def test_whatever_changes_the_result_misses(idle: Any, inverted: Inversion, pictures: np.ndarray, cache: Cache) -> None:
    changed = pictures.copy()
    changed[0, 0, 0, 0] ^= 1
    others: list[tuple[np.ndarray, list[str], dict[str, Any], Cache]] = [
        (changed, PROMPTS, {}, cache),
        (pictures, ["green heart", PROMPTS[1]], {}, cache),
        (pictures, PROMPTS, {}, replace(cache, model="model*0.5")),
        (pictures, PROMPTS, {"steps": 5}, cache),
        (pictures, PROMPTS, {"guidance": 3.5}, cache),
        (pictures, PROMPTS, {"null_text_steps": 3}, cache),
        (pictures, PROMPTS, {"shared": True}, cache),
    ]
    for images, prompts, settings, where in others:
        with pytest.raises(CalledError):
            invert(idle, images, prompts, **(SETTINGS | settings), cache=where)


def test_a_spoilt_file_is_named(pipeline: Any, pictures: np.ndarray, tmp_path: Path) -> None:
    cache = Cache(str(tmp_path), "model")
    settings = {"steps": 1, "guidance": 1.0, "cache": cache}
    invert(pipeline, pictures[:1], PROMPTS[:1], **settings)
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"other things")
    with pytest.raises(ArtifactError, match=r"safetensors is no finished inversion .*delete it"):
        invert(pipeline, pictures[:1], PROMPTS[:1], **settings)


def test_what_is_cancelled_leaves_no_file(pipeline: Any, pictures: np.ndarray, tmp_path: Path) -> None:
    def cancel(done: int, total: int) -> None:
        assert total == 8
        if done == 6:
            raise CalledError

    with pytest.raises(CalledError):
        invert(pipeline, pictures[:1], PROMPTS[:1], **SETTINGS, cache=Cache(str(tmp_path), ""), progress=cancel)
    assert list(tmp_path.iterdir()) == []


def test_shared_embeddings_bring_both_pictures_back(pipeline: Any, pictures: np.ndarray, inverted: Inversion) -> None:
    """Better than no null-text steps, and not as well as embeddings of their own."""
    none = invert(pipeline, pictures, PROMPTS, **(SETTINGS | {"null_text_steps": 0}))
    shared = invert(pipeline, pictures, PROMPTS, **(SETTINGS | {"null_text_steps": 6}), shared=True)
    assert shared.found.nulls.shape[1] == 1
    assert (shared.found.losses.diff(dim=1) <= 0).all()
    torch.testing.assert_close(shared.found.errors.mean(dim=1), shared.found.losses[:, -1, 0])
    bounds = decode_latents(pipeline, shared.clean)
    plain, both = (mse(reconstruct(pipeline, found), bounds) for found in (none, shared))
    assert (both < 0.8 * plain).all()


def mse(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.asarray(np.square(left / 255.0 - right / 255.0).mean(axis=(1, 2, 3)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps=0: give 1 to 1000"),
        ({"null_text_steps": 101}, "null_text_steps=101: give 0 to 100"),
        ({"prompts": ["one"]}, "2 pictures with 1 prompts"),
        ({"pictures": np.zeros((2, 62, 64, 3), np.uint8)}, "multiples of 4, best 64"),
        ({"pictures": np.zeros((2, 64, 64, 3))}, "pictures of float64"),
    ],
)
def test_what_can_not_be_inverted_is_refused(
    idle: Any, pictures: np.ndarray, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        invert(idle, **({"pictures": pictures, "prompts": PROMPTS} | SETTINGS | settings))
