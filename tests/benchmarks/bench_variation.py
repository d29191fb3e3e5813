"""What the regularizer costs: four arms on the same UNet and batch, in turns, each in a process of its own.

    none      the base loss alone, on cached latents and text
    original  the paper's recipe as published code runs it: pictures and captions encoded in the step, attention
              without a fused kernel, double backward
    ours      cached latents and text, the default estimator, every step
    lazy      ours on every 4th micro-step with four times the weight (a mean over 4 micro-steps)

Memory is the peak of a step above the models at rest. ``--arch sd15 --device cuda`` is Stable Diffusion 1.5 with
random weights; ``quarter`` has a quarter of its widths and the same number of tokens.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL
from torch import Tensor, multiprocessing, nn
from transformers import CLIPTextConfig, CLIPTextModel

from smooth.config import VariationConfig
from smooth.diffusion.estimators import Denoiser, denoise_from
from smooth.diffusion.objective import denoising_loss
from smooth.diffusion.variation import StepwiseVariation
from smooth.plan import architecture
from smooth.plan.architecture import Architecture
from tests.benchmarks.results import Result, report
from tests.numerics.networks import adapted, schedule, unet

LAZY = 4
TOKENS = 77
Model = TypeVar("Model", bound=nn.Module)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Arch:
    """Widths of the three models."""

    unet: tuple[int, ...]
    autoencoder: tuple[int, ...]
    text: int
    groups: int

    @classmethod
    def of(cls, known: Architecture, part: int, groups: int) -> Arch:
        """The widths of a known architecture, divided."""
        unet, vae = (
            tuple(width // part for width in config["block_out_channels"]) for config in (known.unet, known.vae)
        )
        return cls(unet, vae, known.text_shape[1] // part, groups)


SD15 = architecture.named("sd15")
ARCHS = {
    "sd15": Arch.of(SD15, 1, groups=32),
    "quarter": Arch.of(SD15, 4, groups=16),
    "small": Arch((32, 64), (32, 32, 32, 32), 48, 16),
}
ARMS = {
    "none": VariationConfig(weight=0),
    "original": VariationConfig(estimator="double_backward"),
    "ours": VariationConfig(),
    "lazy": VariationConfig(every=LAZY),
}


@dataclass(frozen=True)
class Spec:
    """What all arms share."""

    device: str
    arch: str
    size: int  # of the latents, pixels / 8
    batch: int
    dtype: str
    compile: bool


class Arm:
    """One training step's losses and gradients, over and over, as an arm does it."""

    def __init__(self, name: str, spec: Spec) -> None:
        arch, device, dtype = ARCHS[spec.arch], spec.device, DTYPES[spec.dtype]
        self.encodes = name == "original"
        self.variation = StepwiseVariation(ARMS[name], dtype=dtype)
        self.variation.start([0.1])
        self.dtype, self.schedule = dtype, schedule().to(device)
        self.unet = _cast(adapted(unet(arch.unet, text_width=arch.text, groups=arch.groups)), spec)
        self.network: Callable[..., Any] = torch.compile(self.unet) if spec.compile and not self.encodes else self.unet
        trainable = [parameter for parameter in self.unet.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trainable, lr=1e-6)
        if self.encodes:
            self.autoencoder = _cast(_autoencoder(arch), spec)
            self.text_encoder = _cast(_text_encoder(arch), spec)
        draw = torch.Generator().manual_seed(0)
        shape = (spec.batch, 4, spec.size, spec.size)
        self.latents, self.noise, direction = torch.randn(3, *shape, generator=draw).to(device)
        self.direction = direction / shape[1] ** 0.5 / spec.size
        self.text = torch.randn(spec.batch, TOKENS, arch.text, generator=draw).to(device, dtype)
        self.timesteps = torch.linspace(900, 100, spec.batch, device=device).long()
        self.pictures = torch.rand(spec.batch, 3, 8 * spec.size, 8 * spec.size, generator=draw).to(device, dtype)
        self.token_ids = torch.randint(0, 1000, (spec.batch, TOKENS), generator=draw).to(device)
        self.micro_step = 0

    def step(self) -> None:
        """One optimizer step of one micro-step."""
        latents, text = self._encode() if self.encodes else (self.latents, self.text)
        denoise = denoise_from(self._denoiser(), self.schedule, latents, self.timesteps, text)
        target = self.schedule.target(latents, self.noise, self.timesteps)
        if self.variation.is_due(self.micro_step):
            estimate = self.variation.estimator(denoise, self.noise, self.direction)
            loss = denoising_loss(estimate.output, target).mean()
            loss = loss + self.variation.weight * self.variation.penalty(estimate.norms, self.timesteps).mean()
        else:
            loss = denoising_loss(denoise(self.noise)[0], target).mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.micro_step += 1

    @torch.no_grad()
    def _encode(self) -> tuple[Tensor, Tensor]:
        moments = self.autoencoder.encode(2 * self.pictures - 1).latent_dist
        return moments.sample().float() * 0.18215, self.text_encoder(self.token_ids).last_hidden_state

    def _denoiser(self) -> Denoiser:
        def call(noisy: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
            output: Tensor = self.network(noisy.to(self.dtype), timesteps, encoder_hidden_states=text).sample
            return output.float()

        return call


def _cast(model: Model, spec: Spec) -> Model:
    return model.to(spec.device) if spec.dtype == "fp32" else model.to(spec.device, DTYPES[spec.dtype])


def _autoencoder(arch: Arch) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=arch.autoencoder,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=arch.groups,
    ).requires_grad_(False)


def _text_encoder(arch: Arch) -> CLIPTextModel:
    width = arch.text
    config = CLIPTextConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=12, num_attention_heads=12
    )
    return CLIPTextModel(config).requires_grad_(False)


class Memory:
    """Peak memory in MiB above what was in use when this object was made."""

    def __init__(self, device: str) -> None:
        gc.collect()
        self.cuda = device == "cuda"
        self.rest = torch.cuda.memory_allocated() if self.cuda else _status("VmRSS")

    def peak(self) -> float:
        """The peak since the process began (CPU) or since this object (GPU)."""
        peak = torch.cuda.max_memory_allocated() if self.cuda else _status("VmHWM")
        return (peak - self.rest) / 2**20


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def serve(connection: Connection, name: str, spec: Spec) -> None:
    """A child: answer each request with seconds a micro-step and the peak memory so far."""
    torch.set_num_threads(1)
    arm = Arm(name, spec)
    memory = Memory(spec.device)
    wait: Callable[[], None] = torch.cuda.synchronize if spec.device == "cuda" else lambda: None
    connection.send("ready")
    while connection.recv():
        count = ARMS[name].every
        wait()
        started = time.perf_counter()
        for _ in range(count):
            arm.step()
        wait()
        connection.send(((time.perf_counter() - started) / count, memory.peak()))


def measure(spec: Spec, rounds: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of each round and peak memory of each arm."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    seconds: dict[str, list[float]] = {name: [] for name in ARMS}
    peaks: dict[str, float] = {}
    for name in ARMS:
        pipes[name], theirs = context.Pipe()
        context.Process(target=serve, args=(theirs, name, spec), daemon=True).start()
        pipes[name].recv()
    for number, name in itertools.product(range(1, rounds + 1), ARMS):
        pipes[name].send(True)
        elapsed, peaks[name] = pipes[name].recv()
        print(f"round {number} of {rounds}: {name:8} {elapsed:8.3f} s, {peaks[name]:6.0f} MiB", flush=True)
        seconds[name].append(elapsed)
    for pipe in pipes.values():
        pipe.send(False)
    return seconds, peaks


def results_of(seconds: dict[str, list[float]], peaks: dict[str, float], batch: int) -> list[Result]:
    """Throughputs, memory, and the ratios that count (median of the rounds' own ratios)."""

    def slower(arm: str, other: str) -> float:
        return statistics.median(a / b for a, b in zip(seconds[arm], seconds[other], strict=True))

    results = []
    for name in ARMS:
        results.append(Result(f"{name}: throughput", batch / statistics.median(seconds[name]), "samples/s"))
        results.append(Result(f"{name}: peak memory", peaks[name], "MiB"))
    return [
        *results,
        Result("ours / original: samples/s", slower("original", "ours"), "x", ">= 3"),
        Result("ours / original: peak memory", peaks["ours"] / peaks["original"], "x", "<= 0.5"),
        Result("lazy / original: samples/s", slower("original", "lazy"), "x", ">= 6"),
        Result("lazy / none: time", slower("lazy", "none"), "x", "<= 1.6"),
        Result("ours / none: time", slower("ours", "none"), "x"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--arch", choices=list(ARCHS), default="quarter")
    parser.add_argument("--size", type=int, default=64, help="of the latents: pixels / 8 (64)")
    parser.add_argument("--batch", type=int, help="samples a micro-step (1 on the CPU, 3 on a GPU)")
    parser.add_argument("--dtype", choices=list(DTYPES), help="fp32 on the CPU, bf16 on a GPU")
    parser.add_argument("--compile", action="store_true", help="torch.compile in all arms but the original")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    gpu = given.device == "cuda"
    batch, dtype = given.batch or (3 if gpu else 1), given.dtype or ("bf16" if gpu else "fp32")
    spec = Spec(given.device, given.arch, given.size, batch, dtype, given.compile)
    where = torch.cuda.get_device_name() if gpu else "CPU, 1 thread an arm"
    print(f"{where}; {given.arch} at {8 * given.size} px, batch {batch}, {dtype}, LoRA rank 8, {given.rounds} rounds")
    seconds, peaks = measure(spec, given.rounds)
    report(f"variation-{given.device}-{given.arch}", results_of(seconds, peaks, batch))


if __name__ == "__main__":
    main()
