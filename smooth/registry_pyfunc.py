"""The registered model as MLflow's pyfunc: prompt and seed in, PNG out.

A copy of this file lies in each registered model and is imported from there, so it needs diffusers and not this
package. MLflow's own diffusers flavour takes no seed: with it nobody can ask for the same picture twice.
"""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import Any

import pandas as pd
import yaml


class TextToImage:
    """Base pipeline with the adapter; the weights are loaded with the first picture."""

    def __init__(self, folder: Path, model_config: dict[str, Any]) -> None:
        described = yaml.safe_load((folder / "MLmodel").read_text())
        flavor = described["flavors"]["diffusers"]
        self._adapter = folder / flavor["adapter_weights"]
        self._base = model_config.get("base_model") or find_base(described["metadata"]["smooth.base"], flavor)
        self._revision = described["metadata"].get("smooth.base_revision") or flavor.get("base_model_revision")
        self._device = model_config.get("device")
        self._pipeline: Any = None
        self._lock = threading.RLock()  # a server's threads share the pipeline, which keeps a picture's state

    def get_raw_model(self) -> Any:
        """The diffusers pipeline, on the GPU where there is one, else on the CPU in float32."""
        with self._lock:
            if self._pipeline is None:
                self._pipeline = self._load()
            return self._pipeline

    def _load(self) -> Any:
        import torch
        from diffusers import DDIMScheduler, DiffusionPipeline, UNet2DConditionModel

        device = self._device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.float32 if device == "cpu" else torch.float16
        loader: Any = DiffusionPipeline
        try:
            pipeline = loader.from_pretrained(
                self._base, revision=self._revision, dtype=dtype, use_safetensors=True, safety_checker=None
            )
        except OSError as error:
            raise ValueError(
                f"the base model {self._base} of this adapter can't be loaded ({error}); give its folder or hub id: "
                'mlflow.pyfunc.load_model(uri, model_config={"base_model": "..."})'
            ) from error
        scheduler: Any = DDIMScheduler
        pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config)
        if (self._adapter / "unet").is_dir():  # fine-tuned as a whole
            unet: Any = UNet2DConditionModel
            pipeline.unet = unet.from_pretrained(self._adapter / "unet", dtype=dtype, use_safetensors=True)
        else:
            pipeline.load_lora_weights(str(self._adapter), use_safetensors=True)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(device)

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> list[bytes]:
        """One PNG a row of ``data``: a prompt, and a ``seed`` where the column is there (else the parameter's).

        Rows are sampled one by one, so that a picture does not depend on its neighbours.
        """
        settings = dict(params or {})
        default_seed = settings.pop("seed", 0)
        negative = settings.pop("negative_prompt", "") or None
        rows = data if isinstance(data, dict | pd.DataFrame) else {"prompt": _rows(data)}
        table = pd.DataFrame(rows)
        seeds = table["seed"].fillna(default_seed) if "seed" in table else [default_seed] * len(table)
        return [
            self._picture(str(prompt), int(seed), negative, settings)
            for prompt, seed in zip(table["prompt"], seeds, strict=True)
        ]

    def _picture(self, prompt: str, seed: int, negative: str | None, settings: dict[str, Any]) -> bytes:
        import torch

        generator = torch.Generator().manual_seed(seed)  # on the CPU: the same noise on every device
        with self._lock:
            pipeline = self.get_raw_model()
            image = pipeline(prompt=prompt, negative_prompt=negative, generator=generator, **settings).images[0]
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        return buffer.getvalue()


def find_base(name: str, flavor: dict[str, Any]) -> str:
    """The base model: a built-in one where this package is installed, else the reference stored at registration."""
    if name.startswith("builtin:"):
        try:
            from smooth.config import ConfigError, resolve_model
        except ModuleNotFoundError:
            return str(flavor["base_model"])
        try:
            return resolve_model(name)
        except ConfigError:
            return str(flavor["base_model"])
    return str(flavor["base_model"])


def _rows(data: Any) -> list[str]:
    return [data] if isinstance(data, str) else list(data)


def _load_pyfunc(path: str, model_config: dict[str, Any] | None = None) -> TextToImage:
    """What MLflow calls to load the model."""
    return TextToImage(Path(path), model_config or {})
