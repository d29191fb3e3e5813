"""An ingest to be disturbed: a list that means the same every time, and what its result is compared by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from smooth import store
from smooth.config import DemoWebConfig, RunConfig
from smooth.data import web

DEMO = DemoWebConfig(pictures=80, fault_share=0.25)
TASK = "ray::fetch"  # how Ray names a process that runs one of ingest's tasks


@contextmanager
def listed(folder: Path, timeout_s: float) -> Iterator[list[str]]:
    """The overrides of an ingest of the built-in web at one address, for as many runs as the block likes.

    Some of its rows hang until ``timeout_s``, twice; another that a busy machine kept waiting is there the second time.
    """
    with web.serve(DEMO) as served:
        path = folder / "list.parquet"
        served.write_list(str(path))
        yield [
            "ingest.demo_web=null", f"ingest.url_list={path}", f'ingest.allowed_hosts=["{served.host}"]',
            "ingest.shard_size=20", f"ingest.timeout_s={timeout_s}", "ingest.retries=1", "ingest.back_off_s=0.1",
        ]  # fmt: skip


def config_of(root: Path, overrides: list[str]) -> RunConfig:
    return RunConfig.load("tiny", [f"storage.root={root}", *overrides])


def result(config: RunConfig) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The manifest but for its seconds, and the shards' bytes: what must not depend on what happened on the way."""
    folder = Path(config.stage_dir("ingest"))
    kept = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".tar", ".parquet", ".png")}
    return store.read_manifest(str(folder)) | {"seconds": 0}, kept


def downloading(ancestor: psutil.Process | None = None) -> list[psutil.Process]:
    """Processes under ``ancestor`` (this one) that fetch a shard now."""
    found = []
    for process in (ancestor or psutil.Process()).children(recursive=True):
        try:
            if process.name().startswith(TASK) or process.cmdline()[:1] == [TASK]:
                found.append(process)
        except psutil.Error:  # it ended meanwhile
            continue
    return found
