"""The whole path on a pipeline of XL's shape: latents, train, evaluate; and its conditions against diffusers' own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from smooth import store
from smooth.config import RunConfig
from smooth.data import latents
from smooth.data.dataset import LatentsDataset
from smooth.data.encoder import Encoder
from smooth.data.loader import LatentLoader
from smooth.evaluate import run as evaluate
from smooth.evaluate.subjects import Subject
from smooth.evaluate.worker import Painter
from smooth.models.pipeline import ModelError, load_pipeline
from smooth.train import launch
from smooth.train.engine import start_engine
from tests.protocols import protocol
from tests.shards import png, sample, write_ingest
from tests.xl import IMAGE_SIZE, WIDTHS, write_pipeline

pytestmark = [
    pytest.mark.usefixtures("ray_local"),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),  # MLflow's, of SQLAlchemy
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),  # Ray Data, of its own options
    pytest.mark.filterwarnings("ignore::smooth.evaluate.frechet.BiasWarning"),  # of few pictures
]
ORIGINAL = (90, 120)  # pixels: height, width
PICTURES = 6


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunConfig]:
    root = tmp_path_factory.mktemp("xl")
    base = write_pipeline(root / "base")
    overrides = {
        "model.base": base,
        "storage.root": root / "artifacts",
        "latents.image_size": IMAGE_SIZE,
        "latents.flip": "true",
        "train.steps": 2,
        "train.global_batch_size": 4,
        "train.micro_batch_size": 2,
        "train.workers": 1,
        "train.caption_dropout": 0.3,
        "train.max_failures": 0,
        "train.istd_every": "null",
        "evaluate.prompts": 1,
        "evaluate.frames": 3,
        "evaluate.pictures": 4,
        "evaluate.steps": 2,
        "evaluate.strips": 1,
        "evaluate.reconstructions": 0,  # inversion knows one text embedding
        "evaluate.actors": 1,
        "experiment": "xl-test",
    }
    loaded = RunConfig.load("tiny", [f"{key}={value}" for key, value in overrides.items()])
    noise = np.random.default_rng(0).integers(0, 255, (PICTURES, 48, 64, 3), np.uint8)
    samples = {f"{n:09d}": sample(png(pixels), f"picture {n % 3}", ORIGINAL) for n, pixels in enumerate(noise)}
    write_ingest(loaded.stage_dir("ingest"), [samples])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/mlflow.db")
        latents.run(loaded)
        yield loaded


@pytest.fixture(scope="module")
def pipeline(config: RunConfig) -> Any:
    return load_pipeline(config.model.base)


def test_conditions_are_those_of_the_pipeline(config: RunConfig, pipeline: Any) -> None:
    dataset = LatentsDataset(config.stage_dir("latents"))
    assert len(dataset) == 2 * PICTURES  # each with its mirror image
    text, _, pooled, _ = pipeline.encode_prompt(["picture 1"], do_classifier_free_guidance=False)
    row, mirrored = dataset.row(2), dataset.row(3)
    tolerance = {"rtol": 2**-10, "atol": 1e-4}
    np.testing.assert_allclose(row.text.astype(np.float32), text[0], **tolerance)
    np.testing.assert_allclose(row.pooled.astype(np.float32), pooled[0], **tolerance)
    # The middle 90 x 90 of 90 x 120: 15 pixels from either side, in the scale of 32 for 90.
    expected = pipeline._get_add_time_ids(
        ORIGINAL, (0, 15 * IMAGE_SIZE / 90), (IMAGE_SIZE, IMAGE_SIZE), torch.float32, WIDTHS[1]
    )
    for one in (row, mirrored):
        np.testing.assert_allclose(one.time_ids, expected[0])
    # This pipeline takes zeros for no prompt.
    assert not dataset.null_text.any()
    assert not dataset.null_pooled.any()
    dataset.close()


def test_the_engine_predicts_what_the_pipelines_unet_does(config: RunConfig, pipeline: Any) -> None:
    dataset = LatentsDataset(config.stage_dir("latents"))
    batch = LatentLoader(dataset, seed=1, timesteps=1000, caption_dropout=0.5, global_batch_size=6).batch(range(6))
    dropped = ~batch.text.flatten(1).any(1)
    assert 0 < int(dropped.sum()) < 6
    assert torch.equal(dropped, ~batch.added["text_embeds"].any(1))
    with torch.no_grad():
        told = {"encoder_hidden_states": batch.text, "added_cond_kwargs": batch.added}
        expected = pipeline.unet(batch.noise, batch.timesteps, **told).sample
        told["added_cond_kwargs"] = {name: value.flip(0) for name, value in batch.added.items()}
        other = pipeline.unet(batch.noise, batch.timesteps, **told).sample
        unet, plain = load_pipeline(config.model.base).unet, config.train.model_copy(update={"zero_stage": 0})
        engine = start_engine(unet, plain, 0, torch.device("cpu"))
        found = engine(batch.noise, batch.timesteps, batch.text, batch.added)
        # Copies of the batch one after another, as a difference quotient asks for.
        noises, steps, texts = batch.noise.repeat(2, 1, 1, 1), batch.timesteps.repeat(2), batch.text.repeat(2, 1, 1)
        twice = engine(noises, steps, texts, batch.added)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(twice, torch.cat([expected, expected]), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(other, expected, rtol=1e-4, atol=1e-5)
    dataset.close()


def test_it_trains_and_is_evaluated(config: RunConfig) -> None:
    trained = launch.run(config)
    assert trained["samples_seen"] == 8
    assert trained["pictures"] == ["validation/step-000002.png"]
    evaluated = evaluate.run(config)
    assert {metric["name"] for metric in evaluated["metrics"]} > {"ISTD"}
    assert store.exists(store.join(config.stage_dir("evaluate"), "strips.png"))


def test_inversion_is_refused_before_anything_is_sampled(config: RunConfig) -> None:
    model = Subject(config.model.base)
    with pytest.raises(ModelError, match=r"takes others too; set evaluate\.reconstructions=0"):
        Painter({"base": model, "smooth": model}, protocol(reconstructions=1), cuda=False)


def test_token_ids_of_two_encoders_are_refused(config: RunConfig) -> None:
    with pytest.raises(ValueError, match=r"has two; set latents\.cache_text=true"):
        Encoder(config.model.base, None, cache_text=False)
