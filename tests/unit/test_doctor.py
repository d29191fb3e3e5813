"""`smooth doctor` and its checks of software and machine: each bad case provoked for real."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infra.local import layout
from smooth.cli import app
from smooth.doctor import machine, software
from smooth.doctor.finding import GIB, Finding
from tests.doctored import LOOPBACK, config, only, small_disk
from tests.doctored import alone as alone


def test_a_package_of_another_version_and_a_missing_one(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.write_text("PyYAML==1.0\nrich==15.0.0\n# a comment==2\n")
    assert software.packages(lock).level == "warning"
    assert "1 of 2 have other versions: PyYAML 6" in software.packages(lock).found
    lock.write_text("no-such-package==1.0\n")
    assert software.packages(lock) == Finding(
        "packages", "error", "1 of 1 are missing: no-such-package 1.0", software.REINSTALL
    )
    assert software.packages(tmp_path / "none").level == "warning"
    assert software.packages().found.startswith("all ")


def test_the_backport_that_breaks_prefect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert software.backport().level == "ok"
    (tmp_path / "dataclasses-0.6.dist-info").mkdir()
    (tmp_path / "dataclasses-0.6.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: dataclasses\nVersion: 0.6\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert software.backport().level == "error"
    assert "dataclasses 0.6" in software.backport().found


# Machine


def test_a_disk_without_room(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", "8m") as small:
        (found, artifacts) = (
            finding for finding in machine.disk(config(f"storage.root={small}")) if finding.check == "disk"
        )
        assert (found.level, artifacts.level) == ("ok", "error")
        assert "0.0 GiB free at " in artifacts.found
        assert f"make room in {small}" in artifacts.mend
    assert only(machine.disk(config()), "disk").level == "ok"
    assert only(machine.disk(config("storage.root=s3://bucket/smooth")), "disk").found.endswith("1.0 are needed")


def test_a_full_temporary_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with small_disk(tmp_path / "small", "1m") as small:
        monkeypatch.setattr(tempfile, "tempdir", str(small))
        assert only(machine.disk(config()), "temporary").level == "ok"
        (small / "large").write_bytes(bytes(1000 << 10))
        found = only(machine.disk(config()), "temporary")
    assert (found.level, found.found) == ("error", f"{small} is 98% full")


def test_what_a_run_writes_is_bounded_by_its_config() -> None:
    more = machine.disk_bytes(config("evaluate.pictures=1000000"))
    assert more - machine.disk_bytes(config("evaluate.pictures=2")) == 2 * 999_998 * 64 * 64 * 3
    asked = ("evaluate.prompts=1007", "evaluate.frames=13", "evaluate.reconstructions=105")
    none = ("evaluate.prompts=7", "evaluate.frames=13", "evaluate.reconstructions=5")
    more = machine.disk_bytes(config(*asked)) - machine.disk_bytes(config(*none))
    assert more == 2 * (1000 * 13 + 3 * 100) * 64 * 64 * 3  # as they are kept: both models, each way
    full = machine.disk_bytes(config("train.method=full", "train.best_checkpoints=0", "train.last_checkpoints=1"))
    assert full - machine.disk_bytes(config()) == 2 * 4 * machine.UNET_BYTES


def test_too_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = machine.memory(config("evaluate.actors=10000"))
    assert found.level == "error"
    assert "10000 processes" in found.found
    (tmp_path / "memory.max").write_text(f"{GIB}\n")
    (tmp_path / "memory.current").write_text(f"{GIB * 3 // 4}\n")
    monkeypatch.setattr(machine, "CGROUP", tmp_path / "memory.max")
    found = machine.memory(config())
    assert found.level == "error"
    assert found.found.startswith("0.2 of 1.0 GiB free")


def test_too_little_shared_memory(tmp_path: Path) -> None:
    with small_disk(tmp_path / "shm", "64m") as shm:  # what a container has
        found = machine.shared_memory(shm)
    assert found.level == "warning"
    assert "--shm-size" in found.mend
    assert machine.shared_memory(tmp_path / "none").level == "warning"


@pytest.mark.parametrize(("soft", "hard", "level"), [(256, 256, "error"), (1024, 4096, "warning"), (1024, 9000, "ok")])
def test_few_open_files(soft: int, hard: int, level: str) -> None:
    code = "from smooth.doctor import machine; print(machine.open_files().level)"
    limited = f"ulimit -Sn {soft} && ulimit -Hn {hard} && exec {sys.executable} -c '{code}'"
    environment = os.environ | {"PYTHONPATH": str(layout.PROJECT)}
    result = subprocess.run(["bash", "-c", limited], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == level


GPU = "NVIDIA H100 80GB HBM3, {driver}, 81559, 1024"


@pytest.mark.parametrize(
    ("script", "overrides", "level", "text"),
    [
        (None, [], "ok", "none on this machine, and preset tiny asks for 0"),
        (None, ["train.gpus_per_worker=1"], "warning", "none on this machine, preset tiny asks for 2"),
        (f"echo '{GPU}'", ["train.gpus_per_worker=1"], "warning", "1 on this machine, preset tiny asks for 2"),
        (f"echo '{GPU}'", [], "ok", "NVIDIA H100 80GB HBM3, driver 580.65.06, 80 GiB, 1 in use"),
        (f"echo '{GPU}'".replace("{driver}", "535.1"), [], "error", "torch's CUDA 13 needs driver 580"),
        ("echo couldn\\'t communicate with the driver; exit 9", [], "error", "couldn't communicate with the driver"),
    ],
)
def test_gpus(
    script: str | None,
    overrides: list[str],
    level: str,
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if script is not None:
        (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n" + script.replace("{driver}", "580.65.06") + "\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    (found,) = machine.gpus(config(*overrides))
    assert found.level == level
    assert text in found.found
    assert bool(found.mend) == (level != "ok")


# The command


def invoke(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["doctor", *words])
    return result.exit_code, result.stdout


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_the_exit_status_tells_an_error(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, _ = invoke(*words, "-o", "evaluate.actors=1", "-o", "train.workers=1")
    assert code == 0
    with socket.create_server((LOOPBACK, 0)) as taken:
        monkeypatch.setenv("SMOOTH_RAY_PORT", str(taken.getsockname()[1]))
        code, text = invoke(*words)
    assert code == 1
    assert "is taken by another program" in text


def test_json_holds_what_the_lines_say() -> None:
    _, text = invoke("--json")
    _, lines = invoke()
    findings = json.loads(text)
    assert {finding["level"] for finding in findings} <= {"ok", "warning", "error"}
    assert all(bool(finding["mend"]) == (finding["level"] != "ok") for finding in findings)
    assert all(finding["check"] in lines for finding in findings)
    assert len(findings) >= 18


def test_an_unknown_preset_is_a_users_mistake() -> None:
    assert invoke("--preset", "tini")[0] == 2


def test_nothing_heavy_is_loaded() -> None:
    code = (
        "import sys\nfrom smooth.config import RunConfig\nfrom smooth.doctor.cli import examine\n"
        "examine(RunConfig.load('tiny'))\n"
        "print([name for name in ('torch', 'ray', 'mlflow', 'diffusers', 'prefect') if name in sys.modules])"
    )
    environment = os.environ | {"PYTHONPATH": str(layout.PROJECT), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
