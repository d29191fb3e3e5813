"""The Dockerfile's steps on this machine, as far as they change nothing of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from infra.local.layout import PROJECT
from tests.deployments import copied, dockerfile

SHIM = 'python() { [[ "$2" == pip && "$3" == install ]] && echo "pip: $*" >> "$CALLS" || "$PYTHON" "$@"; }\n'


def steps(stage: str) -> list[str]:
    """The RUN steps of a stage without their mounts."""
    found = [step.value for step in dockerfile() if (step.stage, step.name) == (stage, "RUN")]
    return [re.sub(r"^(--mount=\S+\s+)+", "", value) for value in found]


@pytest.mark.parametrize("index", ["", "https://torch.example/cpu"])
def test_the_images_packages_are_the_locks(index: str, tmp_path: Path) -> None:
    locks, calls = tmp_path / "locks", tmp_path / "calls"
    locks.mkdir()
    for name in ("requirements.lock", "requirements.cluster.lock"):
        shutil.copy(PROJECT / "infra" / name, locks)
    environment = os.environ | {"CALLS": str(calls), "PYTHON": sys.executable, "TORCH_CPU_INDEX": index}
    venv, *installs = steps("packages")
    assert venv == "python -m venv /opt/venv"
    for step in installs:
        script = SHIM + step.replace("/opt/locks", str(locks))
        subprocess.run(["bash", "-euo", "pipefail", "-c", script], env=environment, check=True)
    called = calls.read_text().splitlines()
    assert len(called) == (3 if index else 2)
    whole = (locks / "requirements.lock").read_text().splitlines()
    if index:
        assert f"--index-url {index} --requirement {locks}/torch.lock" in called[0]
        torch, rest = ((locks / name).read_text().splitlines() for name in ("torch.lock", "rest.lock"))
        assert [line.split("==")[0] for line in torch] == ["torch", "torchvision"]
        dropped = set(whole) - set(torch) - set(rest)
        assert {re.split("[-=]", line)[0] for line in dropped} == {"cuda", "nvidia", "triton"}
    else:  # what pip makes of the lock, without installing
        asked = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--quiet", "--no-index"]
        subprocess.run([*asked, "--requirement", str(locks / "requirements.lock")], check=True, timeout=300)


def test_the_project_installs_from_what_the_image_copies(tmp_path: Path) -> None:
    project = copied(tmp_path / "smooth")
    (step,) = steps("cpu")
    command = step.replace("python ", f"{sys.executable} ") + " --dry-run --no-index"
    made = subprocess.run(["bash", "-c", command], cwd=project, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    assert "Would install smooth-" in made.stdout


def test_steps_that_would_change_this_machine_are_bash_at_least() -> None:
    for step in (*steps("base"), *steps("cuda")):  # apt-get and groupadd
        assert subprocess.run(["bash", "-n", "-c", step], check=False).returncode == 0
