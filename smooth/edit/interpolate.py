"""Pictures between two: of seeds, of prompts, of real pictures, and the ways that the paper compares with.

A way is a function of a ratio, 0 to 1, so frames can be asked for anywhere on it: :func:`frames` spreads them evenly
over the ratio, or so that each differs from the next as much.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from scipy.interpolate import PchipInterpolator
from torch import Tensor

from smooth.diffusion import inversion as walks
from smooth.diffusion import sampler
from smooth.diffusion.inversion import Walk
from smooth.edit import Progress
from smooth.edit.generate import check, noise
from smooth.edit.invert import Inversion, of_picture
from smooth.evaluate.istd import neighbour_distances, variation_coefficient
from smooth.models.pipeline import decode_latents, encode_pictures

MOST_FRAMES = 200
EVEN = 0.02  # variation coefficient of the distances that is even enough
ROUNDS = 4  # of re-timing; each paints all frames between the ends anew

Array = npt.NDArray[np.float64]
Pictures = npt.NDArray[np.uint8]
Distance = Callable[[Pictures], Array]  # (F, H, W, 3) => (F - 1,) between neighbours


class Way(Protocol):
    """Pictures between two."""

    def __call__(self, ratio: float, each_step: Callable[[], None]) -> Pictures:
        """(1, H, W, 3) uint8 at a ratio of 0 to 1; ``each_step`` may end the work by what it raises."""
        ...


@dataclass(frozen=True)
class Frames:
    """An interpolation."""

    pictures: Pictures
    """(F, H, W, 3)"""
    ratios: Array
    """(F,) where on the way, 0 to 1"""
    distances: Array
    """(F - 1,) L2 between neighbours, pixels in [0, 1]"""

    @property
    def variation_coefficient(self) -> float:
        """Deviation over mean of the distances: 0 for equal steps."""
        return float(variation_coefficient(self.distances[None])[0])


def frames(
    way: Way,
    count: int,
    *,
    equal_steps: bool = False,
    distance: Distance | None = None,
    progress: Progress | None = None,
) -> Frames:
    """Frames of a way, both ends included.

    With ``equal_steps`` they are re-timed by resampling: the ratio is taken as a monotone function (PCHIP) of the
    distances between neighbours, summed up; where it stands at equal parts of the whole, frames are painted anew. A few
    rounds of it go to a fixed point, at which all neighbours are equally far, if the way has no jumps. The most even of
    all rounds is kept, so it never gets less even than equal ratios.

    Args:
        way: what to paint.
        count: frames, 2 to 200.
        equal_steps: equal distances in place of equal ratios; costs up to ``ROUNDS`` more paintings.
        distance: what is made equal; L2 of pixels, as ISTD has it, if None. LPIPS where its network is there.
        progress: see :data:`smooth.edit.Progress`, in frames; called at each step of the network with the same count.

    Raises:
        ValueError: another number of frames.
    """
    if not 2 <= count <= MOST_FRAMES:
        raise ValueError(f"frames={count}: give 2 to {MOST_FRAMES}")
    measured = distance or _pixels
    rounds = ROUNDS if equal_steps and count > 2 else 0
    done, total = 0, count + rounds * (count - 2)

    def tell() -> None:
        if progress is not None:
            progress(done, total)

    def painted(ratio: float) -> Pictures:
        nonlocal done
        picture = way(ratio, tell)
        done += 1
        tell()
        return picture

    ratios = np.linspace(0.0, 1.0, count)
    pictures = np.concatenate([painted(ratio) for ratio in ratios])
    best, spread = (pictures, ratios), _spread(measured(pictures))
    for _ in range(rounds):
        if spread <= EVEN:
            break
        ratios = retimed(ratios, measured(pictures))
        between = [painted(ratio) for ratio in ratios[1:-1]]
        pictures = np.concatenate([pictures[:1], *between, pictures[-1:]])
        if (found := _spread(measured(pictures))) < spread:
            best, spread = (pictures, ratios), found
    done = total  # the rounds that weren't needed, too
    tell()
    return Frames(*best, _pixels(best[0]))


def retimed(ratios: Array, distances: Array) -> Array:
    """Where equal parts of the whole distance lie: (F,) ratios of (F,) ratios and (F - 1,) distances between them."""
    passed = np.concatenate([[0.0], np.cumsum(distances)])
    if passed[-1] <= 0:
        return ratios
    passed += np.arange(len(passed)) * 1e-9 * passed[-1]  # neighbours that are equal have an inverse, too
    found: Array = PchipInterpolator(passed, ratios)(np.linspace(0.0, passed[-1], len(ratios)))
    found[[0, -1]] = ratios[[0, -1]]  # where they lie but for rounding
    return found


def generated(
    pipeline: Any,
    prompts: tuple[str, str],
    seeds: tuple[int, int],
    *,
    steps: int,
    guidance: float,
    negative: str = "",
    size: int | None = None,
) -> Way:
    """Between two generated pictures: noises by slerp, embeddings by lerp; the ends are those of ``generate``.

    Args:
        pipeline: of :meth:`smooth.edit.model.EditModel.at`.
        prompts: of the first and of the last frame.
        seeds: likewise.
        steps: DDIM steps.
        guidance: classifier-free guidance scale.
        negative: what guidance leads away from.
        size: side in pixels; the model's own if None.

    Raises:
        ValueError: settings that can't be.
    """
    check(pipeline, steps, guidance, *prompts, negative)
    start, end = (noise(pipeline, seed, size) for seed in seeds)
    told = [sampler.embed(pipeline, [prompt], negative) for prompt in prompts]

    def way(ratio: float, each_step: Callable[[], None]) -> Pictures:
        mixed = sampler.slerp(start, end, ratio)[None]
        text = _mixed(told[0], told[1], ratio)
        return sampler.sample(pipeline, text, mixed, steps=steps, guidance=guidance, each_step=each_step)

    return way


def real(pipeline: Any, inverted: Inversion) -> Way:
    """Between two real pictures (section 4.2 of the paper): noises by slerp, embeddings by lerp.

    Args:
        pipeline: that the pictures were inverted with.
        inverted: two pictures, with ``shared`` unconditional embeddings.

    Raises:
        ValueError: other than two pictures, or embeddings that aren't shared.
    """
    if len(inverted.prompts) != 2 or inverted.found.nulls.shape[1] != 1:
        raise ValueError("an interpolation is between two pictures inverted together; call invert with shared=True")
    walk = Walk(pipeline, inverted.steps)
    (start, first, nulls), (end, last, _) = (
        tuple(each.to(pipeline.device) for each in of_picture(inverted.found, index)) for index in range(2)
    )

    def way(ratio: float, each_step: Callable[[], None]) -> Pictures:
        mixed, text = sampler.slerp(start, end, ratio), torch.lerp(first, last, ratio)
        clean = walks.reconstruct(walk, mixed, text, nulls, inverted.guidance, each_step)
        return decode_latents(pipeline, clean)

    return way


def vae(pipeline: Any, pictures: Pictures) -> Way:
    """The paper's baseline in VAE space: clean latents of two pictures (2, H, W, 3) by lerp, which cross-fades."""
    start, end = encode_pictures(pipeline, pictures).chunk(2)

    def way(ratio: float, each_step: Callable[[], None]) -> Pictures:
        each_step()
        return decode_latents(pipeline, torch.lerp(start, end, ratio))

    return way


def anid(
    pipeline: Any,
    pictures: Pictures,
    prompts: Sequence[str],
    *,
    steps: int,
    guidance: float,
    noising: float = 0.6,
    seed: int = 0,
) -> Way:
    """The paper's baseline ANID, add noise, interpolate, denoise.

    The latents of both pictures, each with noise of its own at the same level, are mixed by slerp and denoised with the
    mixed embeddings. Neither paper nor code fix more than that; the ends are therefore not the pictures themselves.

    Args:
        pipeline: Stable Diffusion (1 or 2).
        pictures: (2, H, W, 3) uint8.
        prompts: what the two show.
        steps: DDIM steps of a whole walk.
        guidance: classifier-free guidance scale.
        noising: share of the walk that is noised and denoised, above 0 to 1.
        seed: of the noises.

    Raises:
        ValueError: settings that can't be.
    """
    check(pipeline, steps, guidance, *prompts)
    if not 0 < noising <= 1:
        raise ValueError(f"noising={noising:g}: give a share above 0 to 1")
    walk = Walk(pipeline, steps)
    skip = steps - max(1, round(noising * steps))
    clean = encode_pictures(pipeline, pictures)
    drawn = torch.stack([sampler.noise(seed, "anid", index, clean.shape[1:]) for index in range(2)])
    start, end = walk.noised(clean, drawn.to(clean), skip).chunk(2)
    told = [sampler.embed(pipeline, [prompt]) for prompt in prompts]

    def way(ratio: float, each_step: Callable[[], None]) -> Pictures:
        text = _mixed(told[0], told[1], ratio)
        mixed = sampler.slerp(start, end, ratio)
        clean = walks.reconstruct(
            walk,
            mixed,
            text["prompt_embeds"],
            [text["negative_prompt_embeds"]] * steps,
            guidance,
            each_step,
            skip=skip,
        )
        return decode_latents(pipeline, clean)

    return way


def _mixed(start: Mapping[str, Tensor], end: Mapping[str, Tensor], ratio: float) -> dict[str, Tensor]:
    return {name: torch.lerp(tensor, end[name], ratio) for name, tensor in start.items()}


def _pixels(pictures: Pictures) -> Array:
    """L2 between neighbouring frames, on pixels in [0, 1]."""
    return np.asarray(neighbour_distances(pictures[None])[0])


def _spread(distances: Array) -> float:
    return float(variation_coefficient(distances[None])[0])
