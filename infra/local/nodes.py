"""Ray's head and its further nodes on this machine, all on loopback.

Ray takes the machine's outer address for its nodes and listens everywhere, whatever ``--node-ip-address`` says, unless
it believes that it can have no other machines: then nodes are 127.0.0.1, and even what asks for no token (metrics,
health) stays on loopback.
"""

from __future__ import annotations

import json
import os
import shutil
from typing import Any

from infra.local import http
from infra.local.access import PREFECT_LOGIN, RAY_HOST, Access
from infra.local.layout import DASHBOARD_PORT, HOST, RAY_PORT, ClusterError, free_ports, program, write_private
from infra.local.processes import Record
from infra.local.service import Service

ONE_MACHINE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's variable for more than one node where it can't be told from the system; "0" means loopback."""
# Ray takes what is free when it listens: a port chosen before may be somebody else's by then, and two nodes fit one
# machine. Only its client server (ray://), which can't be left out, wants a number. Tasks have free ports, too: Ray's
# own range would collide with a head that a user moved into it.
INNER = ("--dashboard-agent-listen-port=0", "--min-worker-port=0", "--max-worker-port=0")
NODE_OBJECTS = 512_000_000
"""Bytes of shared memory of a further node; the head has Ray's default, a third of the machine's."""
LOG_BYTES, OLD_LOGS = 10_000_000, 3


class _Node(Service):
    def environment(self) -> dict[str, str]:
        """Without Prefect's login, which no stage needs; Ray's own logs stay small."""
        rotation = {"RAY_ROTATION_MAX_BYTES": str(LOG_BYTES), "RAY_ROTATION_BACKUP_COUNT": str(OLD_LOGS)}
        found = super().environment() | rotation
        return {name: value for name, value in found.items() if name not in PREFECT_LOGIN}

    def living_nodes(self) -> list[dict[str, Any]]:
        """What the head knows of its nodes; nothing as long as it does not answer to our token."""
        nodes = f"{self.access.own_url(DASHBOARD_PORT)}/api/v0/nodes"
        answer = http.request(nodes, headers=self.access.ray_headers())
        if answer is None or answer[0] != 200:
            return []
        return [node for node in json.loads(answer[1])["data"]["result"]["result"] if node["state"] == "ALIVE"]


class RayHead(_Node):
    """Ray's head node with its dashboard and job API."""

    name = "ray"
    title = "Ray"
    ports = (RAY_PORT, DASHBOARD_PORT)

    def prepare(self) -> None:
        """Make the token and an empty folder that only this user can enter."""
        write_private(self.layout.token, self.access.secrets["SMOOTH_RAY_TOKEN"])
        folder = self.layout.ray_folder
        if folder.exists() and folder.stat().st_uid != os.getuid():
            raise ClusterError(f"{folder} belongs to another user; remove it")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)

    def command(self) -> list[str]:
        """In the foreground: one process owns all others."""
        return [
            *(program("ray"), "start", "--head", "--block", "--disable-usage-stats", "--include-dashboard=true"),
            f"--node-ip-address={HOST}",
            f"--port={self.number(RAY_PORT)}",
            f"--dashboard-host={HOST}",
            f"--dashboard-port={self.number(DASHBOARD_PORT)}",
            f"--num-cpus={max(2, os.cpu_count() or 1)}",
            f"--temp-dir={self.layout.ray_folder}",
            f"--ray-client-server-port={free_ports(1)[0]}",
            *INNER,
        ]

    def environment(self) -> dict[str, str]:
        """With the two ports that are no options, and more than Ray's 20 s for its own server."""
        ports = {"AUTOSCALER_METRIC_PORT": "0", "DASHBOARD_METRIC_PORT": "0"}
        return super().environment() | ports | {ONE_MACHINE: "0", "RAY_gcs_server_port_wait_time_s": "240"}

    def is_healthy(self, record: Record) -> bool:  # noqa: ARG002
        """Whether its own node is there: the job API answers long before."""
        return any(node["is_head_node"] for node in self.living_nodes())

    def url(self) -> str:
        """The dashboard."""
        return self.access.url(DASHBOARD_PORT)


class RayNode(_Node):
    """A further node of one CPU, as another machine would be: for trying what a cluster does."""

    PREFIX = "ray-node-"

    def __init__(self, access: Access, index: int) -> None:
        """``index`` counts from 1."""
        super().__init__(access)
        self.name = f"{self.PREFIX}{index}"
        self.title = f"Ray node {index}"

    def command(self) -> list[str]:
        """In the foreground."""
        return [
            *(program("ray"), "start", "--block", "--disable-usage-stats", "--num-cpus=1", "--num-gpus=0"),
            f"--address={RAY_HOST}:{self.number(RAY_PORT)}",
            f"--object-store-memory={NODE_OBJECTS}",
            f"--node-name={self.name}",
            *INNER,
        ]

    def environment(self) -> dict[str, str]:
        """It may join; its own address is the one that it reaches the head from, loopback."""
        return super().environment() | {ONE_MACHINE: "1"}

    def is_healthy(self, record: Record) -> bool:  # noqa: ARG002
        """Whether the head counts it among the living."""
        return any(node["node_name"] == self.name for node in self.living_nodes())
