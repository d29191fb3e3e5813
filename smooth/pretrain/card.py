"""The model card of the built-in base, written by the run that made it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from smooth.pretrain.run import Recipe

_CARD = """---
license: cc-by-sa-4.0
library_name: diffusers
pipeline_tag: text-to-image
---
# tiny: Stable Diffusion in small

A `StableDiffusionPipeline` with every part small: pictures of 64 x 64 px, latents 4 x 16 x 16, captions as
prompts, classifier-free guidance. It is the built-in default of Smooth, so that the whole chain runs on a
laptop; it is no general image model.

![samples](samples.png)

Prompts of the grid, row by row: {prompts}. 25 DDIM steps, guidance 3.

| | |
|---|---|
| made by | `{command}` |
| device | {device} |
| time | autoencoder {vae_minutes:.1f} min, UNet and text encoder {unet_minutes:.1f} min |
| data | {drawings:.0f} OpenMoji drawings (95 %), {styles} styles each: background, size, angle, place |
| captions | English names of the `emoji` package; skin tone left out of 30 % of them, caption left out of 10 % |
| autoencoder | {psnr:.2f} dB PSNR on the 5 % of drawings it never saw |
| parameters | {parameters}, stored in half precision |

## Licence

Pictures: [OpenMoji](https://openmoji.org), the open-source emoji and icon project, CC BY-SA 4.0. The weights are
derived from them and carry the same licence.

## Limits

It knows emoji. Prompts that are no emoji name give something near one. Faces in groups and small text are poor.
"""


def write_card(out: Path, recipe: Recipe, facts: dict[str, float], device: torch.device) -> None:
    """Write ``README.md`` beside the weights; every figure in it was measured by this run."""
    from safetensors import safe_open

    from smooth.pretrain.run import SAMPLE_PROMPTS

    counts = {}
    for part in ("vae", "text_encoder", "unet"):
        path = next((out / part).glob("*.safetensors"))
        with safe_open(path, framework="np") as weights:
            counts[part] = sum(int(weights.get_tensor(name).size) for name in weights.keys())  # noqa: SIM118
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    command = f"smooth pretrain --device {device.type} --styles {recipe.styles}"
    for stage, budget in (("autoencoder", recipe.autoencoder), ("denoiser", recipe.denoiser)):
        command += f" --{stage}-steps {budget.steps} --{stage}-batch {budget.batch_size}"
        if budget.minutes is not None:
            command += f" --{stage}-minutes {budget.minutes:g}"
    card = _CARD.format(
        prompts=", ".join(SAMPLE_PROMPTS),
        command=command,
        device=name,
        vae_minutes=facts["autoencoder_seconds"] / 60,
        unet_minutes=facts["denoiser_seconds"] / 60,
        drawings=facts["drawings"],
        styles=recipe.styles,
        psnr=facts["psnr_db"],
        parameters=", ".join(f"{part} {count / 1e6:.1f} M" for part, count in counts.items()),
    )
    (out / "README.md").write_text(card)
