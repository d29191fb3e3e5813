"""What is not a text-to-image pipeline of this kind is refused where it is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from smooth.models.pipeline import ModelError, load_pipeline


def test_a_pipeline_of_other_parts_is_refused_by_name(tmp_path: Path) -> None:
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    unet = UNet2DModel(sample_size=8, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1, **blocks)
    DDPMPipeline(unet=unet, scheduler=DDPMScheduler()).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is a DDPMPipeline without vae and text_encoder; give a Stable Diffusion"):
        load_pipeline(str(tmp_path))
