"""Start, recognise and stop processes: by pid and time of start, never by name.

Every process of a service inherits :data:`MARKER` in its environment, so what a crash left behind
(a child whose parent died, a process started before its record was written) is found as well.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from infra.local import logs

MARKER = "SMOOTH_CLUSTER_SERVICE"
GRACE_SECONDS = 10.0
BOOT = Path("/proc/sys/kernel/random/boot_id")


class Identity(BaseModel):
    """One process: what has the same pid later, or after the next boot, is another."""

    model_config = ConfigDict(frozen=True)

    pid: int
    start: str
    """Boot and clock tick of its start. Not the time of day: setting the clock would change it."""

    @classmethod
    def of(cls, pid: int) -> Self:
        """The process that has ``pid`` now.

        Raises:
            psutil.NoSuchProcess: none has.
        """
        if not BOOT.exists():  # not Linux
            return cls(pid=pid, start=str(psutil.Process(pid).create_time()))
        try:
            text = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError) as error:
            raise psutil.NoSuchProcess(pid) from error
        ticks = text.rpartition(")")[2].split()[19]  # field 22 of proc(5); the name in brackets may hold anything
        return cls(pid=pid, start=f"{BOOT.read_text().strip()}:{ticks}")

    def process(self) -> psutil.Process | None:
        """The process, or None when it has ended."""
        try:
            process = psutil.Process(self.pid)
            if Identity.of(self.pid) != self or process.status() == psutil.STATUS_ZOMBIE:
                return None
        except psutil.NoSuchProcess:
            return None
        return process


class Record(BaseModel):
    """A started service."""

    model_config = ConfigDict(frozen=True)

    main: Identity
    keeper: Identity
    """Who writes its log (:mod:`infra.local.logs`)."""
    created: float
    """Seconds since the epoch at its start."""
    ports: dict[str, int] = {}
    """Environment variable of a port -> number."""

    @property
    def pid(self) -> int:
        """Of the process that owns all others of the service."""
        return self.main.pid

    def process(self) -> psutil.Process | None:
        """The process that owns all others of the service, or None when it has ended."""
        return self.main.process()


def read_record(path: Path) -> Record | None:
    """Read a record; one that a crash left unreadable counts as none."""
    try:
        return Record.model_validate_json(path.read_text())
    except (FileNotFoundError, ValidationError):
        return None


def start(
    command: list[str], *, environment: dict[str, str], folder: Path, log: Path, record: Path, ports: dict[str, int]
) -> Record:
    """Start ``command`` in a session of its own, out of reach of the terminal's signals, and write its record."""
    log.parent.mkdir(parents=True, exist_ok=True)
    record.parent.mkdir(parents=True, exist_ok=True)
    # Should this process be killed now: an end of the pipe that nobody holds any more ends the other one.
    reader, writer = os.pipe()
    apart: dict[str, Any] = {"env": environment, "cwd": folder, "start_new_session": True}
    try:
        keep = [sys.executable, "-I", "-S", logs.__file__, str(log)]
        keeper = subprocess.Popen(keep, stdin=reader, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **apart)
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=writer, stderr=subprocess.STDOUT, **apart)
    finally:
        os.close(reader)
        os.close(writer)
    made = Record(
        main=Identity.of(child.pid),
        keeper=Identity.of(keeper.pid),
        created=psutil.Process(child.pid).create_time(),
        ports=ports,
    )
    temporary = record.with_suffix(".partial")
    temporary.write_text(made.model_dump_json())
    temporary.replace(record)
    return made


def marked(prefix: str) -> set[str]:
    """Markers of living processes that begin with ``prefix``."""
    return {marker for process in psutil.process_iter() if (marker := _marker(process)) and marker.startswith(prefix)}


def members(record: Record | None, marker: str) -> list[psutil.Process]:
    """All living processes of a service: the recorded one, all that carry its marker, and their descendants."""
    roots = [process for process in psutil.process_iter() if _marker(process) == marker]
    if record is not None and (root := record.process()):
        roots.append(root)
    found: dict[int, psutil.Process] = {}
    for root in roots:
        try:
            descendants = root.children(recursive=True)
        except psutil.NoSuchProcess:
            continue
        found |= {process.pid: process for process in (root, *descendants)}
    found.pop(os.getpid(), None)
    return [process for process in found.values() if is_living(process)]


def _marker(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(MARKER)
    except (psutil.Error, OSError):
        return None  # it ended meanwhile, or it belongs to somebody else


def is_living(process: psutil.Process) -> bool:
    """Whether it still runs: a zombie does not, and a later process that got its id is another one."""
    try:
        return process.is_running() and bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def stop(record: Record | None, marker: str) -> int:
    """Stop a service with all its processes and return how many there were.

    The recorded process is asked first and has some seconds to end its children in order;
    what is left is terminated, then killed.
    """
    processes = {process.pid: process for process in members(record, marker)}
    root = record.process() if record is not None else None
    if root is not None:
        root.terminate()
        psutil.wait_procs([root], timeout=GRACE_SECONDS)
    deadline = time.monotonic() + GRACE_SECONDS
    signal = "terminate"
    # A living process may start another between two looks, so look until nothing is left.
    while left := {
        process.pid: process for process in (*members(record, marker), *filter(is_living, processes.values()))
    }:
        processes |= left
        for process in left.values():
            try:
                getattr(process, signal)()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(list(left.values()), timeout=3)
        signal = "kill"
        if time.monotonic() > deadline + GRACE_SECONDS:
            raise RuntimeError(f"processes {sorted(left)} can't be stopped, not even by SIGKILL")
    return len(processes)
