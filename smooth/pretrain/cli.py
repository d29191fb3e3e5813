"""The command `smooth pretrain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def pretrain(
    out: Annotated[Path, typer.Option(help="folder of the finished pipeline")] = Path("smooth/models/tiny"),
    work: Annotated[Path, typer.Option(help="pictures, checkpoints and sample grids")] = Path(".smooth/pretrain"),
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N")] = "cpu",
    styles: Annotated[int, typer.Option(help="pictures per drawing", min=1)] = 16,
    autoencoder_steps: Annotated[int, typer.Option(min=1)] = 8000,
    autoencoder_batch: Annotated[int, typer.Option(min=1)] = 256,
    autoencoder_minutes: Annotated[float | None, typer.Option(help="end the first stage after this time")] = None,
    denoiser_steps: Annotated[int, typer.Option(min=1)] = 20000,
    denoiser_batch: Annotated[int, typer.Option(min=1)] = 512,
    denoiser_minutes: Annotated[float | None, typer.Option(help="end the second stage after this time")] = None,
) -> None:
    """Train the built-in base model from captioned OpenMoji; goes on where it stopped.

    For example, in half an hour:

        smooth pretrain --out base --autoencoder-minutes 10 --denoiser-minutes 20
    """
    import torch

    from smooth.pretrain.run import Recipe, pretrain
    from smooth.pretrain.runner import Budget

    recipe = Recipe(
        styles,
        Budget(autoencoder_steps, autoencoder_batch, learning_rate=1e-3, minutes=autoencoder_minutes),
        Budget(denoiser_steps, denoiser_batch, learning_rate=6e-4, minutes=denoiser_minutes, warmup=500),
    )
    facts = pretrain(out, work, recipe, torch.device(device))
    for name, value in facts.items():
        typer.echo(f"{name}: {value:.2f}")
