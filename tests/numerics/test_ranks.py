"""Two ranks or one, plain, DDP or DeepSpeed at any ZeRO stage: the same global batch gives the same gradient."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch import distributed as dist

from smooth.config import TrainConfig, VariationConfig
from smooth.diffusion.variation import StepwiseVariation, global_mean
from smooth.models import lora
from smooth.train.engine import start_engine
from tests.numerics.networks import Draws, adapted, caller, flat, loss_of, relative, schedule, unet
from tests.ranks import start

RANKS = 2
SAMPLES = 4
WRAPPERS = ("ddp", "zero-1", "zero-2", "zero-3")
ESTIMATORS = ("one_sided_difference", "central_difference", "double_backward")
# ZeRO-3 with double backward is refused by the config: tests/unit/test_config.py.
CASES = [case for case in product(WRAPPERS, ESTIMATORS) if case != ("zero-3", "double_backward")]
ALONE = [case for case in CASES if case[1] == ESTIMATORS[0]]  # of all, two ranks give what plain autograd does


def _network() -> UNet2DConditionModel:
    return unet((16, 32), layers=1, text_width=32)


def _variation(estimator: str) -> StepwiseVariation:
    # At this weight both terms of the loss have a like share in the gradient.
    variation = StepwiseVariation(VariationConfig.model_validate({"estimator": estimator, "weight": 1e-3}))
    variation.start([0.5])
    return variation


def _parts() -> list[Draws]:
    """The global batch in the two micro-batches that every job here works on, together or one after another."""
    draws = Draws.make(SAMPLES, size=8, text_width=32)
    return [draws.part(rank, RANKS) for rank in range(RANKS)]


def _plain_gradient(estimator: str, parts: list[Draws], separate: bool = False) -> Tensor:
    """Plain autograd in one process; ``separate`` gives the gradient by the noise a graph of its own."""
    network = adapted(_network())
    call = caller(network)
    for part in parts:
        loss = loss_of(call, part, schedule(), _variation(estimator), call if separate else None)
        (loss / len(parts)).backward()
    return flat(parameter.grad for parameter in network.parameters())


def _gradient(stage: int, estimator: str) -> Tensor:
    """The gradient in an engine; stage 0 is plain DDP."""
    from deepspeed.utils import safe_get_full_grad

    config = TrainConfig.model_validate(
        {
            "global_batch_size": SAMPLES,
            "micro_batch_size": SAMPLES // RANKS,
            "workers": dist.get_world_size(),
            "zero_stage": stage,
            "max_grad_norm": 1e9,
            "variation": {"estimator": estimator},
        }
    )
    engine = start_engine(_network(), config, seed=0, device=torch.device("cpu"))
    mine = _parts()[dist.get_rank() :: dist.get_world_size()]
    for number, part in enumerate(mine, start=1):
        engine.backward(loss_of(engine, part, schedule(), _variation(estimator), engine.probe))
        if number < len(mine):
            engine.step()
    return flat(safe_get_full_grad(parameter) for parameter in engine.parameters.values())


def _rank(folder: Path, cases: list[tuple[str, str]]) -> None:
    # The engine's adapter would start as the identity, where half of the gradient is 0.
    lora.add_lora = lambda network, *_: [p for p in adapted(network).parameters() if p.requires_grad]
    for wrapper, estimator in cases:
        gradient = _gradient(WRAPPERS.index(wrapper), estimator)
        if dist.get_rank() == 0:
            torch.save(gradient, folder / f"{wrapper}-{estimator}")
    _follow_target(folder)


def _follow_target(folder: Path) -> None:
    """The regularizer's target after two batches, of which the ranks have unequal shares."""
    variation = StepwiseVariation(VariationConfig(target_decay=0.5))
    norms = torch.tensor([[1.0, 2.0, 6.0], [11.0]][dist.get_rank()])
    variation.start(global_mean(norms[:, None]))
    timesteps = torch.zeros(len(norms), dtype=torch.int64)
    variation.update(global_mean(variation.errors(2 * norms, timesteps)))
    (folder / f"targets-{dist.get_rank()}").write_text(json.dumps(variation.targets))


@dataclass(frozen=True)
class Ran:
    """What gloo processes found."""

    gradients: dict[tuple[str, str], Tensor]
    targets: list[list[float]]  # of each rank


def _run(folder: Path, cases: list[tuple[str, str]], ranks: int) -> Ran:
    start(ranks, _rank, folder, cases)
    gradients = {case: torch.load(folder / "-".join(case), weights_only=True) for case in cases}
    return Ran(gradients, [json.loads((folder / f"targets-{rank}").read_text()) for rank in range(ranks)])


# A difference divides the rounding of the forward pass, which depends on the batch's shape, by its step.
TOLERANCES = {"double_backward": 1e-5, "central_difference": 1e-3, "one_sided_difference": 5e-3}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As in the ranks: sums over threads round otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return _run(tmp_path_factory.mktemp("two-ranks"), CASES, RANKS)


@pytest.fixture(scope="module")
def accumulated(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """One rank, which takes the two micro-batches one after another."""
    return _run(tmp_path_factory.mktemp("one-rank"), ALONE, 1)


@pytest.mark.parametrize("case", ALONE, ids="-".join)
def test_two_ranks_give_the_gradient_of_one(two_ranks: Ran, accumulated: Ran, case: tuple[str, str]) -> None:
    assert relative(two_ranks.gradients[case], accumulated.gradients[case]) <= 1e-5


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_the_gradient_is_that_of_plain_autograd(two_ranks: Ran, case: tuple[str, str]) -> None:
    # ZeRO-3 has a linear layer of its own, which rounds otherwise.
    tolerance = TOLERANCES[case[1]] if case[0] == "zero-3" else 1e-5
    assert relative(two_ranks.gradients[case], _plain_gradient(case[1], _parts())) <= tolerance


def test_ranks_with_unequal_shares_of_a_batch_follow_the_target_of_one_process(two_ranks: Ran) -> None:
    assert two_ranks.targets == [[7.5], [7.5]]  # a mean of 5 at first, then half of the way to 10


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_micro_batches_give_the_gradient_of_the_whole_batch(estimator: str) -> None:
    whole = _plain_gradient(estimator, [Draws.make(SAMPLES, size=8, text_width=32)])
    assert relative(_plain_gradient(estimator, _parts()), whole) <= TOLERANCES[estimator]


@pytest.mark.parametrize("estimator", ["one_sided_difference", "central_difference"])
def test_a_graph_of_its_own_gives_the_same_gradient(estimator: str) -> None:
    shared = _plain_gradient(estimator, _parts())
    assert relative(_plain_gradient(estimator, _parts(), separate=True), shared) <= TOLERANCES[estimator]
