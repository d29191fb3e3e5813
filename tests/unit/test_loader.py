"""The loader is a function of (seed, global sample index): whoever asks, and whenever, gets the same numbers."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from smooth import store
from smooth.data import dataset
from smooth.data.dataset import LatentsDataset
from smooth.data.loader import Batch, LatentLoader
from tests.synthetic import SCALING_FACTOR, write_latents

SHAPE = (4, 8, 8)
TEXT_SHAPE = (3, 5)
ROWS = 50


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("loader") / "latents"
    return str(write_latents(path, rows=ROWS, latent_shape=SHAPE, text_shape=TEXT_SHAPE))


def _loader(folder: str, seed: int = 1, caption_dropout: float = 0.0) -> LatentLoader:
    return LatentLoader(LatentsDataset(folder), seed=seed, timesteps=1000, caption_dropout=caption_dropout)


def _by_index(batches: list[Batch]) -> dict[int, dict[str, Tensor]]:
    samples: dict[int, dict[str, Tensor]] = {}
    for batch in batches:
        for place, index in enumerate(batch.indices.tolist()):
            assert index not in samples
            samples[index] = {name: value[place] for name, value in vars(batch).items()}
    return samples


def _assert_same(left: dict[int, dict[str, Tensor]], right: dict[int, dict[str, Tensor]]) -> None:
    assert left.keys() == right.keys()
    for index, sample in left.items():
        for name, value in sample.items():
            assert torch.equal(value, right[index][name]), (index, name)


def test_batch_has_the_shapes_and_dtypes_of_the_contract(folder: str) -> None:
    batch = _loader(folder).batch(range(6))
    for tensor in (batch.latents, batch.noise, batch.direction):
        assert tensor.shape == (6, *SHAPE)
        assert tensor.dtype == torch.float32
    assert batch.text.shape == (6, *TEXT_SHAPE)
    assert batch.text.dtype == torch.float32
    assert batch.timesteps.dtype == torch.int64


@pytest.mark.parametrize(("ranks", "micro_batch"), [(2, 4), (4, 2), (4, 4), (1, 4)])
def test_any_number_of_ranks_sees_the_same_global_batches(folder: str, ranks: int, micro_batch: int) -> None:
    # 48 to 64 runs over the end of the first epoch of 50 rows.
    one = _by_index(_loader(folder, caption_dropout=0.3).micro_batches(48, 16, 16, 0, 1))
    assert sorted(one) == list(range(48, 64))
    many: list[Batch] = []
    for rank in range(ranks):
        share = _loader(folder, caption_dropout=0.3).micro_batches(48, 16, micro_batch, rank, ranks)
        assert len(share) == 16 // (ranks * micro_batch)
        many += share
    _assert_same(one, _by_index(many))


def test_resuming_in_the_middle_of_an_epoch_equals_going_through(folder: str) -> None:
    whole = _loader(folder)
    through = [batch for seen in range(0, 96, 8) for batch in whole.micro_batches(seen, 8, 8, 0, 1)]
    resumed = [batch for seen in range(72, 96, 8) for batch in _loader(folder).micro_batches(seen, 8, 8, 0, 1)]
    _assert_same(_by_index(through[9:]), _by_index(resumed))


@pytest.mark.parametrize("window", [16, 4096])
def test_an_epoch_is_a_permutation_and_no_two_are_alike(
    folder: str, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "WINDOW_ROWS", window)
    loader = _loader(folder)
    first, second = ([loader.row_number(epoch * ROWS + place) for place in range(ROWS)] for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(ROWS))
    assert first != second
    assert first != sorted(first)
    assert [_loader(folder, seed=2).row_number(place) for place in range(ROWS)] != first
    # Reading through a cache of two windows gives each row's own numbers.
    fresh = LatentsDataset(folder)
    for row in first:
        assert (loader.dataset.row(row)[0] == fresh.row(row)[0]).all()


def test_posterior_draw_has_the_moments_of_the_row_and_is_fresh_every_epoch(folder: str) -> None:
    loader = _loader(folder)
    places = {loader.row_number(place): place for place in range(ROWS)}
    later = {loader.row_number(place): place for place in range(ROWS, 2 * ROWS)}
    first = loader.batch([places[row] for row in range(ROWS)])
    second = loader.batch([later[row] for row in range(ROWS)])
    moments = torch.stack([torch.from_numpy(loader.dataset.row(row)[0]).float() for row in range(ROWS)])
    mean, log_variance = moments.chunk(2, dim=1)
    draws = torch.stack(
        [(batch.latents / SCALING_FACTOR - mean) / (log_variance / 2).exp() for batch in (first, second)]
    )
    assert not torch.equal(draws[0], draws[1])
    # 2 x 50 x 256 standard normals: mean within 5 sigma of 0, deviation within 5 sigma of 1.
    count = draws.numel()
    assert abs(float(draws.mean())) < 5 / count**0.5
    assert abs(float(draws.std()) - 1) < 5 / (2 * count) ** 0.5
    assert abs(float((draws[0] * draws[1]).mean())) < 5 / (count / 2) ** 0.5


def test_noise_direction_and_timesteps_are_distributed_as_the_paper_says(folder: str) -> None:
    batch = _loader(folder).batch(range(400))
    count = batch.noise.numel()
    assert abs(float(batch.noise.mean())) < 5 / count**0.5
    assert abs(float(batch.noise.std()) - 1) < 5 / (2 * count) ** 0.5
    squared_lengths = batch.direction.flatten(1).square().sum(1)
    assert float(squared_lengths.mean()) == pytest.approx(1, abs=0.02)
    assert abs(float((batch.noise * batch.direction).mean())) < 1e-3
    assert batch.timesteps.min() < 50
    assert batch.timesteps.max() > 950
    assert float(batch.timesteps.float().mean()) == pytest.approx(499.5, abs=5 * 289 / 400**0.5)


def test_dropped_captions_are_the_null_text_at_the_given_rate(folder: str) -> None:
    dropped = (_loader(folder, caption_dropout=0.25).batch(range(400)).text == 7).flatten(1).all(1)
    assert 60 < int(dropped.sum()) < 140
    assert not (_loader(folder).batch(range(400)).text == 7).flatten(1).all(1).any()


def test_rows_of_one_caption_share_its_text_and_the_cache_holds_it_once(tmp_path: Path) -> None:
    path = write_latents(tmp_path / "latents", rows=40, latent_shape=SHAPE, text_shape=TEXT_SHAPE, captions=6)
    shared = LatentsDataset(str(path))
    texts = np.concatenate([pq.read_table(path / f"part-{part}.texts.parquet")["text"].to_numpy() for part in (0, 1)])
    for row in range(len(shared)):
        assert (shared.row(row)[1].ravel() == texts[row % 6]).all()
    # Rows 0 to 15 of a part have all six captions; its last four rows have four.
    assert [len(rows.texts) for rows in shared._cache.values()] == [6, 4, 6, 4]


def test_token_ids_stay_whole_numbers(tmp_path: Path) -> None:
    path = write_latents(tmp_path / "latents", rows=12, latent_shape=SHAPE, text_shape=(5,))
    loader = _loader(str(path), caption_dropout=0.5)
    batch = loader.batch(range(12))
    assert loader.dataset.holds_token_ids
    assert (batch.text.shape, batch.text.dtype) == ((12, 5), torch.int64)
    dropped = (batch.text == 7).all(1)
    assert 0 < int(dropped.sum()) < 12
    for place in torch.nonzero(~dropped).flatten().tolist():
        assert batch.text[place].tolist() == loader.dataset.row(loader.row_number(place))[1].tolist()


def test_a_folder_with_other_rows_than_its_manifest_says_is_refused(tmp_path: Path) -> None:
    path = write_latents(tmp_path / "latents", rows=4, latent_shape=SHAPE, text_shape=TEXT_SHAPE)
    manifest = store.read_manifest(str(path))
    store.write_manifest(str(path), {**manifest, "rows": 5})
    with pytest.raises(store.ArtifactError, match="holds 4 rows, its manifest says 5"):
        LatentsDataset(str(path))
