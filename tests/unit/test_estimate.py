"""The ISTD of weights in training against the same weights saved, loaded again and sampled picture by picture."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from smooth.config import TrainConfig
from smooth.diffusion import sampler
from smooth.evaluate.estimate import Estimator
from smooth.evaluate.frames import paint
from smooth.evaluate.istd import istd
from smooth.evaluate.metric import StampError
from smooth.evaluate.smoothness import istd_of
from smooth.models import trained
from smooth.models.pipeline import load_pipeline
from tests.protocols import protocol
from tests.small import write_pipeline

PROTOCOL = protocol()


def expected(base: str, folder: Path, prompt: int) -> tuple[float, float]:
    """Deviation of the neighbour distances of one prompt, base and fine-tuned."""
    pipeline = load_pipeline(base)
    switch = trained.attach(pipeline, str(folder))
    shape = sampler.latent_shape(pipeline, PROTOCOL.image_size)
    ends = [sampler.noise(PROTOCOL.seed, name, prompt, shape) for name in ("start", "end")]
    deviations = []
    for on in (False, True):
        switch(on)
        frames = [
            sampler.sample(
                pipeline,
                [PROTOCOL.prompts[prompt]],
                sampler.slerp(*ends, ratio)[None],
                steps=PROTOCOL.steps,
                guidance=PROTOCOL.guidance,
            )[0]
            / 255
            for ratio in (0, 0.5, 1)
        ]
        deviations.append(float(np.std([np.linalg.norm(b - a) for a, b in pairwise(frames)])))
    return deviations[0], deviations[1]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_it_is_the_evaluations_istd_of_those_weights_on_fewer_prompts(
    method: str, tiny_base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.nice", lambda _: None)  # of the actor's process, not of this one
    config = TrainConfig.model_validate({"method": method})
    unet = load_pipeline(tiny_base).unet
    torch.manual_seed(0)
    weights = {
        name: parameter.detach() + 0.05 * torch.randn_like(parameter)
        for name, parameter in trained.choose(unet, config, seed=0).items()
    }
    trained.save(str(tmp_path), weights, unet, config)
    estimator = Estimator(tiny_base, None, config, PROTOCOL.first(1), batch_size=2, cuda=False)
    metrics = estimator.estimate({name: weight.numpy() for name, weight in weights.items()})
    base, smooth = expected(tiny_base, tmp_path, 0)
    assert [metric.value for metric in metrics] == pytest.approx([base, smooth, smooth - base], rel=0.02)
    assert abs(smooth - base) > 0.1 * base
    assert [metric.n for metric in metrics] == [1, 1, 1]
    with pytest.raises(StampError, match="prompts"):
        metrics[1].compare(istd_of(PROTOCOL, "evaluated", np.ones((3, 2))))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_pipeline(write_pipeline(tmp_path_factory.mktemp("small")))


def sampled(pipeline: Any, size: int) -> tuple[Any, Any]:
    """All frames (P, F, H, W, 3) in batches of ``size``: before they become bytes, and the evaluation's."""
    prompts, frames, total = len(PROTOCOL.prompts), PROTOCOL.frames, len(PROTOCOL.prompts) * PROTOCOL.frames
    unrounded, painted = [], []
    with pytest.MonkeyPatch.context() as patch:
        original = sampler.sample_unrounded

        def remembered(*args: Any, **options: Any) -> Any:
            unrounded.append(original(*args, **options))
            return unrounded[-1]

        patch.setattr(sampler, "sample_unrounded", remembered)
        for start in range(0, total, size):
            painted.append(paint(pipeline, PROTOCOL, range(start, min(start + size, total))))
    found = (np.concatenate(parts) for parts in (unrounded, painted))
    one, other = (each.reshape(prompts, frames, *each.shape[1:]) for each in found)
    return one, other


def test_the_size_of_a_batch_changes_no_picture_and_no_istd(pipeline: Any) -> None:
    """Before they become bytes, pictures differ by float reduction; few bytes round to the other side."""
    alone, alone_bytes = sampled(pipeline, 1)
    assert alone.dtype == np.float32
    assert alone_bytes.dtype == np.uint8
    expected, expected_of_bytes = (istd(each).istd.value for each in (alone, alone_bytes))
    for size in (3, 8):
        together, together_bytes = sampled(pipeline, size)
        assert np.abs(together - alone).max() <= 1e-5
        assert istd(together).istd.value == pytest.approx(expected, rel=1e-5)
        apart = np.abs(together_bytes.astype(int) - alone_bytes)
        assert apart.max() <= 1
        assert apart.mean() < 2e-4
        assert istd(together_bytes).istd.value == pytest.approx(expected_of_bytes, rel=1e-4)
