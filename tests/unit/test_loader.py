"""The loader is a function of (seed, global sample index): whoever asks, and whenever, gets the same numbers."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from smooth import store
from smooth.data import dataset, parts, schema
from smooth.data.dataset import LatentsDataset
from smooth.data.loader import Batch, LatentLoader
from smooth.data.readahead import ReadAhead
from tests.synthetic import SCALING_FACTOR, write_latents

SHAPE = (4, 8, 8)
TEXT_SHAPE = (3, 5)
ROWS = 50


@pytest.fixture(autouse=True, scope="module")
def small_groups() -> Iterator[None]:
    """So that a few rows fill several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "ROW_GROUP", 16)
        patch.setattr(parts, "TEXT_GROUP", 8)
        yield


@pytest.fixture(scope="module")
def folder(small_groups: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("loader") / "latents"
    return str(write_latents(path, rows=ROWS, latent_shape=SHAPE, text_shape=TEXT_SHAPE))


def _loader(folder: str, seed: int = 1, caption_dropout: float = 0.0, global_batch: int = 16) -> LatentLoader:
    return LatentLoader(
        LatentsDataset(folder),
        seed=seed,
        timesteps=1000,
        caption_dropout=caption_dropout,
        global_batch_size=global_batch,
    )


def _by_index(batches: list[Batch]) -> dict[int, dict[str, Tensor]]:
    samples: dict[int, dict[str, Tensor]] = {}
    for batch in batches:
        for place, index in enumerate(batch.indices.tolist()):
            assert index not in samples
            samples[index] = {name: value[place] for name, value in vars(batch).items() if name != "added"}
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
    one = _by_index(_loader(folder, caption_dropout=0.3).micro_batches(48, 16, 0, 1))
    assert sorted(one) == list(range(48, 64))
    many: list[Batch] = []
    for rank in range(ranks):
        share = _loader(folder, caption_dropout=0.3).micro_batches(48, micro_batch, rank, ranks)
        assert len(share) == 16 // (ranks * micro_batch)
        many += share
    _assert_same(one, _by_index(many))


def test_resuming_in_the_middle_of_an_epoch_equals_going_through(folder: str) -> None:
    whole = _loader(folder, global_batch=8)
    through = [batch for seen in range(0, 96, 8) for batch in whole.micro_batches(seen, 8, 0, 1)]
    later = _loader(folder, global_batch=8)
    resumed = [batch for seen in range(72, 96, 8) for batch in later.micro_batches(seen, 8, 0, 1)]
    _assert_same(_by_index(through[9:]), _by_index(resumed))


@pytest.fixture(scope="module")
def bucketed(small_groups: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """32 rows of one size and 16 of another."""
    path = tmp_path_factory.mktemp("loader") / "bucketed"
    return str(write_latents(path, rows=48, latent_shape=SHAPE, wide=(4, 4, 16), text_shape=TEXT_SHAPE))


@pytest.mark.parametrize("window", [16, 4096])
def test_a_global_batch_has_one_size_and_an_epoch_all_rows(
    bucketed: str, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "WINDOW_ROWS", window)
    loader = _loader(bucketed, caption_dropout=0.3, global_batch=8)
    shapes: list[tuple[int, ...]] = []
    seen: list[Batch] = []
    for first in range(0, 3 * 48, 8):
        micro_batches = loader.micro_batches(first, 4, 0, 1)
        (shape,) = {tuple(batch.latents.shape[1:]) for batch in micro_batches}
        assert {tuple(batch.direction.shape[1:]) for batch in micro_batches} == {shape}
        shapes.append(shape)
        seen += micro_batches
    for epoch in range(3):
        here = shapes[6 * epoch : 6 * (epoch + 1)]
        assert (here.count(SHAPE), here.count((4, 4, 16))) == (4, 2)
    assert shapes[:6] != shapes[6:12] or shapes[6:12] != shapes[12:]
    plain = _loader(bucketed, global_batch=8)
    texts = {plain.dataset.row(row)[1].astype(np.float32).tobytes(): row for row in range(48)}
    rows = [texts.get(text.numpy().tobytes()) for text in torch.cat([batch.text for batch in plain_batches(plain)])]
    assert sorted(rows[:48]) == sorted(rows[48:]) == list(range(48))
    # From anywhere, on any number of ranks: the same samples.
    again = _loader(bucketed, caption_dropout=0.3, global_batch=8)
    halves = [batch for first in (88, 96) for rank in (1, 0) for batch in again.micro_batches(first, 2, rank, 2)]
    _assert_same(_by_index(seen[22:26]), _by_index(halves))


def test_xl_is_told_of_sizes_with_height_before_width() -> None:
    columns = {"original_size": [[400, 600]], "crop": [[50, 100, 200, 400]], "flipped": [True]}
    field = pa.list_(pa.float32())
    told = pa.table({name: pa.array(values, None if name == "flipped" else field) for name, values in columns.items()})
    told = told.cast(pa.schema([schema.rows_schema(SHAPE).field(name) for name in columns]))
    # Mirrored, the crop begins 600 - 400 - 100 from the left; the picture is scaled by 32 / 200 and 128 / 400.
    assert dataset._time_ids(told, (32, 128)).tolist() == [[400, 600, 8, 32, 32, 128]]


def plain_batches(loader: LatentLoader) -> Iterator[Batch]:
    """Two epochs of 48 samples."""
    for first in range(0, 96, 8):
        yield loader.batch(range(first, first + 8))


@pytest.mark.parametrize("window", [16, 4096])
def test_an_epoch_is_a_permutation_and_no_two_are_alike(
    folder: str, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "WINDOW_ROWS", window)
    loader = _loader(folder)
    first, second = ([loader.orders[0].row_number(epoch * ROWS + place) for place in range(ROWS)] for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(ROWS))
    assert first != second
    assert first != sorted(first)
    assert [_loader(folder, seed=2).orders[0].row_number(place) for place in range(ROWS)] != first
    # Reading through a cache of two windows gives each row's own numbers.
    fresh = LatentsDataset(folder)
    for row in first:
        assert (loader.dataset.row(row)[0] == fresh.row(row)[0]).all()


def test_posterior_draw_has_the_moments_of_the_row_and_is_fresh_every_epoch(folder: str) -> None:
    loader = _loader(folder)
    places = {loader.orders[0].row_number(place): place for place in range(ROWS)}
    later = {loader.orders[0].row_number(place): place for place in range(ROWS, 2 * ROWS)}
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
    assert [len(future.result().texts) for future in shared._caches[0].values()] == [6, 4, 6, 4]


def test_token_ids_stay_whole_numbers(tmp_path: Path) -> None:
    path = write_latents(tmp_path / "latents", rows=12, latent_shape=SHAPE, text_shape=(5,))
    loader = _loader(str(path), caption_dropout=0.5)
    batch = loader.batch(range(12))
    assert loader.dataset.holds_token_ids
    assert (batch.text.shape, batch.text.dtype) == ((12, 5), torch.int64)
    dropped = (batch.text == 7).all(1)
    assert 0 < int(dropped.sum()) < 12
    for place in torch.nonzero(~dropped).flatten().tolist():
        assert batch.text[place].tolist() == loader.dataset.row(loader.orders[0].row_number(place))[1].tolist()


def test_a_manifest_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    path = write_latents(tmp_path / "latents", rows=4, latent_shape=SHAPE, text_shape=TEXT_SHAPE)
    manifest = store.read_manifest(str(path))
    store.write_manifest(str(path), {**manifest, "rows": 5})
    with pytest.raises(store.ArtifactError, match="says 5 rows, its parts have 4; run `smooth latents repair`"):
        LatentsDataset(str(path))


def _replace_rows(path: Path) -> None:
    """The second part gets the rows of a larger one, in groups of another size."""
    other = write_latents(path.parent / "other", rows=60, latent_shape=SHAPE, text_shape=TEXT_SHAPE)
    (other / "part-1.8x8.parquet").rename(path / "part-1.8x8.parquet")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_replace_rows, "has 30 rows in 2 row groups, by the manifest 25 in 2"),
        (lambda path: (path / "part-1.8x8.parquet").unlink(), "missing"),
        (lambda path: (path / "part-1.texts.parquet").write_bytes(b"PAR1"), "texts.parquet"),
    ],
)
def test_a_part_that_is_not_as_the_manifest_says_is_refused_when_it_is_read(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    path = write_latents(tmp_path / "latents", rows=ROWS, latent_shape=SHAPE, text_shape=TEXT_SHAPE)
    damage(path)
    opened = LatentsDataset(str(path))
    opened.row(0)
    with pytest.raises(store.ArtifactError, match=rf"part-1.*{message}.*smooth latents repair"):
        opened.row(ROWS - 1)


@pytest.mark.parametrize("window", [16, 4096])
def test_memory_holds_two_windows_and_each_group_is_read_once_an_epoch(
    folder: str, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "WINDOW_ROWS", window)
    loader = _loader(folder)
    read: list[int] = []
    original = loader.dataset._read
    monkeypatch.setattr(loader.dataset, "_read", lambda group: (read.append(group), original(group))[1])
    for first in range(0, 3 * ROWS, 5):
        loader.batch(range(first, first + 5))
        held = [rows for future in loader.dataset._caches[0].values() if (rows := future.result())]
        assert sum(len(rows.moments) for rows in held) <= 2 * (window + 16)
        here = loader.orders[0].window(first + 4)
        if first + 5 - here.first >= len(here.rows) / 2:
            assert loader.dataset._caches[0].keys() >= set(loader.orders[0].groups(here.end))
    # Behind the third epoch's end lies the first window of the fourth, read ahead.
    groups = len(loader.dataset.starts) - 1
    assert len(read) <= (groups if window > ROWS else 3 * groups + 2)


def test_a_window_is_bounded_by_bytes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_latents(tmp_path / "latents", rows=12, latent_shape=SHAPE, text_shape=(5,))
    monkeypatch.setattr(dataset, "WINDOW_BYTES", 50_000)
    # 2 x 4 x 8 x 8 halves and five token ids of four bytes.
    assert LatentsDataset(str(path)).window_rows == 50_000 // (2 * 2 * 4 * 8 * 8 + 4 * 5)
    monkeypatch.setattr(dataset, "WINDOW_BYTES", 1)
    assert LatentsDataset(str(path)).window_rows == 1


def _read_ahead(folder: str, global_batch: int, rank: int, workers: int) -> list[Batch]:
    """What a worker trains on in two epochs and what is left of the last global batch."""
    loader = _loader(folder, global_batch=global_batch)
    micro_batch = global_batch // workers

    def share(seen: int) -> list[Batch]:
        return loader.micro_batches(seen, micro_batch, rank, workers)

    with ReadAhead(share, range(0, 2 * ROWS, global_batch)) as shares:
        return [batch for batches in shares for batch in batches]


@pytest.mark.parametrize(("global_batch", "workers"), [(12, 1), (12, 2), (12, 3), (7, 7), (64, 2)])
@pytest.mark.parametrize("window", [16, 4096])
def test_workers_that_read_ahead_read_every_row_once_an_epoch(
    folder: str, global_batch: int, workers: int, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "WINDOW_ROWS", window)
    shares = [_read_ahead(folder, global_batch, rank, workers) for rank in range(workers)]
    samples = _by_index([batch for share in shares for batch in share])
    plain = _loader(folder)
    _assert_same({index: samples[index] for index in range(2 * ROWS)}, _by_index([plain.batch(range(2 * ROWS))]))
    texts = {plain.dataset.row(row)[1].astype(np.float32).tobytes(): row for row in range(ROWS)}
    rows = [texts[samples[index]["text"].numpy().tobytes()] for index in range(2 * ROWS)]
    assert sorted(rows[:ROWS]) == sorted(rows[ROWS:]) == list(range(ROWS))
