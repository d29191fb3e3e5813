"""What training refuses, and what it says then."""

from __future__ import annotations

from pathlib import Path

import pytest

from smooth import store
from smooth.config import RunConfig
from smooth.data.dataset import LatentsDataset
from smooth.data.encoder import network_hashes
from smooth.models.pipeline import load_pipeline
from smooth.train.job import TrainJob
from smooth.train.loop import check_networks
from smooth.train.state import TrainError
from tests.synthetic import shapes_of, write_latents


def test_a_cache_of_another_vae_is_refused(tiny_base: str, tmp_path: Path) -> None:
    pipeline = load_pipeline(tiny_base)
    folder = str(write_latents(tmp_path / "latents", rows=4, **shapes_of(tiny_base)))
    job = TrainJob(RunConfig.load("tiny"), tiny_base, folder, str(tmp_path))
    manifest = {**store.read_manifest(folder), **network_hashes(pipeline)}
    store.write_manifest(folder, manifest)
    check_networks(LatentsDataset(folder), pipeline, job)
    parameter = next(pipeline.vae.parameters())
    parameter.data[0] += 1e-3
    with pytest.raises(TrainError, match=r"another vae than that of model\.base=.*run the latents stage"):
        check_networks(LatentsDataset(folder), pipeline, job)
