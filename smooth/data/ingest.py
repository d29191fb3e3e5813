"""Ingest: a URL list becomes WebDataset shards, and every listed row is accounted for under one cause.

img2dataset reads, downloads, resizes and writes. Its parts are put together here instead of by its
``download()`` because that one prints failed shards and returns as if all were well, takes over
SIGINT, and can't tell an empty body from a cut picture.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import posixpath
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.pool import Pool
from typing import Any

import pyarrow.parquet as pq

from smooth import progress, store
from smooth.config import IngestConfig, RunConfig
from smooth.data import causes, web
from smooth.data.columns import CAPTION, URL
from smooth.data.fetch import Fetcher, FetchPolicy
from smooth.data.selection import select

ALLOWED = "allowed"  # folder of the rows that may be fetched, while they are
TEMPORARY = "_tmp"
SHARD_DIGITS = 5
SHARD_TRIES = 2


class IngestError(RuntimeError):
    """The list could not be fetched as a whole; the message counts what is missing."""


def run(config: RunConfig) -> dict[str, Any]:
    """Fetch the list of ``config.ingest`` into the stage's folder and return its manifest.

    A rerun after a crash fetches only the shards that are not finished.

    Raises:
        ValueError: the list is unreadable or lacks a column that a rule needs.
        IngestError: shards failed, rows got lost, or not one picture was kept.
    """
    folder = config.stage_dir("ingest")
    if store.is_complete(folder):
        return store.read_manifest(folder)
    started = time.monotonic()
    with _listed(config.ingest, folder) as (url_list, fetch_policy):
        rows, allowed, refused = select(url_list, config.ingest, store.join(folder, ALLOWED))
        if not allowed:
            raise IngestError(f"the policy refuses all {rows} rows of {url_list}: {_counts(refused)}. Relax ingest.*")
        _download(config.ingest, fetch_policy, folder, allowed)
    kept, failed, shards = _account(folder, allowed)
    if not kept:
        private = ". Name hosts of a private network in ingest.allowed_hosts" if failed["forbidden_address"] else ""
        raise IngestError(f"not one of {allowed} allowed rows gave a picture: {_counts(failed)}{private}")
    fs, inner = store.filesystem(folder)
    fs.rm(posixpath.join(inner, ALLOWED), recursive=True)
    seconds = time.monotonic() - started
    summary = {"listed": rows, "kept": kept}
    summary |= {f"refused by {rule}": count for rule, count in refused.items()}
    summary |= {f"failed: {cause}": count for cause, count in failed.items()}
    manifest = {
        "stage": "ingest",
        "fingerprint": config.fingerprint("ingest"),
        "seconds": round(seconds, 2),
        "summary": summary,
        "pictures": [],
        "rows": rows,
        "kept": kept,
        "refused": dict(refused),
        "failed": dict(failed),
        "image_size": config.ingest.image_size,
        "encoding": config.ingest.encode_format,
        "shards": shards,
    }
    return store.write_manifest(folder, manifest)


@contextmanager
def _listed(config: IngestConfig, folder: str) -> Iterator[tuple[str, FetchPolicy]]:
    """Path of the list, and what its URLs may do; the built-in web serves while the block runs."""
    policy_of_list = FetchPolicy(
        timeout_s=config.timeout_s,
        deadline_s=config.deadline_s,
        max_bytes=config.max_bytes,
        retries=config.retries,
        allowed_hosts=frozenset(config.allowed_hosts),
    )
    if config.url_list is not None:
        yield config.url_list, policy_of_list
    elif config.demo_web is not None:
        with web.serve(config.demo_web) as served:
            path = store.join(folder, TEMPORARY, "list.parquet")
            served.write_list(path)
            yield path, replace(policy_of_list, allowed_hosts=policy_of_list.allowed_hosts | {served.host})


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


class GuardedDownloader:
    """img2dataset's downloader of one shard, with our `Fetcher` in the place of its download function."""

    def __init__(self, downloader: Any, fetch_policy: FetchPolicy) -> None:
        self.downloader = downloader
        self.fetch_policy = fetch_policy

    def __call__(self, shard: Any) -> tuple[bool, Any]:
        """Fetch a shard in a process of the pool; return (succeeded, shard)."""
        import img2dataset.downloader

        # It has no setting for this; it looks the name up at each call.
        img2dataset.downloader.download_image_with_retry = Fetcher(self.fetch_policy)
        result: tuple[bool, Any] = self.downloader(shard)
        return result


def _download(config: IngestConfig, fetch_policy: FetchPolicy, folder: str, allowed: int) -> None:
    """Fetch the allowed rows in a pool of processes, one shard a task; finished shards are skipped.

    Raises:
        IngestError: some shards failed ``SHARD_TRIES`` times (disk full, out of memory, a bug).
    """
    # albumentations asks the network for its newest version when img2dataset imports it.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    from img2dataset.reader import Reader

    fs, inner = store.filesystem(folder)
    fs.makedirs(posixpath.join(inner, TEMPORARY), exist_ok=True)
    done = {int(posixpath.basename(path).split("_")[0]) for path in fs.glob(f"{inner}/*_stats.json")}
    listed = store.join(folder, ALLOWED)
    extra = [name for name in _columns(listed) if name not in (URL, CAPTION)]
    reader = Reader(
        url_list=listed,
        input_format="parquet",
        url_col=URL,
        caption_col=CAPTION,
        verify_hash_col=None,
        verify_hash_type=None,
        save_additional_columns=extra,
        number_sample_per_shard=config.shard_size,
        done_shards=done,
        tmp_path=store.join(folder, TEMPORARY),
    )
    downloader = GuardedDownloader(_downloader(config, folder, reader.column_list), fetch_policy)
    total = -(-allowed // config.shard_size)
    finished = len(done)
    progress.report("ingest", finished, total, "shards", rows=allowed)
    with _pool(config.processes) as pool:
        pending: Any = reader
        for _ in range(SHARD_TRIES):
            failed = []
            for succeeded, shard in pool.imap_unordered(downloader, pending):
                if not succeeded:
                    failed.append(shard)
                    continue
                finished += 1
                progress.report("ingest", finished, total, "shards", rows=allowed)
            pending = failed
    if pending:
        raise IngestError(
            f"{len(pending)} of {total} shards failed {SHARD_TRIES} times (see the log above for their errors); "
            "run the stage again to fetch only those"
        )
    fs.rm(posixpath.join(inner, TEMPORARY), recursive=True)


def _pool(processes: int) -> Pool:
    """Processes that share one import of img2dataset (5 to 10 s of CPU each otherwise)."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["img2dataset", __name__])
    # A fresh process every few shards, as img2dataset does: decoders and fsspec leak over days.
    return context.Pool(processes, maxtasksperchild=5)


def _columns(path: str) -> list[str]:
    fs, inner = store.filesystem(path)
    with fs.open(sorted(fs.glob(f"{inner}/*.parquet"))[0], "rb") as handle:
        names: list[str] = pq.read_schema(handle).names
    return names


def _downloader(config: IngestConfig, folder: str, columns: list[str]) -> Any:
    """img2dataset's downloader of one shard; it is pickled to the pool's processes."""
    from img2dataset.downloader import Downloader
    from img2dataset.resizer import Resizer
    from img2dataset.writer import WebDatasetSampleWriter

    resizer = Resizer(
        image_size=config.image_size,
        resize_mode="center_crop",
        resize_only_if_bigger=False,
        encode_format=config.encode_format,
        encode_quality=6 if config.encode_format == "png" else 95,
        min_image_size=config.min_size,
    )
    return Downloader(
        sample_writer_class=WebDatasetSampleWriter,
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


def _account(folder: str, allowed: int) -> tuple[int, Counter[str], list[dict[str, Any]]]:
    """Count every allowed row from the shards' own tables: kept, failed by cause, and the shards.

    Raises:
        IngestError: the tables do not hold each allowed row once.
    """
    fs, inner = store.filesystem(folder)
    failed: Counter[str] = Counter()
    shards: list[dict[str, Any]] = []
    counted = 0
    for table_path in sorted(fs.glob(f"{inner}/*.parquet")):
        with fs.open(table_path, "rb") as handle:
            table = pq.read_table(handle, columns=["status", "error_message"])
        messages = [m for s, m in zip(*table.to_pydict().values(), strict=True) if s != "success"]
        failed.update(causes.cause_of(message or "") for message in messages)
        counted += table.num_rows
        name = posixpath.basename(table_path).removesuffix(".parquet") + ".tar"
        shards.append(
            {
                "name": name,
                "rows": table.num_rows - len(messages),
                "bytes": fs.size(posixpath.join(inner, name)),
                "sha256": store.sha256(store.join(folder, name)),
            }
        )
    if counted != allowed:
        raise IngestError(
            f"{allowed} rows were to be fetched but the shards account for {counted}; "
            f"delete {folder} and run the stage again"
        )
    return counted - failed.total(), failed, shards


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counter.most_common())
