"""The ISTD of weights in training against the same weights saved, loaded again and sampled picture by picture."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from smooth.config import TrainConfig
from smooth.diffusion import sampler
from smooth.evaluate.estimate import Estimator
from smooth.evaluate.metric import StampError
from smooth.evaluate.smoothness import istd_of
from smooth.models import trained
from smooth.models.pipeline import load_pipeline
from tests.protocols import protocol

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
