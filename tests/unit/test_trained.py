"""A UNet that was fine-tuned as a whole, from training to evaluation and to the registered model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from smooth.config import TrainConfig
from smooth.models import trained, trained_files
from smooth.models.pipeline import load_pipeline
from smooth.registry_pyfunc import TextToImage
from smooth.store import ArtifactError


@pytest.fixture(scope="module")
def tuned(tiny_base: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """The folder of a training whose weights all moved, and the weights."""
    folder = tmp_path_factory.mktemp("tuned")
    unet = load_pipeline(tiny_base).unet
    config = TrainConfig(method="full")
    parameters = trained.choose(unet, config, seed=0)
    assert len(parameters) == len(list(unet.parameters()))
    weights = {name: 1.1 * parameter.detach() for name, parameter in parameters.items()}
    trained.save(str(folder), weights, unet, config)
    return folder, weights


def test_a_whole_unet_is_switched_on_and_off(tiny_base: str, tuned: tuple[Path, dict[str, Tensor]]) -> None:
    folder, weights = tuned
    assert {Path(name).name for name in trained_files(str(folder))} == {
        "config.json",
        "diffusion_pytorch_model.safetensors",
    }
    pipeline = load_pipeline(tiny_base)
    base = pipeline.unet.state_dict()
    switch = trained.attach(pipeline, str(folder))
    for on, expected in ((True, weights), (False, base), (True, weights)):
        switch(on)
        assert all(torch.equal(weight, expected[name]) for name, weight in pipeline.unet.state_dict().items())


def test_the_registered_model_samples_with_it(tiny_base: str, tuned: tuple[Path, dict[str, Tensor]]) -> None:
    folder, weights = tuned
    flavor = {"adapter_weights": ".", "base_model": tiny_base}
    described = {"flavors": {"diffusers": flavor}, "metadata": {"smooth.base": tiny_base}}
    (folder / "MLmodel").write_text(yaml.safe_dump(described))
    pipeline = TextToImage(folder, {"device": "cpu"}).get_raw_model()
    assert all(torch.equal(weight, weights[name]) for name, weight in pipeline.unet.state_dict().items())


def test_a_folder_without_weights_says_so(tmp_path: Path, tiny_base: str) -> None:
    with pytest.raises(ArtifactError, match=r"neither pytorch_lora_weights\.safetensors nor the folder unet"):
        trained.attach(load_pipeline(tiny_base), str(tmp_path))
