"""How much of a worker's device the model's own arithmetic uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

from smooth.config import TrainConfig

TERA: Final = 1e12
PEAKS: Final = {
    "A100": 312.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "H200 NVL": 836.0,
    "H200": 989.0,
    "L40S": 362.0,
    "L4": 121.0,
    "T4": 65.0,
}
"""Dense TFLOP/s of bf16 and fp16 tensor cores, of the makers' data sheets, by a part of the GPU's name; longest first
where names share a beginning. float32 is left out: it depends on whether TF32 may stand in."""


def peak_tflops(config: TrainConfig, device: torch.device) -> float | None:
    """Of one worker: as ``train.peak_tflops`` says, or of a GPU that is known; None where neither tells."""
    if config.peak_tflops is not None:
        return config.peak_tflops
    if device.type != "cuda" or config.precision == "fp32":
        return None
    return known_peak(torch.cuda.get_device_name(device))


def known_peak(name: str) -> float | None:
    """Of a whole GPU by its name as the driver tells it."""
    words = f" {name.replace('-', ' ')} "
    if " MIG " in words:
        return None
    return next((peak for part, peak in PEAKS.items() if f" {part} " in words), None)


@dataclass(frozen=True)
class Utilisation:
    """Achieved model FLOPs of a worker, and their share of the peak where one is known."""

    flops: float  # of a sample: rehearsal.flops_per_sample
    peak: float | None  # TFLOP/s

    def metrics(self, samples_per_second: float) -> dict[str, float]:
        """Of a worker that trains on so many samples a second, all that a step waits for included."""
        achieved = self.flops * samples_per_second / TERA
        metrics = {"tflops_per_worker": achieved}
        if self.peak is not None:
            metrics["model_flops_utilisation"] = achieved / self.peak
        return metrics
