"""The audit of the lock: pip-audit against a vulnerability service on loopback, and against none."""

from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from infra import audit
from infra.audit import Dependency, Ignored, Vulnerability, judge
from infra.local.layout import PROJECT, free_ports

installed = pytest.mark.skipif(importlib.util.find_spec(audit.TOOL) is None, reason="pip-audit is not installed")
WHY = "only its XML reader is concerned, which nothing here calls"
FOUND = {
    "id": "GHSA-aaaa-bbbb-cccc",
    "aliases": ["CVE-2026-1"],
    "summary": "Anybody may do anything",
    "affected": [
        {
            "package": {"name": "idna", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "3.21"}]}],
        }
    ],
}


@contextmanager
def osv(vulnerable: dict[str, list[dict[str, Any]]]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """OSV's API on loopback; package -> what it has. Yields its URL and what was asked."""
    asked: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one packet

        def do_POST(self) -> None:
            query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            name = query["package"]["name"]
            asked.append((name, query["version"]))
            body = json.dumps({"vulns": vulnerable[name]} if name in vulnerable else {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1/query", asked
        finally:
            server.shutdown()
            thread.join()


FOUND_HERE = {"id": "CVE-2026-2", "fix_versions": ["3.21"], "description": "Anybody may do anything"}


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    (tmp_path / "requirements.lock").write_text("zipp==4.1.2\nidna==3.20\n")
    return tmp_path / "requirements.lock"


@pytest.fixture
def ignored(tmp_path: Path) -> Path:
    (tmp_path / "ignored.yaml").write_text("[]\n")
    return tmp_path / "ignored.yaml"


@installed
def test_a_vulnerability_fails_with_name_and_mending_version(
    lock: Path, ignored: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with osv({"idna": [FOUND]}) as (url, asked):
        monkeypatch.setenv(audit.OSV_URL, url)
        assert audit.main([lock], ignored) == 1
        assert set(asked) == {("zipp", "4.1.2"), ("idna", "3.20")}
        error = capsys.readouterr().err.splitlines()[0]
        assert error == (
            "error: idna 3.20 has CVE-2026-1 (GHSA-aaaa-bbbb-cccc); mended in 3.21: Anybody may do anything"
        )
        ignored.write_text(f"- {{id: GHSA-aaaa-bbbb-cccc, package: IDNA, until: 2999-01-01, why: {WHY!r}}}\n")
        assert audit.main([lock], ignored) == 0
        out = capsys.readouterr().out
        assert f"note: ignored until 2999-01-01: idna, GHSA-aaaa-bbbb-cccc: {WHY}" in out
        assert "2 locked versions audited" in out


@installed
def test_all_locked_versions_are_asked_for(monkeypatch: pytest.MonkeyPatch, ignored: Path) -> None:
    with osv({}) as (url, asked):
        monkeypatch.setenv(audit.OSV_URL, url)
        assert audit.main(ignored=ignored) == 0
    lines = [line for path in audit.LOCKS for line in path.read_text().splitlines() if "==" in line]
    assert len({name for name, _ in asked}) == len(lines)
    assert {version for _, version in asked} >= {"2.14.1", "2.9.13"}


@installed
def test_a_service_out_of_reach_is_not_checked_and_no_failure(
    lock: Path, ignored: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(audit.OSV_URL, f"http://127.0.0.1:{free_ports(1)[0]}/v1/query")
    assert audit.main([lock], ignored) == 0
    out = capsys.readouterr().out
    assert "not checked: osv: " in out
    assert "Connection refused" in out


def test_without_pip_audit_nothing_is_checked(
    lock: Path, ignored: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(audit, "TOOL", "no_such_tool")
    assert audit.main([lock], ignored) == 0
    assert "not checked: pip-audit is not installed" in capsys.readouterr().out


def test_what_counts() -> None:
    vulnerability = Vulnerability(id="PYSEC-1", aliases=["CVE-1"], description="bad")
    found = [
        Dependency(name="one", version="1", vulns=[vulnerability]),
        Dependency(name="two", version="2"),
        Dependency(name="three", skip_reason="Dependency not found"),
    ]
    today = date(2026, 11, 25)
    errors, notes = judge(found, [], today)
    assert errors == ["one 1 has PYSEC-1 (CVE-1); no version mends it yet: bad"]
    assert notes == ["1 packages are not checked, nobody knows them: three"]
    entry = Ignored(id="PYSEC-1", package="one", until=today, why=WHY)
    other = entry.model_copy(update={"package": "two"})
    errors, notes = judge(found, [entry, other], today)
    assert errors == []
    assert notes[1] == "PYSEC-1 of two is no longer found: take it from the list"
    (over,), _ = judge(found, [entry], date(2026, 11, 26))
    assert over.endswith("(ignored until 2026-11-25, which is over: look at it again)")


@pytest.mark.parametrize("entry", ["{id: A}", "{id: A, package: b, until: 2027-01-01, why: so}", "[", "text"])
def test_an_entry_without_a_reason_is_refused(
    entry: str, lock: Path, ignored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ignored.write_text(f"- {entry}\n")
    assert audit.main([lock], ignored) == 2
    assert "each entry has id, package, until (a date) and why" in capsys.readouterr().err


def test_the_projects_own_list_can_be_read_and_lint_audits() -> None:
    audit.read_ignored(audit.IGNORED)
    assert "-m infra.audit" in (PROJECT / "Makefile").read_text()


def test_pypi_is_asked_for_one_package_and_where_it_knows_none_osv_for_all(
    lock: Path, ignored: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, int]] = []
    known = [audit.Dependency(name="idna", version="3.20", vulns=[audit.Vulnerability.model_validate(FOUND_HERE)])]

    def run(locks: Sequence[Path], service: str, url: str | None) -> list[audit.Dependency]:
        assert url is None
        asked.append((service, sum(len(path.read_text().splitlines()) for path in locks)))
        if service == "pypi":
            raise audit.NotCheckedError("pypi: knows nothing")
        return known

    monkeypatch.delenv(audit.OSV_URL, raising=False)
    monkeypatch.setattr(audit, "_run", run)
    monkeypatch.setattr(audit.importlib.util, "find_spec", lambda _: True)
    assert audit.main([lock], ignored) == 1
    assert asked == [("pypi", 1), ("osv", 2)]
    assert "CVE-2026-2" in capsys.readouterr().err


@installed
def test_a_lock_that_nobody_can_read_is_a_fault_and_not_unchecked(
    tmp_path: Path, ignored: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.lock").write_text("idna==3.20\n=== no requirement ===\n")
    monkeypatch.setenv(audit.OSV_URL, "http://127.0.0.1:9/v1/query")
    assert audit.main([tmp_path / "broken.lock"], ignored) == 2
    assert "pip-audit refuses the locks" in capsys.readouterr().err
