"""Ingest: a URL list becomes WebDataset shards, and every listed row is accounted for under one cause."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from smooth import progress, store
from smooth.config import IngestConfig, RunConfig
from smooth.data import ledger, web
from smooth.data.dispatch import IngestError as IngestError
from smooth.data.dispatch import ShardJob, fetch_shards
from smooth.data.funnel import draw_funnel
from smooth.data.guard import FetchPolicy
from smooth.data.selection import part_path, select, shards_of_part

LIST = "list.parquet"  # the built-in web's
ALLOWED = "allowed"  # folder of the rows that may be fetched, while they are
FUNNEL = "funnel.png"


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
    allowed_rows = store.join(folder, ALLOWED)
    with served(config.ingest) as (demo, fetch_policy):
        url_list = config.ingest.url_list or store.join(folder, LIST)
        if demo is not None:
            demo.write_list(url_list, f"http://{web.NAME}")
        rows, allowed, refused = select(url_list, config.ingest, allowed_rows)
        if not allowed:
            raise IngestError(f"the policy refuses all {rows} rows of {url_list}: {counts(refused)}. Relax ingest.*")
        shards = fetch_rows(config, fetch_policy, allowed_rows, 0, allowed)
    manifest = books(config, rows, refused, shards, [])
    failed = Counter(manifest["failed"])
    if not manifest["kept"]:
        private = ". Name hosts of a private network in ingest.allowed_hosts" if failed["forbidden_address"] else ""
        raise IngestError(f"not one of {allowed} allowed rows gave a picture: {counts(failed)}{private}")
    for leftover in (LIST, ALLOWED):
        remove(store.join(folder, leftover))
    draw_funnel(store.join(folder, FUNNEL), manifest["funnel"])
    return store.write_manifest(folder, manifest | {"seconds": round(time.monotonic() - started, 2)})


@contextmanager
def served(config: IngestConfig) -> Iterator[tuple[web.Web | None, FetchPolicy]]:
    """What the list's URLs may do, and the built-in web where it is used, which serves while the block runs."""
    policy_of_list = FetchPolicy(
        timeout_s=config.timeout_s,
        deadline_s=config.deadline_s,
        max_bytes=config.max_bytes,
        retries=config.retries,
        back_off_s=config.back_off_s,
        connections_per_host=max(1, config.connections_per_host // config.processes),
        allowed_hosts=frozenset(config.allowed_hosts),
    )
    if config.demo_web is None:
        yield None, policy_of_list
        return
    with web.serve(config.demo_web) as demo:
        yield (
            demo,
            replace(
                policy_of_list,
                allowed_hosts=policy_of_list.allowed_hosts | {f"{web.NAME}:80"},
                resolve=web.resolve,
                dial=partial(web.dial, demo.port),
            ),
        )


def fetch_rows(config: RunConfig, fetch_policy: FetchPolicy, parts: str, first: int, rows: int) -> list[dict[str, Any]]:
    """Fetch the rows in the folder ``parts`` as the shards from number ``first`` on; finished ones are left alone.

    Raises:
        IngestError: shards failed again and again.
    """
    settings = config.ingest
    folder = config.stage_dir("ingest")
    total = -(-rows // settings.shard_size)
    in_part = shards_of_part(settings.shard_size)
    jobs = (
        ShardJob(
            config=settings,
            policy=fetch_policy,
            folder=folder,
            part=part_path(parts, index // in_part),
            first=first + index // in_part * in_part,
            last=first + (index // in_part + 1) * in_part - 1,
            number=first + index,
            rows=min(settings.shard_size, rows - index * settings.shard_size),
        )
        for index in range(total)
    )
    shards: list[dict[str, Any]] = []
    started, kept, tried = time.monotonic(), 0, 0
    progress.report("ingest", 0, total, "shards", rows=rows)
    with closing(fetch_shards(jobs, settings)) as fetched:
        for shard in fetched:
            tried += shard.pop("tried")
            kept += shard["rows"]
            shards.append(shard)
            rate = round(tried / (time.monotonic() - started), 1)
            facts = {"kept": kept, "failed": tried - kept, "rows_per_second": rate}
            progress.report("ingest", len(shards), total, "shards", **facts)
    return sorted(shards, key=lambda shard: ledger.number_of(shard["name"]))


def books(
    config: RunConfig,
    rows: int,
    refused: dict[str, int],
    shards: Sequence[dict[str, Any]],
    retries: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """The manifest of these shards, its seconds excepted.

    Raises:
        IngestError: the shards' tables do not hold each allowed row once.
    """
    folder, settings = config.stage_dir("ingest"), config.ingest
    found = ledger.account(folder, shards, retries)
    allowed = rows - sum(refused.values())
    if found.rows != allowed:
        raise IngestError(
            f"{allowed} rows were to be fetched but the shards account for {found.rows}; "
            f"delete {folder} and run the stage again"
        )
    failed = dict(sorted(found.failed.items()))
    summary = {"listed": rows, "kept": found.kept}
    summary |= {f"refused by {rule}": count for rule, count in sorted(refused.items())}
    summary |= {f"failed: {cause}": count for cause, count in failed.items()}
    demo = settings.demo_web is not None
    return {
        "stage": "ingest",
        "fingerprint": config.fingerprint("ingest"),
        "summary": summary,
        "pictures": [FUNNEL],
        "rows": rows,
        "kept": found.kept,
        "refused": dict(sorted(refused.items())),
        "failed": failed,
        "funnel": ledger.funnel(rows, refused, failed),
        "worst_domains": found.worst_domains(),
        "source": settings.source or (web.SOURCE if demo else None),
        "licence": settings.licence or (web.LICENCE if demo else None),
        "image_size": settings.image_size,
        "encoding": settings.encode_format,
        "shards": list(shards),
        "digest": ledger.digest(shards),
        "retries": list(retries),
    }


def counts(counter: Counter[str]) -> str:
    """``http_404 12, timeout 3``."""
    return ", ".join(f"{name} {count}" for name, count in counter.most_common())


def remove(path: str) -> None:
    """Delete a file or folder if it is there."""
    fs, inner = store.filesystem(path)
    if fs.exists(inner):
        fs.rm(inner, recursive=True)
