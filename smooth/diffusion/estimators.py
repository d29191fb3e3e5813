"""The per-sample norm of step-wise variation and its gradient (arXiv 2312.04410, eq. 10).

``n = ||g||``, ``g = grad_eps <f(eps), delta>``, ``f = sqrt(1 - abar_t) x0_hat``. The gradient of ``n`` by the
weights needs no second derivative. With ``J = df/deps``, ``g = J^T delta`` and ``u = g / n``, a change of the
weights changes ``n`` by ``<u, d(J^T delta)> = <delta, dJ u>``, so

    grad n = grad <delta, J u>,  u held constant,  and  J u ~ (f(eps + h u) - f(eps)) / h.

One backward pass to the noise gives ``g``, one more forward pass the difference, and one ordinary backward pass
serves it and the denoising loss, whose forward pass is shared. The one-sided difference errs by
``h/2 <delta, J' u u>``, which changes sign with ``delta``; ``delta`` and ``-delta`` are equally likely, so its
expectation is that of the central difference. Since ``<delta, J u> = n`` exactly, the quotient itself tells
how well the step ``h`` suits (``Estimate.error``).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from smooth.config import VariationConfig
from smooth.diffusion.schedule import NoiseSchedule

logger = logging.getLogger(__name__)

# RMS of the step in the noise, by the dtype that the network computes in. Smaller steps drown in rounding,
# larger ones in curvature: .github/images/difference-step.png has the measured curves.
DIFFERENCE_STEPS: dict[str, dict[torch.dtype, float]] = {
    "one_sided_difference": {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2},
    "central_difference": {torch.float32: 2e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1},
}
# Nodes of an autograd graph that can't be differentiated: compiled backward passes, fused attention's.
NO_SECOND_DERIVATIVE = ("CompiledFunctionBackwardBackward", "torch::autograd::NotImplemented")


class Denoiser(Protocol):
    """The network: x_t BxCxHxW, timesteps (B,), text BxLxD => BxCxHxW output."""

    def __call__(self, noisy: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        """Predict the noise or v of ``noisy``."""
        ...


# eps (kB)xCxHxW => (network output, f = sqrt(1 - abar_t) x0_hat), both (kB)xCxHxW and functions of eps
Denoise = Callable[[Tensor], tuple[Tensor, Tensor]]


class Estimate(NamedTuple):
    """What one estimate of the norms gives."""

    output: Tensor  # BxCxHxW, the network's output at the given noise, with its graph: for the denoising loss
    norms: Tensor  # (B,) float32, exact; its gradient by the weights is the estimator's
    error: Tensor  # (B,) float32, relative difference of the quotient from the norm it stands for; 0 if exact


class Estimator(Protocol):
    """A way to the norms and their gradient by the weights."""

    def __call__(self, denoise: Denoise, noise: Tensor, direction: Tensor, probe: Denoise | None = None) -> Estimate:
        """Estimate at BxCxHxW ``noise`` along BxCxHxW ``direction``, N(0, 1) / sqrt(C H W).

        ``probe`` is another way to the same function, for the gradient by the noise alone, where a graph may see
        one backward pass only (ZeRO-3).
        """
        ...


def denoise_from(network: Denoiser, schedule: NoiseSchedule, clean: Tensor, timesteps: Tensor, text: Tensor) -> Denoise:
    """Everything but the noise held fixed: the map that the regularizer differentiates.

    It takes the noise of the B samples, or of k copies of them one after another, as one batch.
    """

    def denoise(noise: Tensor) -> tuple[Tensor, Tensor]:
        copies = len(noise) // len(clean)
        steps = timesteps.repeat(copies)
        noisy = schedule.add_noise(clean.repeat(copies, 1, 1, 1), noise, steps)
        output = network(noisy, steps, text.repeat(copies, 1, 1) if copies > 1 else text)
        return output, schedule.sigma(steps) * schedule.predicted_clean(output, noisy, steps)

    return denoise


def double_backward(denoise: Denoise, noise: Tensor, direction: Tensor, probe: Denoise | None = None) -> Estimate:
    """The norms with a graph through their gradient: exact, at the time and memory of a second backward.

    ``noise`` and ``direction`` are BxCxHxW. Fused attention kernels have no second derivative, so the
    plain one is selected here. (With gradient checkpointing, select it around the loss's backward pass, too.)

    Raises:
        ValueError: a part of the network has no second derivative (a compiled module, a foreign kernel),
            or the graph may see one backward pass only.
    """
    if probe is not None:
        raise ValueError("double_backward needs one graph for both passes; use variation.estimator=central_difference")
    _say_plain_attention()
    noise = noise.detach().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):
        output, clean = denoise(noise)
        (gradient,) = torch.autograd.grad(_dot(clean, direction).sum(), noise, create_graph=True)
    _check_second_derivative(gradient)
    norms = gradient.float().flatten(1).norm(dim=1)
    return Estimate(output, norms, torch.zeros_like(norms.detach()))


def difference(
    denoise: Denoise, noise: Tensor, direction: Tensor, probe: Denoise | None = None, *, step: float, central: bool
) -> Estimate:
    """The norms with the gradient of a difference quotient: first-order passes only.

    ``noise`` and ``direction`` are BxCxHxW; ``step`` is the RMS of the change in the noise. The points of
    the difference go through the network as one batch: all their graphs live until the loss's backward pass.
    ``probe`` costs one more forward pass.
    """
    noise = noise.detach()
    moving = noise.clone().requires_grad_()
    output, here = (probe or denoise)(moving)
    (gradient,) = torch.autograd.grad(_dot(here, direction).sum(), moving, retain_graph=probe is None)
    norms = gradient.float().flatten(1).norm(dim=1)
    length = step * math.sqrt(gradient[0].numel())
    divisor = norms.clamp_min(torch.finfo(norms.dtype).tiny)  # a network that does not move has no direction u
    shift = length * gradient / divisor[:, None, None, None]
    places = [noise + shift, noise - shift] if central else [noise + shift]
    if probe is None:
        ahead = list(denoise(torch.cat(places))[1].chunk(len(places)))
    else:
        outputs, clean = denoise(torch.cat([noise, *places]))
        output = outputs[: len(noise)]
        here, *ahead = clean.chunk(1 + len(places))
    change, distance = (ahead[0] - ahead[1], 2 * length) if central else (ahead[0] - here, length)
    quotient = _dot(change, direction) / distance
    error = (quotient.detach() - norms).abs() / divisor
    return Estimate(output, norms + (quotient - quotient.detach()), error)


def norms_only(denoise: Denoise, noise: Tensor, direction: Tensor) -> Tensor:
    """The norms (B,), detached, by one forward and one backward pass to the noise."""
    moving = noise.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(_dot(denoise(moving)[1], direction).sum(), moving)
    norms: Tensor = gradient.float().flatten(1).norm(dim=1)
    return norms


def choose_estimator(config: VariationConfig, dtype: torch.dtype) -> Estimator:
    """The estimator that ``config`` names, with its step for a network that computes in ``dtype``.

    Raises:
        ValueError: no step is known for ``dtype`` and none is given.
    """
    if config.estimator == "double_backward":
        return double_backward
    step = config.difference_step or DIFFERENCE_STEPS[config.estimator].get(dtype)
    if step is None:
        raise ValueError(f"no step was measured for {dtype}; give variation.difference_step (RMS in the noise)")
    central = config.estimator == "central_difference"
    return partial(difference, step=step, central=central)


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """Inner product of each sample, (B,) in float32 or wider."""
    return (left * right).flatten(1).sum(1)


@cache
def _say_plain_attention() -> None:
    """Once a process."""
    logger.warning(
        "double_backward computes attention without a fused kernel, which has no second derivative; "
        "train.variation.estimator=one_sided_difference keeps the fused ones"
    )


def _check_second_derivative(gradient: Tensor) -> None:
    """Look for nodes that would fail in the loss's own backward pass, far from the cause."""
    seen, waiting = set(), [gradient.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if node.name() in NO_SECOND_DERIVATIVE:
            raise ValueError(
                f"double_backward meets a part of the network without a second derivative ({node.name()}): a compiled "
                "module or a fused kernel of its own; use variation.estimator=central_difference or "
                "one_sided_difference, or the plain network"
            )
        seen.add(node)
        waiting.extend(function for function, _ in node.next_functions)
