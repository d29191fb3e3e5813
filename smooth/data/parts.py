"""A part: what one shard became. Named by all that decides its content, finished when its facts are written.

A part is the rows, in a file for each size of latents, the texts of their distinct captions, and, written last,
the facts about them all. Its name holds no shard's and no folder's, so a part can be copied to any latents folder.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from smooth import store
from smooth.data import schema
from smooth.data.writer import TableWriter

FORMAT = 2  # part of the identity: raise it when the files mean something else
ROW_GROUP = 256
# Captions of one row group lie together, but for those that an earlier one had already: groups of this size are
# read for those.
TEXT_GROUP = 16
WAITING = 2  # tables for the thread that writes a part
THREADS = 8

Facts = dict[str, Any]  # plain JSON, see `writing`


def identity(hashes: Mapping[str, str], shard: str) -> str:
    """Name of the part that a shard (its SHA-256) becomes; ``hashes`` are of the networks and the preprocessing."""
    inputs = json.dumps({"format": FORMAT, "shard": shard, **hashes}, sort_keys=True)
    return hashlib.sha256(inputs.encode()).hexdigest()[:20]


def facts_name(part: str) -> str:
    """Name of the file that finishes a part."""
    return f"part-{part}.json"


def rows_name(part: str, layout: pa.Schema) -> str:
    """Name of a part's file of the rows that have the latents of ``layout``; it says their height and width."""
    _, height, width = schema.shape_of(layout.field("moments"))
    return f"part-{part}.{height}x{width}.parquet"


def texts_name(part: str) -> str:
    """Name of the file of a part's texts."""
    return f"part-{part}.texts.parquet"


class PartFiles:
    """The open files of a part, of rows one for each size, and what is counted while they are written."""

    def __init__(self, rows: list[TableWriter], texts: TableWriter, thread: ThreadPoolExecutor) -> None:
        """``thread`` writes, while the next rows are encoded."""
        self.rows = rows
        self.texts = texts
        self.pictures = 0
        self.failed: Counter[str] = Counter()
        self._thread = thread
        self._waiting: deque[Future[None]] = deque()

    def add(self, file: TableWriter, columns: dict[str, Any]) -> None:
        """Have rows written to one of the files, in the order of the calls; few wait in memory.

        Raises:
            OSError: earlier ones could not be written.
        """
        self._waiting.append(self._thread.submit(file.add, columns))
        self.flush(WAITING)

    def flush(self, waiting: int = 0) -> None:
        """Go on when no more than so many calls of :meth:`add` wait.

        Raises:
            OSError: some of them could not be written.
        """
        while len(self._waiting) > waiting:
            self._waiting.popleft().result()

    def abandon(self) -> None:
        """Write nothing more."""
        self._thread.shutdown(cancel_futures=True)
        for file in (*self.rows, self.texts):
            file.abandon()


@contextmanager
def writing(folder: str, part: str, rows_layouts: Sequence[pa.Schema], texts_layout: pa.Schema) -> Iterator[PartFiles]:
    """Write a part that is there when the block has ended, and leaves nothing where it fails."""
    names = [*(rows_name(part, layout) for layout in rows_layouts), texts_name(part)]
    with ExitStack() as stack:
        handles = [stack.enter_context(store.writing(store.join(folder, name))) for name in names]
        files = PartFiles(
            [TableWriter(handle, layout, ROW_GROUP) for handle, layout in zip(handles[:-1], rows_layouts, strict=True)],
            TableWriter(handles[-1], texts_layout, TEXT_GROUP),
            stack.enter_context(ThreadPoolExecutor(1, "part")),
        )
        try:
            yield files
            files.flush()
            written = [file.close() for file in (*files.rows, files.texts)]
        except BaseException:
            files.abandon()
            raise
    *rows, texts = (
        {"name": name, "rows": file.rows, "bytes": file.bytes, "sha256": file.sha256}
        for name, file in zip(names, written, strict=True)
    )
    stored = {
        "moments": sum(file.columns.get("moments", 0) for file in written),
        "text": written[-1].columns.get("text", 0),
    }
    facts: Facts = {
        "part": part,
        "rows": sum(file["rows"] for file in rows),
        "latents": rows,
        "texts": texts,
        "pictures": files.pictures,
        "failed": dict(sorted(files.failed.items())),
        "stored": {**stored, "rest": sum(file.bytes for file in written) - sum(stored.values())},
    }
    store.write_json(store.join(folder, facts_name(part)), facts)


def files_of(facts: Facts) -> list[dict[str, Any]]:
    """Name, rows, bytes and sha256 of a part's files: of rows one for each size, then the texts."""
    return [*facts["latents"], facts["texts"]]


def finished(folder: str, wanted: Iterable[str]) -> dict[str, Facts]:
    """Facts of the wanted parts that are whole in ``folder``."""
    fs, inner = store.filesystem(folder)
    fs.invalidate_cache()  # other processes write here
    if not fs.exists(inner):
        return {}
    sizes = {posixpath.basename(item["name"]): item["size"] for item in fs.ls(inner, detail=True)}
    named = [part for part in wanted if facts_name(part) in sizes]
    with ThreadPoolExecutor(THREADS) as threads:
        read = threads.map(lambda part: read_facts(folder, part), named)
        return {
            part: facts
            for part, facts in zip(named, read, strict=True)
            if facts and all(sizes.get(file["name"]) == file["bytes"] for file in files_of(facts))
        }


def read_facts(folder: str, part: str) -> Facts | None:
    """Facts of a part as they are written; None where there are none that can be read."""
    try:
        facts = json.loads(store.read_bytes(store.join(folder, facts_name(part))))
    except (json.JSONDecodeError, UnicodeDecodeError, FileNotFoundError):
        return None
    return facts if isinstance(facts, dict) and facts.get("part") == part else None


def copy_from_siblings(folder: str, wanted: Collection[str]) -> dict[str, Facts]:
    """Copy wanted parts that other latents folders under the same root hold; return the facts of those copied.

    What is copied has the hash that its facts say, so a damaged part is not passed on.
    """
    fs, inner = store.filesystem(folder)
    fs.invalidate_cache()
    root = posixpath.dirname(inner.rstrip("/"))
    found = {}
    for path in sorted(fs.glob(f"{root}/*/part-*.json")):
        part = posixpath.basename(path).removeprefix("part-").removesuffix(".json")
        if part in wanted and posixpath.dirname(path) != inner:
            found[part] = posixpath.dirname(path)
    fs.makedirs(inner, exist_ok=True)
    with ThreadPoolExecutor(THREADS) as threads:
        copied = threads.map(lambda part: _copy(fs, found[part], inner, part), found)
        return {part: facts for part, facts in zip(found, copied, strict=True) if facts}


def _copy(fs: fsspec.AbstractFileSystem, source: str, folder: str, part: str) -> Facts | None:
    facts = read_facts(fs.unstrip_protocol(source), part)
    if facts is None:
        return None
    for file in files_of(facts):
        path = posixpath.join(source, file["name"])
        if not fs.exists(path) or store.sha256(fs.unstrip_protocol(path)) != file["sha256"]:
            return None
    for name in (*(file["name"] for file in files_of(facts)), facts_name(part)):
        _link_or_copy(fs, posixpath.join(source, name), posixpath.join(folder, name))
    return facts


def _link_or_copy(fs: fsspec.AbstractFileSystem, source: str, target: str) -> None:
    """One more name for a local file, which is never written again; a copy within the store elsewhere."""
    temporary = f"{target}{store.PARTIAL}"
    if fs.exists(temporary):
        fs.rm_file(temporary)
    try:
        if not isinstance(fs, LocalFileSystem):
            raise OSError
        fs.link(source, temporary)
    except OSError:  # also a filesystem without hard links
        fs.cp_file(source, temporary)
    fs.mv(temporary, target)


def remove(folder: str, part: str) -> None:
    """Remove a part, its facts first: what is left of it after an interruption is no part."""
    fs, inner = store.filesystem(folder)
    fs.invalidate_cache()
    paths = {posixpath.basename(path): path for path in fs.ls(inner, detail=False)}
    mine = [name for name in paths if name.startswith(f"part-{part}.")]
    for name in sorted(mine, key=lambda name: name != facts_name(part)):
        fs.rm_file(paths[name])


def remove_others(folder: str, kept: Iterable[Facts]) -> None:
    """Remove parts that the manifest no longer names, and what killed writers left."""
    names = {file["name"] for facts in kept for file in files_of(facts)}
    names |= {facts_name(facts["part"]) for facts in kept}
    fs, inner = store.filesystem(folder)
    fs.invalidate_cache()
    for path in fs.ls(inner, detail=False):
        name = posixpath.basename(path)
        if name.endswith(store.PARTIAL) or (name.startswith("part-") and name not in names):
            fs.rm_file(path)


def bytes_per_row(parts: Iterable[Facts]) -> Mapping[str, float]:
    """Bytes that one row takes on average: its moments, its share of the texts, and the rest."""
    listed = list(parts)
    rows = sum(facts["rows"] for facts in listed)
    return {
        name: round(sum(facts["stored"][name] for facts in listed) / rows, 1) for name in ("moments", "text", "rest")
    }
