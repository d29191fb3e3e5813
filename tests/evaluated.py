"""Finished artifacts that evaluation and registration start from: shards, latents, and a random adapter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from smooth import store, tracking
from smooth.config import RunConfig
from smooth.models.pipeline import load_pipeline
from tests.shards import png, sample, write_ingest
from tests.synthetic import shapes_of, write_latents

SHORT = [
    "evaluate.prompts=2",
    "evaluate.frames=3",
    "evaluate.pictures=4",
    "evaluate.steps=2",
    "evaluate.strips=1",
    "evaluate.batch_size=3",
    "evaluate.reconstructions=9",  # of eight
    "evaluate.reconstruction_batch=8",
    "evaluate.null_text_steps=1",
    "experiment=evaluate-test",
]


def trained(base: str, root: Path, *overrides: str) -> RunConfig:
    """A run config under whose root ingest, latents and train are finished; needs ``MLFLOW_TRACKING_URI``."""
    config = RunConfig.load("tiny", [f"model.base={base}", f"storage.root={root}", *SHORT, *overrides])
    if not store.is_complete(config.stage_dir("ingest")):
        noise = np.random.default_rng(0).integers(0, 255, (8, 64, 70, 3), np.uint8)
        samples = {f"{number:09d}": sample(png(pixels), "picture") for number, pixels in enumerate(noise)}
        write_ingest(config.stage_dir("ingest"), [samples])
    if not store.is_complete(config.stage_dir("latents")):
        write_latents(config.stage_dir("latents"), rows=12, **shapes_of(base))
    if not store.is_complete(config.stage_dir("train")):
        with tracking.start_run(config, "train") as run:
            run.log_metrics({"loss": 0.5})
        write_adapter(base, config.stage_dir("train"))
        store.write_manifest(
            config.stage_dir("train"),
            {"stage": "train", "run_id": run.run_id, "ingest": "synthetic", "base": base}
            | {"steps": 3, "samples_seen": 48, "final": {}},
        )
    return config


def write_adapter(base: str, folder: str, scale: float = 0.05) -> None:
    """A diffusers LoRA of the base's UNet whose weights are not zero, so that it changes every picture."""
    torch.manual_seed(0)
    pipeline = load_pipeline(base)
    pipeline.unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_v"]))
    state = {key: scale * torch.randn_like(value) for key, value in get_peft_model_state_dict(pipeline.unet).items()}
    pipeline.save_lora_weights(folder, unet_lora_layers=state)
