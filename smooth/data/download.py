"""One shard of the list: img2dataset's reader, downloader, resizer and writer, put together and made repeatable.

Its ``download()`` is not used because that one prints failed shards and returns as if all were well, takes over SIGINT,
and can't tell an empty body from a cut picture. This module runs in the downloading processes and imports img2dataset,
which costs seconds: the stage's driver does without.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from functools import cache
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq

from smooth import store
from smooth.config import IngestConfig
from smooth.data import causes
from smooth.data.columns import CAPTION, URL
from smooth.data.dispatch import SHARD_DIGITS, IngestError, ShardJob
from smooth.data.fetch import Fetcher

# Or importing albumentations, as img2dataset does, asks the network for its newest version.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import img2dataset.downloader
import img2dataset.resizer
from img2dataset.reader import Reader
from img2dataset.resizer import Resizer
from img2dataset.writer import WebDatasetSampleWriter

SPOOLED_BYTES = 32 << 20  # pictures of a shard that wait in memory; more of them wait on disk
# The resizer makes its transforms anew for each picture, which costs more than the resize itself; these are made once.
# It works in one thread, and neither of them draws anything at random.
TRANSFORMS = SimpleNamespace(
    SmallestMaxSize=cache(img2dataset.resizer.A.SmallestMaxSize), CenterCrop=cache(img2dataset.resizer.A.CenterCrop)
)


class CheckedResizer:
    """img2dataset's resizer behind a look at the body's bytes: see :func:`smooth.data.causes.defect`."""

    def __init__(self, resizer: Any, max_pixels: int) -> None:
        self.resizer = resizer
        self.max_pixels = max_pixels

    def __call__(self, stream: io.BytesIO, boxes: Any = None) -> tuple[Any, ...]:
        """Return (encoded picture, width, height, original width, original height, error message)."""
        body = stream.getvalue()
        found: str | None = causes.defect(body)
        if found is None and causes.pixels(body) > self.max_pixels:
            found = "too_many_pixels"
        if found is not None:
            return None, None, None, None, None, found
        result: tuple[Any, ...] = self.resizer(stream, boxes)
        return result


class OrderedWriter(WebDatasetSampleWriter):  # type: ignore[misc]  # img2dataset has no types
    """Writes a shard in the order of its keys and without time stamps, whatever arrived first.

    So the same pictures give the same bytes. They wait in a spool file until the shard is closed.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.tarwriter.mtime = 0
        self._spool = tempfile.SpooledTemporaryFile(SPOOLED_BYTES)  # noqa: SIM115  (closed with the shard)
        self._waiting: dict[str, tuple[int | None, str | None, dict[str, Any]]] = {}

    def write(self, img_str: bytes | None, key: str, caption: str | None, meta: dict[str, Any]) -> None:
        """Take a sample; ``img_str`` is None where there is no picture."""
        self._waiting[key] = (None if img_str is None else self._spool.tell(), caption, meta)
        if img_str is not None:
            self._spool.write(len(img_str).to_bytes(8, "little") + img_str)

    def close(self) -> None:
        """Write all samples and finish the shard's files."""
        with self._spool:
            for key, (place, caption, meta) in sorted(self._waiting.items()):
                super().write(self._read(place), key, caption, meta)
        super().close()

    def _read(self, place: int | None) -> bytes | None:
        if place is None:
            return None
        self._spool.seek(place)
        return self._spool.read(int.from_bytes(self._spool.read(8), "little"))


def download(job: ShardJob) -> dict[str, Any]:
    """Fetch a shard unless it is finished, and say what it is: name, rows (kept), tried, bytes, sha256.

    Raises:
        IngestError: a row got lost on the way.
        DiskFullError: there is no space for the shard.
        Exception: whatever else img2dataset met.
    """
    tar, table = (store.join(job.folder, f"{job.name}.{extension}") for extension in ("tar", "parquet"))
    stats = f"{job.name}_stats.json"
    if not store.exists(store.join(job.folder, stats)):  # written last
        with store.told_when_full(tar):
            _download(job)
    fs, inner = store.filesystem(table)
    with fs.open(inner, "rb") as handle:
        status = pq.read_table(handle, columns=["status"])["status"].to_pylist()
    if len(status) != job.rows:
        fs.rm(store.filesystem(store.join(job.folder, stats))[1])  # so that it is fetched again
        raise IngestError(f"{job.rows} rows were to be fetched but {table} accounts for {len(status)}")
    return {
        "name": f"{job.name}.tar",
        "rows": status.count("success"),
        "tried": len(status),
        "bytes": fs.size(store.filesystem(tar)[1]),
        "sha256": store.sha256(tar),
    }


def _download(job: ShardJob) -> None:
    fs, part = store.filesystem(job.part)
    with fs.open(part, "rb") as handle:
        names = pq.read_schema(handle).names
    reader = Reader(
        url_list=job.part,
        input_format="parquet",
        url_col=URL,
        caption_col=CAPTION,
        verify_hash_col=None,
        verify_hash_type=None,
        save_additional_columns=[name for name in names if name not in (URL, CAPTION)],
        number_sample_per_shard=job.config.shard_size,
        done_shards=set(range(job.first, job.last + 1)) - {job.number},
        tmp_path="memory://smooth-shard",  # a file would be left behind by a killed process
        start_shard_id=job.first,
    )
    with contextlib.redirect_stdout(io.StringIO()):  # it talks at length
        (shard,) = reader
    # It has no settings for these; it looks the names up at each call.
    img2dataset.downloader.download_image_with_retry = Fetcher(job.policy)
    img2dataset.resizer.A = TRANSFORMS
    # Not its __call__, which prints the error and goes on.
    _downloader(job.config, job.folder, reader.column_list).download_shard(shard)


def _downloader(config: IngestConfig, folder: str, columns: list[str]) -> Any:
    resizer = Resizer(
        image_size=config.image_size,
        resize_mode=config.resize_mode,
        resize_only_if_bigger=False,
        encode_format=config.encode_format,
        encode_quality=6 if config.encode_format == "png" else 95,
        min_image_size=config.min_size,
    )
    return img2dataset.downloader.Downloader(
        sample_writer_class=OrderedWriter,
        resizer=CheckedResizer(resizer, config.max_pixels),
        thread_count=config.threads,
        save_caption=True,
        extract_exif=False,
        output_folder=folder,
        column_list=columns,
        timeout=None,  # the fetch policy's
        number_sample_per_shard=config.shard_size,
        oom_shard_count=SHARD_DIGITS,
        compute_hash="sha256",
        verify_hash_type=None,
        encode_format=config.encode_format,
        retries=None,
        user_agent_token=None,
        disallowed_header_directives=None,
    )
