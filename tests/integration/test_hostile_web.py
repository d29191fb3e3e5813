"""The real ingest stage on a list full of attacks and faults: each is refused or handled, under its own cause."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from smooth.config import RunConfig
from smooth.data import causes, ingest
from smooth.data.guard import FetchPolicy
from tests import hostile

KEPT = "kept"

# URL => what becomes of it. PORT is the server's; "good.test:PORT" is the public host.
SCHEMES = {
    "file:///etc/passwd": "forbidden_scheme",
    "FILE:///etc/hostname": "forbidden_scheme",
    "ftp://good.test/png": "forbidden_scheme",
    "gopher://good.test:70/1": "forbidden_scheme",
    "data:image/png;base64,iVBORw0KGgo=": "forbidden_scheme",
    "jar:http://good.test:PORT/png": "forbidden_scheme",
    "//good.test:PORT/png": "forbidden_scheme",
    "png": "forbidden_scheme",
    "http:///png": "bad_url",
    "http://user@good.test:PORT/png": "bad_url",
    "http://user:word@good.test:PORT/png": "bad_url",
    "http://good.test:PORT@127.0.0.1:PORT/png": "bad_url",
    "http://good.test:PORT/p ng\r\nX-Injected: 1": "bad_url",
    "http://good.test:port/png": "bad_url",
    "http://[::1/png": "bad_url",
}
ADDRESSES = [
    "127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0.0.0.0", "10.0.0.1", "172.16.0.1",
    "192.168.1.1", "100.64.0.1", "169.254.169.254", "224.0.0.1", "255.255.255.255", "[::1]", "[::]",
    "[::ffff:10.0.0.1]", "[::ffff:127.0.0.1]", "[fe80::1]", "[fd00::1]", "[ff02::1]", "[64:ff9b::7f00:1]",
    "[2002:7f00:1::]", "private.test", "mixed.test", "loopback.test", "metadata.test",
]  # fmt: skip
PATHS = {
    "png": KEPT, "typed-wrongly": KEPT, "cmyk": KEPT, "deep": KEPT, "rotated": KEPT, "palette": KEPT,
    "transparent": KEPT, "noai-for-others": KEPT, "to-picture": KEPT, "endless-redirect": KEPT, "dot": "too_small",
    "huge": "too_many_pixels", "large": "too_large", "endless": "too_large", "endless-header": "bad_http",
    "gzip-bomb": "not_an_image", "svg": "not_an_image", "html": "not_an_image", "cut-jpeg": "truncated",
    "cut-body": "cut_connection", "nothing": "empty", "silence": "cut_connection", "babble": "bad_http",
    "noai": "robots", "noai-for-us": "robots", "reserved": "tdm_reserved", "missing": "http_404", "busy": "http_503",
    "to-file": "forbidden_scheme", "to-ftp": "forbidden_scheme", "to-metadata": "forbidden_address",
    "to-private-name": "forbidden_address", "to-userinfo": "bad_url", "to-itself": "redirect_loop",
    "hop/0": "redirect_loop", "home": "forbidden_address", "dripping": "too_slow", "dripping-body": "too_slow",
    "animated": KEPT,
}  # fmt: skip
CAPTIONS = {
    "NUL": "a\0picture",
    "long": "word " * 20_000,
    "right to left": "שלום \u202eعالم",
    "emoji": "👩‍🚒 🌻",
    "lines": "two\r\nlines",
    "markup": "<script>alert(1)</script>",
}


@dataclass(frozen=True)
class Row:
    """A row of the list and what should become of it."""

    url: str
    caption: str
    outcome: str


def rows() -> list[Row]:
    found = [Row(url, f"scheme {number}", outcome) for number, (url, outcome) in enumerate(SCHEMES.items())]
    found += [Row(f"http://{host}:PORT/png", f"address {host}", "forbidden_address") for host in ADDRESSES]
    found += [Row(f"http://good.test:PORT/{path}", path, outcome) for path, outcome in PATHS.items()]
    for number, caption in enumerate(CAPTIONS.values()):
        found.append(Row(f"http://good.test:PORT/png?{number}", caption, KEPT))
    # The second look at the name says that it is private: the first request was safe, the next is not.
    found.append(Row("http://rebinding.test:PORT/again", "rebinding", "forbidden_address"))
    found.append(Row("http://nowhere.test:PORT/png", "no such name", "dns"))
    found.append(Row(found[0].url, "the first row again", "duplicate_url"))
    return found


@dataclass(frozen=True)
class Outcome:
    """What the stage made of the list."""

    manifest: dict[str, Any]
    by_caption: dict[str, str]
    attempts: list[str]


@pytest.fixture(scope="module")
def outcome(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("hostile")
    with hostile.serve() as port, pytest.MonkeyPatch.context() as patch:
        listed = folder / "list.parquet"
        urls = [row.url.replace("PORT", str(port)) for row in rows()]
        captions, claimed = [row.caption for row in rows()], [100] * len(urls)
        pq.write_table(pa.table({"URL": urls, "TEXT": captions, "WIDTH": claimed, "HEIGHT": claimed}), listed)
        guarded = partial(
            FetchPolicy, resolve=partial(hostile.resolve, folder), dial=partial(hostile.dial, folder, port)
        )
        patch.setattr(ingest, "FetchPolicy", guarded)
        overrides = [
            f"storage.root={folder}", "ingest.demo_web=null", f"ingest.url_list={listed}", "ingest.min_aesthetic=null",
            "ingest.max_punsafe=null", "ingest.max_pwatermark=null", "ingest.min_similarity=null", "ingest.min_size=16",
            "ingest.timeout_s=8", "ingest.deadline_s=8", "ingest.max_bytes=2000000", "ingest.retries=1",
            "ingest.shard_size=200",
        ]  # fmt: skip
        config = RunConfig.load("tiny", overrides)
        manifest = ingest.run(config)
    stage = Path(config.stage_dir("ingest"))
    tables = pa.concat_tables(pq.read_table(path) for path in sorted(stage.glob("*.parquet")))
    by_caption = {
        row["caption"]: KEPT
        if row["status"] == "success"
        else causes.cause_of(row["error_message"] or "", row["status"])
        for row in tables.select(["caption", "status", "error_message"]).to_pylist()
    }
    return Outcome(manifest, by_caption, hostile.attempts(folder))


def test_each_row_meets_its_fate(outcome: Outcome) -> None:
    assert len(rows()) >= 80
    wrong = {row.url: (row.outcome, outcome.by_caption.get(row.caption, "duplicate_url")) for row in rows()}
    assert {url: pair for url, pair in wrong.items() if pair[0] != pair[1]} == {}


def test_no_socket_was_opened_to_a_forbidden_address(outcome: Outcome) -> None:
    assert outcome.attempts == []


def test_the_manifest_counts_every_row_under_one_cause(outcome: Outcome) -> None:
    expected = Counter(row.outcome for row in rows())
    assert outcome.manifest["kept"] == expected.pop(KEPT)
    assert outcome.manifest["refused"] == {"duplicate_url": expected.pop("duplicate_url")}
    assert outcome.manifest["failed"] == expected
    assert outcome.manifest["rows"] == len(rows())
