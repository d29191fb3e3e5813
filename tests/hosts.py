"""Hosts made of Linux network namespaces on one switch, with a Ray over them: a cable can be pulled, a host killed.

Only the network is theirs alone; they share the file system, as hosts share a mounted one.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

import psutil
import pytest

RAY_PORT = 6379
START_SECONDS = 240  # of a Ray node where others compute
MEMORY = "--object-store-memory=100000000"
RAY = (str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats")
NAME = re.compile(r"smooth-(\d+)-.*")  # of a namespace: whose it is, and which


def reason_against() -> str | None:
    """Why this machine has no such hosts, if it has none."""
    if os.geteuid() != 0:
        return "hosts of network namespaces need root"
    if shutil.which("ip") is None:
        return "hosts of network namespaces need iproute2"
    name = f"probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
    return f"no network namespaces here: {made.stderr.strip()}" if made.returncode else None


_against = reason_against()
needed = pytest.mark.skipif(_against is not None, reason=_against or "")


class Hosts:
    """Hosts, each a network namespace whose ``eth0`` is plugged into the bridge of another, which is the switch."""

    environment: Mapping[str, str] = {}  # of all that is started on them

    def __init__(self, count: int) -> None:
        self.names = [f"smooth-{os.getpid()}-{number}" for number in range(count)]
        self.switch = f"smooth-{os.getpid()}-switch"
        self.pulled = set[int]()
        self._started: list[psutil.Popen] = []

    def build(self) -> None:
        """Make the switch and plug the hosts in."""
        _ip("netns", "add", self.switch)
        self._at(self.switch, "link", "add", "bridge0", "type", "bridge")
        self._at(self.switch, "link", "set", "bridge0", "up")
        for host, name in enumerate(self.names):
            _ip("netns", "add", name)
            cable = ("peer", "name", "eth0", "netns", name)
            self._at(self.switch, "link", "add", f"port{host}", "type", "veth", *cable)
            self._at(self.switch, "link", "set", f"port{host}", "master", "bridge0", "up")
            self._at(name, "address", "add", f"{address(host)}/24", "dev", "eth0")
            self._at(name, "link", "set", "eth0", "up")
            self._at(name, "link", "set", "lo", "up")

    def remove(self) -> None:
        """End all that runs on the hosts, then take them down."""
        for name in (*self.names, self.switch):
            _remove(name)
        for process in self._started:
            process.wait()

    def pull(self, host: int) -> None:
        """Pull the host's cable: packets are lost, and nobody is told."""
        self._at(self.switch, "link", "set", f"port{host}", "down")
        self.pulled.add(host)

    def plug(self, host: int) -> None:
        """Plug the cable in again."""
        self._at(self.switch, "link", "set", f"port{host}", "up")
        self.pulled.discard(host)

    def processes(self, host: int) -> list[psutil.Process]:
        """All that runs on the host."""
        return _processes(self.names[host])

    def start(self, host: int, command: tuple[str, ...], output: IO[str]) -> psutil.Popen:
        """Start a command on the host."""
        process = psutil.Popen(
            ["ip", "netns", "exec", self.names[host], *command],
            stdout=output, stderr=subprocess.STDOUT,
            env=os.environ | self.environment,
        )  # fmt: skip
        self._started.append(process)
        return process

    def _at(self, name: str, *command: str) -> None:
        _ip("-netns", name, *command)


class Cluster(Hosts):
    """A Ray whose head is on host 0, with a node of one CPU on each other host: a worker a host."""

    def __init__(self, count: int, folder: Path, **settings: str) -> None:
        """``folder`` takes Ray's logs; its path must be short, for Ray's sockets lie there, too."""
        super().__init__(count)
        self.folder = folder
        self.nodes = dict[int, psutil.Popen]()
        token = folder / "token"
        token.write_text("0123456789abcdef" * 4)
        token.chmod(0o600)
        self.environment = {
            "RAY_ADDRESS": f"{address(0)}:{RAY_PORT}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            # The name of this machine, which all hosts have, is the address of none of them.
            "GLOO_SOCKET_IFNAME": "eth0",
            **settings,
        }

    def start_nodes(self) -> None:
        """Start Ray on all hosts."""
        for host in range(len(self.names)):
            self._start_node(host)

    def tend(self) -> None:
        """Start Ray again where it has ended, as a supervisor does; without a network it would not start."""
        for host, node in list(self.nodes.items()):
            if node.poll() is not None and host not in self.pulled:
                self.kill_node(host)
                self._start_node(host)

    def kill_node(self, host: int) -> None:
        """Kill the Ray node of a host at one blow: its raylet, its agents and its workers."""
        for process in self.processes(host):
            with suppress(psutil.Error):
                process.kill()
        self.nodes[host].wait()

    def _start_node(self, host: int) -> None:
        """Start Ray on the host; return when it is up."""
        head = ("--head", f"--port={RAY_PORT}", "--include-dashboard=false", "--num-cpus=0")
        log = self.folder / f"ray-{host}.log"
        with log.open("a") as output:
            begun = output.tell()
            role = (f"--address={address(0)}:{RAY_PORT}", "--num-cpus=1") if host else head
            place = (f"--node-ip-address={address(host)}", f"--temp-dir={self.folder}/{host}")
            node = self.nodes[host] = self.start(host, (*RAY, *role, *place, MEMORY), output)
        deadline = time.monotonic() + START_SECONDS
        while "Ray runtime started" not in log.read_text()[begun:]:
            assert node.poll() is None, log.read_text()[begun:]
            assert time.monotonic() < deadline, f"no Ray on host {host} after {START_SECONDS} s"
            time.sleep(0.2)


def address(host: int) -> str:
    """Of a host on the switch, which is nobody else's network."""
    return f"10.0.0.{host + 1}"


def _remove_leftovers() -> None:
    """What tests left behind that were killed themselves."""
    for line in subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout.splitlines():
        name = line.split()[0]
        if (match := NAME.fullmatch(name)) and not psutil.pid_exists(int(match[1])):
            _remove(name)


def _remove(name: str) -> None:
    for process in _processes(name):
        with suppress(psutil.Error):
            process.kill()
    subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def _processes(name: str) -> list[psutil.Process]:
    listed = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False).stdout
    found = []
    for pid in listed.split():
        with suppress(psutil.NoSuchProcess):
            found.append(psutil.Process(int(pid)))
    return found


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@contextmanager
def connected(count: int, **settings: str) -> Iterator[Cluster]:
    """So many hosts on a switch, gone when the block ends, whatever happens in it; Ray is still to be started.

    ``settings`` are environment variables of all that runs on them.
    """
    _remove_leftovers()
    with ExitStack() as stack:
        # Not under pytest's tmp_path: the sockets' paths would be too long.
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="hosts-", ignore_cleanup_errors=True))
        cluster = Cluster(count, Path(folder), **settings)
        stack.callback(cluster.remove)
        cluster.build()
        yield cluster
