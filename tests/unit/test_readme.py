"""The README's training loop runs as it is printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch.nn import functional

from tests.numerics.networks import Draws, adapted, unet

README = Path(__file__).parents[2] / "README.md"


def test_the_loop_of_ones_own_trains() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    (code,) = (block for block in blocks if "StepwiseVariation(" in block)
    network = adapted(unet((16, 32), layers=1))
    draws = Draws.make(2, size=8)
    places: dict[str, Any] = {
        "torch": torch,
        "functional": functional,
        "unet": network,
        "scheduler": DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        "loader": [(draws.clean, draws.text)] * 2,
    }
    exec(code, places)
    assert places["variation"].count == 3  # the start, and two batches
    gradients = [parameter.grad for parameter in network.parameters() if parameter.requires_grad]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.abs().max() > 0 for gradient in gradients)
