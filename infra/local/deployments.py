"""The deployments and automations that the Prefect server shall have."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

from infra.local import http
from infra.local.access import Access
from infra.local.layout import PREFECT_PORT, PROJECT, ClusterError, program

DEPLOYMENT = "smooth-train/full"
TOLD = ("SMOOTH_NOTIFY_URL", "SMOOTH_SILENT_SECONDS")
"""what the automations are made of, too"""


def register(access: Access, environment: dict[str, str]) -> None:
    """Register them, unless the server has them as they are now.

    Args:
        access: where the server is.
        environment: of Prefect's command.

    Raises:
        ClusterError: Prefect refuses them.
    """
    server = f"{access.url(PREFECT_PORT)}/api"
    file = PROJECT / "infra" / "prefect.yaml"
    presets = (PROJECT / "smooth" / "presets").glob("*.yaml")  # the form lists them
    sources = [file, *sorted((PROJECT / "flows").glob("*.py")), *sorted(presets)]
    told = [os.environ.get(name, "").encode() for name in TOLD]
    digest = hashlib.sha256(b"\0".join([*(path.read_bytes() for path in sources), *told])).hexdigest()
    deployed = access.layout.deployed
    known = deployed.read_text() if deployed.is_file() else ""
    if known == digest and http.is_ok(f"{server}/deployments/name/{DEPLOYMENT}", access.prefect_headers()):
        return
    environment = environment | {name: os.environ[name] for name in TOLD if name in os.environ}
    deploy = [program("prefect"), "--no-prompt", "deploy", "--prefect-file", str(file), "--all"]
    for command in (deploy, [sys.executable, "-m", "flows.automations"]):
        result = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
        if result.returncode:
            raise ClusterError(f"the deployments could not be registered:\n{result.stdout}{result.stderr}")
    deployed.write_text(digest)
