"""Two models by one painter: a base beside what was trained on it, on one pipeline or on two."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
import torchvision

from smooth.diffusion import sampler
from smooth.evaluate.perceptual import PerceptualNetwork
from smooth.evaluate.subjects import Subject
from smooth.evaluate.worker import Block, Painter
from tests.evaluated import write_adapter
from tests.protocols import protocol


@pytest.fixture(scope="module")
def adapter(tiny_base: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("adapter")
    write_adapter(tiny_base, str(folder))
    return str(folder)


@pytest.fixture(scope="module")
def switched(tiny_base: str, adapter: str, tmp_path_factory: pytest.TempPathFactory) -> Painter:
    """A LoRA on a switch; LPIPS of random weights comes to it as to an actor."""
    file = tmp_path_factory.mktemp("alexnet") / "alexnet.pth"
    torch.save(torchvision.models.alexnet(weights=None).state_dict(), file)
    network = pickle.loads(pickle.dumps(PerceptualNetwork(str(file))))
    subjects: Any = {"base": Subject(tiny_base), "smooth": Subject(tiny_base, None, adapter)}
    return Painter(subjects, protocol(), cuda=False, perceptual=network)


def test_which_of_the_two_is_trained_changes_no_picture(tiny_base: str, adapter: str, switched: Painter) -> None:
    """A LoRA on a switch, and the same two models the other way round, each on a pipeline of its own."""
    plain, trained = Subject(tiny_base), Subject(tiny_base, None, adapter)
    apart = Painter({"base": trained, "smooth": plain}, protocol(), cuda=False)
    block = Block("frames", 0, 2)
    smooth, base = switched.paint("smooth", block), switched.paint("base", block)
    assert np.array_equal(apart.paint("base", block), smooth)
    assert np.array_equal(apart.paint("smooth", block), base)
    assert not np.array_equal(base, smooth)


def test_path_lengths_are_those_of_paths_walked_one_by_one(switched: Painter) -> None:
    """Noises by (seed, path), a place by (seed, path), one picture at a time; the rest is rounding."""
    asked = protocol()
    model, block, pictures, found = switched.result("smooth", Block("paths", 1, 3), (0, 1))
    assert (model, block, pictures) == ("smooth", Block("paths", 1, 3), None)
    pipeline, network = switched._pipeline("smooth"), switched._perceptual
    assert network is not None
    for row, path in enumerate((1, 2)):
        place = np.random.default_rng([7, path]).uniform()
        start, end = (sampler.noise(7, f"path {name}", path, switched._shape).double() for name in ("start", "end"))
        a, b = (
            torch.tensor(
                pipeline(
                    prompt=["a dog"],
                    latents=sampler.slerp(start, end, place + step)[None].float(),
                    height=64,
                    width=64,
                    num_inference_steps=asked.steps,
                    guidance_scale=asked.guidance,
                    output_type="np",
                ).images
            ).permute(0, 3, 1, 2)
            for step in (0, 1e-3)
        )
        assert found[0][row] == pytest.approx(float((a - b).double().square().sum()) * 1e6, rel=0.01)
        assert found[1][row] == pytest.approx(float(network(a, b)) * 1e6, rel=0.05)
    assert switched.result("smooth", Block("paths", 1, 3), (1,))[3][0] == pytest.approx(found[1])


def test_a_block_without_room_in_memory_is_painted_in_parts(
    switched: Painter, caplog: pytest.LogCaptureFixture
) -> None:
    """The network has room for two pictures, with and without their prompts."""
    blocks = Block("frames", 0, 5), Block("frames", 4, 7)
    whole = [switched.paint("base", block) for block in blocks]
    unet = switched._pipeline("base").unet
    tried: list[int] = []
    most = 2

    def limited(_: Any, arguments: tuple[Any, ...]) -> None:
        tried.append(len(arguments[0]) // 2)
        if tried[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    with unet.register_forward_pre_hook(limited):
        parts = [switched.paint("base", block) for block in blocks]
        assert [size for size in tried if size > 2] == [5]
        (said,) = caplog.messages
        assert said.startswith("no memory for 5 frames at once: 2 at a time from here on; give the next evaluation")
        assert said.endswith("a lower evaluate.batch_size")
        _, _, _, (lengths,) = switched.result("base", Block("paths", 0, 2), (0,))
        most = 0
        with pytest.raises(torch.OutOfMemoryError, match=r"2\.00 GiB"):
            switched.paint("base", blocks[0])
    for one, other in zip(whole, parts, strict=True):
        assert one.shape == other.shape
        apart = np.abs(one.astype(int) - other)
        assert apart.max() <= 1
        assert apart.mean() < 1e-3
    assert lengths == pytest.approx(switched.result("base", Block("paths", 0, 2), (0,))[3][0], rel=0.01)
