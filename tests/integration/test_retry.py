"""A web that has bad days: what failed for a passing cause is asked for again, and the books stay in order."""

from __future__ import annotations

import json
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from smooth import store
from smooth.cli import app
from smooth.config import RunConfig
from smooth.data import ingest, retry
from tests.hostile import picture

pytestmark = pytest.mark.usefixtures("ray_local")
PICTURE = picture()
GOOD, GONE, BUSY, BROKEN = range(6), range(6, 8), range(8, 11), range(11, 13)


class MoodyWeb(ThreadingHTTPServer):
    """Serves ``/N``: a picture, or the status that `moods` has for N."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.moods = {**dict.fromkeys(GONE, 404), **dict.fromkeys(BUSY, 503), **dict.fromkeys(BROKEN, 500)}
        self.lock = threading.Lock()
        self.at_once = self.most_at_once = 0

    @contextmanager
    def counted(self) -> Iterator[None]:
        with self.lock:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        yield
        with self.lock:
            self.at_once -= 1


class _Handler(BaseHTTPRequestHandler):
    server: MoodyWeb

    def do_GET(self) -> None:
        with self.server.counted():  # left before the answer: who has it may ask again before this thread goes on
            time.sleep(0.02)
        status = self.server.moods.get(int(self.path.strip("/")), 200)
        body = PICTURE if status == 200 else b"no"
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def moody() -> Iterator[MoodyWeb]:
    with MoodyWeb() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def overrides(moody: MoodyWeb, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("moody")
    urls = [f"http://127.0.0.1:{moody.server_port}/{number}" for number in range(BROKEN.stop)]
    pq.write_table(pa.table({"url": urls, "caption": [f"row {n}" for n in range(len(urls))]}), root / "list.parquet")
    free = [f"ingest.{name}=null" for name in ("min_aesthetic", "max_punsafe", "max_pwatermark", "min_similarity")]
    return [
        f"storage.root={root}", "ingest.demo_web=null", f"ingest.url_list={root}/list.parquet", "ingest.min_size=0",
        *free, f'ingest.allowed_hosts=["127.0.0.1:{moody.server_port}"]', "ingest.retries=0", "ingest.shard_size=5",
        "ingest.connections_per_host=2", "ingest.timeout_s=60",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def config(overrides: list[str]) -> RunConfig:
    config = RunConfig.load("tiny", overrides)
    ingest.run(config)
    return config


def contents(config: RunConfig) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(config.stage_dir("ingest")).iterdir()}


def captions(config: RunConfig) -> list[str]:
    """Of all pictures that the manifest's shards hold."""
    found = []
    for shard in store.read_manifest(config.stage_dir("ingest"))["shards"]:
        with tarfile.open(Path(config.stage_dir("ingest")) / shard["name"]) as archive:
            found += [json.load(archive.extractfile(m))["caption"] for m in archive if m.name.endswith(".json")]  # type: ignore[arg-type]
    return found


def test_a_host_never_has_more_requests_at_once_than_allowed(config: RunConfig, moody: MoodyWeb) -> None:
    assert 1 <= moody.most_at_once <= 2


def test_the_books_name_causes_and_the_worst_domain(config: RunConfig) -> None:
    manifest = store.read_manifest(config.stage_dir("ingest"))
    failed = {"http_404": 2, "http_500": 2, "http_503": 3}
    assert (manifest["rows"], manifest["kept"], manifest["failed"]) == (13, 6, failed)
    assert manifest["worst_domains"] == [{"domain": "127.0.0.1", "rows": 13, "failed": failed}]
    assert [(step["step"], step["rows"]) for step in manifest["funnel"]] == [
        *(("listed", 13), ("allowed", 13), ("fetched", 6), ("decoded", 6), ("kept", 6))
    ]
    assert manifest["pictures"] == ["funnel.png"]
    assert contents(config)["funnel.png"].startswith(b"\x89PNG")


def test_a_retry_that_wins_nothing_changes_nothing(config: RunConfig) -> None:
    before = contents(config)
    assert retry.retry(config)[:2] == (5, 0)
    assert contents(config) == before


def test_a_retry_appends_what_it_wins_and_moves_the_counts(
    config: RunConfig, overrides: list[str], moody: MoodyWeb
) -> None:
    folder = Path(config.stage_dir("ingest"))
    before, was = contents(config), store.read_manifest(str(folder))
    (folder / "00007.tar").write_bytes(b"of a retry that was killed")
    (folder / "00003_stats.json").write_bytes(b"of the same")
    for number in BUSY:
        del moody.moods[number]
    moody.moods[BROKEN[0]] = 404  # given up by its site: another cause from now on
    command = ["ingest", "retry", *(part for override in overrides for part in ("-o", override))]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "3 pictures won, 9 in all" in result.output
    now = store.read_manifest(str(folder))
    assert (now["rows"], now["kept"], now["failed"]) == (13, 9, {"http_404": 3, "http_500": 1})
    assert now["shards"][:3] == was["shards"]
    assert [(shard["name"], shard["rows"]) for shard in now["shards"][3:]] == [("00003.tar", 3)]
    assert now["digest"] != was["digest"]
    after = contents(config)
    assert {name for name in after if after[name] != before.get(name)} == {
        *("manifest.json", "funnel.png", "00003.tar", "00003.parquet", "00003_stats.json")
    }
    assert sorted(captions(config)) == sorted(f"row {number}" for number in (*GOOD, *BUSY))


def test_a_second_retry_asks_only_for_what_is_still_missing(config: RunConfig, moody: MoodyWeb) -> None:
    before = contents(config)
    assert retry.retry(config)[:2] == (1, 0)
    assert contents(config) == before
    del moody.moods[BROKEN[1]]
    assert retry.retry(config)[:2] == (1, 1)
    now = store.read_manifest(config.stage_dir("ingest"))
    assert (now["kept"], now["failed"]) == (10, {"http_404": 3})
    assert now["worst_domains"] == [{"domain": "127.0.0.1", "rows": 13, "failed": {"http_404": 3}}]
    assert len(set(captions(config))) == 10
    before = contents(config)
    assert retry.retry(config)[:2] == (0, 0)
    assert contents(config) == before
