"""The studio's own rules: who may reach it, which models it names, and work that is called off."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from smooth.cli import app
from smooth.listening import is_loopback
from smooth.studio import server
from smooth.studio.jobs import Jobs
from smooth.studio.models import Models


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0 can be reached from other machines; give --auth FILE"),
        (["--host", "example.org"], "--host example.org can be reached from other machines"),
        (["--auth", "none"], "--auth none: no such file"),
        (["--auth", "empty"], "--auth empty: its first line is not user:password"),
        (["--port", "PORT"], "give another --port"),
        (["--port", "0", "--model", "none.ckpt"], "is a pickle"),
    ],
)
def test_a_user_s_mistake_is_one_line_and_exit_code_2(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in server.ENVIRONMENT:
        monkeypatch.setenv(name, "")  # what the command sets is put back
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    Path("empty").write_text("user:\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = CliRunner().invoke(app, ["studio", *(port if word == "PORT" else word for word in words)])
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False)],
)
def test_loopback_is_told_from_the_rest(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_user_and_password_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "auth"
    path.write_text("ada:with:colons\n")
    assert server.read_auth("0.0.0.0", str(path)) == ("ada", "with:colons")
    assert server.read_auth("127.0.0.1", None) is None


def test_a_page_can_open_only_what_is_offered() -> None:
    models = Models(["builtin:tiny"], "builtin:tiny")
    for name in ("/etc", "someone/sd", "", None):
        with pytest.raises(ValueError, match="choose one of the list"):
            models.open(name)


def test_without_a_registry_there_is_what_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMOOTH_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    choices, _ = Models(["mine", "builtin:tiny"], "builtin:tiny").listed()
    assert [name for _, name in choices] == ["mine", "builtin:tiny"]
    assert list(tmp_path.iterdir()) == []


def test_a_session_calls_off_its_own_job_alone() -> None:
    jobs = Jobs()
    ada, bob = jobs.start("ada"), jobs.start("bob")
    jobs.cancel("ada")
    jobs.cancel("nobody")
    assert (ada.is_set(), bob.is_set()) == (True, False)
    jobs.start("bob")
    assert bob.is_set()
