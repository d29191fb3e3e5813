"""A whole pipeline with what was trained inside its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from smooth.evaluate.subjects import Subject
from smooth.export import ExportError, adapters
from smooth.models import WEIGHTS_NAME, trained, trained_files
from smooth.models.pipeline import read_pipeline, text_encoders

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


def merge(subject: Subject, strength: float = 1.0) -> StableDiffusionPipeline:
    """The subject's pipeline in fp32 with its own scheduler: W + strength · alpha / rank · up · down.

    Args:
        subject: a LoRA or a whole UNet beside its base, or a pipeline.
        strength: of a LoRA; 0 is the base, 1 what was trained.

    Raises:
        ExportError: the LoRA does not fit the base; or a strength for a model that is no LoRA.
    """
    pipeline: Any = read_pipeline(subject.base, revision=subject.revision)
    lora = subject.trained is not None and trained_files(subject.trained) == [WEIGHTS_NAME]
    if strength != 1 and not lora:
        raise ExportError(f"--strength {strength:g} is for a LoRA; a whole UNet or pipeline has none, leave it out")
    if subject.trained is not None:
        if lora:
            _fuse(pipeline, subject.trained, strength, subject.base)
        else:
            trained.attach(pipeline, subject.trained)(True)
    for name in ("unet", "vae", *text_encoders(pipeline)):
        getattr(pipeline, name).requires_grad_(False).eval()
    return cast("StableDiffusionPipeline", pipeline)


def _fuse(pipeline: Any, folder: str, strength: float, base: str) -> None:
    adapter = adapters.read(folder)
    misfit = f"the LoRA does not fit {base}; name the pipeline that it was trained from by --base"
    try:
        trained.attach(pipeline, folder)
    except (RuntimeError, ValueError) as error:
        raise ExportError(f"{misfit} ({error})") from error
    adapted = {name for name, module in pipeline.unet.named_modules() if getattr(module, "lora_A", None)}
    if lost := sorted(adapted ^ set(adapter.modules)):
        raise ExportError(f"{misfit} (there is no {lost[0]})")
    pipeline.fuse_lora(lora_scale=strength)
    pipeline.unload_lora_weights()
