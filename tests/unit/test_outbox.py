"""Notes to a server that comes and goes: none is lost, memory is bounded, and nobody waits longer than asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from smooth import outbox
from smooth.outbox import AwayError, Note, Outbox
from smooth.tracked import Run


class Server:
    """Takes notes while it is there."""

    def __init__(self) -> None:
        self.there = threading.Event()
        self.there.set()
        self.taken: list[Note] = []
        self.refuses: Exception | None = None

    def send(self, notes: list[Note]) -> None:
        assert len(notes) <= outbox.BATCH
        if self.refuses is not None:
            raise self.refuses
        if not self.there.is_set():
            raise AwayError("the server does not answer")
        self.taken += notes


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setattr(outbox, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(outbox, "SEND_SECONDS", 0.05)
    return Server()


@pytest.fixture
def box(server: Server, tmp_path: Path) -> Iterator[Outbox]:
    box = Outbox(server.send, str(tmp_path))
    yield box
    box.close()


def notes(*numbers: int) -> list[Note]:
    return [{"number": number} for number in numbers]


def kept(folder: Path) -> list[Path]:
    return sorted((folder / outbox.FOLDER).glob("*.json"))


def test_all_arrive_in_order(server: Server, box: Outbox, tmp_path: Path) -> None:
    for number in range(1200):
        box.put(notes(number))
    assert box.flush(30) == 0
    assert server.taken == notes(*range(1200))
    assert kept(tmp_path) == []


def test_none_is_lost_while_the_server_is_away(
    server: Server, box: Outbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "HELD", 50)
    server.there.clear()
    for number in range(200):
        box.put(notes(number))
    assert 1 <= len(kept(tmp_path)) <= 4  # not all is held in memory
    begun = time.monotonic()
    assert box.flush(0.2) > 0
    assert time.monotonic() - begun < 25
    server.there.set()
    assert box.flush(30) == 0
    assert sorted(note["number"] for note in server.taken) == list(range(200))
    assert kept(tmp_path) == []


def test_the_next_process_sends_what_one_has_left(server: Server, box: Outbox, tmp_path: Path) -> None:
    server.there.clear()
    box.put(notes(1, 2, 3))
    assert box.flush(0.1) > 0
    box.close()  # the process ends
    server.there.set()
    other = Outbox(server.send, str(tmp_path))
    other.look()
    assert other.flush(30) == 0
    other.close()
    assert server.taken == notes(1, 2, 3)
    assert kept(tmp_path) == []


def test_without_a_folder_the_first_failure_is_told(server: Server) -> None:
    server.there.clear()
    box = Outbox(server.send)
    box.put(notes(1))
    with pytest.raises(AwayError, match="does not answer"):
        box.flush()
    server.there.set()
    assert box.flush() == 0
    box.close()
    assert server.taken == notes(1)


def test_what_the_server_refuses_is_raised_where_the_notes_come_from(server: Server, box: Outbox) -> None:
    server.refuses = ValueError("the run was deleted")
    box.put(notes(1))
    with pytest.raises(ValueError, match="the run was deleted"):
        box.flush(30)
    with pytest.raises(ValueError, match="the run was deleted"):
        box.put(notes(2))


class Refusing:
    """In the place of MLflow's client: takes no metrics, and notes how the run ended."""

    ended = ""

    def log_batch(self, *_: object, **__: object) -> None:
        raise MlflowException("this value can't be", error_code=INVALID_PARAMETER_VALUE)

    def set_terminated(self, _run_id: str, status: str) -> None:
        self.ended = status


def test_a_run_whose_metrics_are_refused_ends_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "SEND_SECONDS", 0.05)
    client = Refusing()
    run = Run(cast(MlflowClient, client), "r", "http://127.0.0.1:5000")
    run.log_metrics({"loss": 0.5})
    run.end("FAILED")
    assert client.ended == "FAILED"
