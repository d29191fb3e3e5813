"""The handbook of clusters: its commands parse, what they name exists, its figures are the manifests'."""

from __future__ import annotations

import re
import shlex
import subprocess

import pytest
import yaml

from infra.local.layout import PROJECT, program
from tests.deployments import COMPOSE, INFRA, NOTIFY, compose, manifest, manifests, pods

README = (INFRA / "README.md").read_text()
BLOCKS = re.findall(r"(?:^    .+\n)+", README, flags=re.MULTILINE)
LINES = [line.strip() for block in BLOCKS for line in block.splitlines()]
MADE = {"infra/cluster.env", "infra/ray-cluster.local.yaml"}  # by the commands themselves


@pytest.mark.parametrize("line", LINES)
def test_each_command_parses_and_names_files_that_exist(line: str) -> None:
    assert subprocess.run(["bash", "-n", "-c", line], check=False).returncode == 0
    for path in re.findall(r"(?<![\w/.-])infra/[\w./-]+", line):
        assert path in MADE or (PROJECT / path).exists()
    for name in re.findall(r"(?:^|\s)\.venv/bin/(\w+)", line):
        assert (PROJECT / program(name)).is_file()
    for module in re.findall(r"-m (infra\.\w+)", line):
        assert (PROJECT / f"{module.replace('.', '/')}.py").is_file()


def test_compose_commands_give_the_credentials_and_name_services_and_profiles() -> None:
    services = compose()["services"]
    seen = set()
    for words in (shlex.split(line) for line in LINES if line.startswith("docker compose")):
        assert words[2:6] == ["--env-file", "infra/cluster.env", "--file", "infra/compose.yaml"]
        rest = words[6:]
        if rest[0] == "--file":
            assert PROJECT / rest[1] == NOTIFY
            rest = rest[2:]
        if rest[0] == "--profile":
            assert rest[1] in {profile for service in services.values() for profile in service.get("profiles", [])}
            rest = rest[2:]
        seen.add(rest[0])
        if rest[0] == "exec":
            assert rest[1] in services
            # `exec` passes the image's entrypoint by, so what needs a credential names it.
            assert rest[2] in ("infra/entrypoint.sh", "hf")
    assert seen == {"build", "up", "exec"}


def test_kubectl_commands_name_objects_of_the_manifests() -> None:
    names = {f"{item['kind'].lower()}/{item['metadata']['name']}" for item in manifests()} | {"service/smooth-head-svc"}
    named = set(re.findall(r"\b(?:deployment|service)/[a-z-]+", README))
    assert len(named) >= 4
    assert named <= names
    namespace = yaml.safe_load((INFRA / "kuberay/kustomization.yaml").read_text())["namespace"]
    assert set(re.findall(r"--namespace (\S+)", README)) == {namespace}
    groups = [group["groupName"] for group in manifest("RayCluster", "smooth")["spec"]["workerGroupSpecs"]]
    assert re.findall(r"Group 0 is `(\w+)`, 1 `(\w+)`, 2 `(\w+)`", README) == [tuple(groups)]
    assert "/spec/workerGroupSpecs/2/replicas" in README
    assert "smooth-credentials --from-env-file" in README


def test_the_variables_of_compose_are_all_told_with_their_defaults() -> None:
    written = COMPOSE.read_text()
    defaults = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", written))
    table = re.findall(r"^\| (`[A-Z_`, ]+`) \| (.*) \|$", README, flags=re.MULTILINE)
    told = {name: meaning for names, meaning in table for name in re.findall(r"`(\w+)`", names)}
    assert told.keys() == defaults.keys()
    assert {name for name, default in defaults.items() if default not in told[name]} == set()


def test_what_it_costs_is_what_the_manifests_ask() -> None:
    cpus, memory = 0.0, 0.0
    for pod in pods():
        for container in pod.spec["containers"] if pod.name not in ("gpu", "serve") else []:
            asked = container["resources"]["requests"]
            cpus += float(asked["cpu"][:-1]) / 1000 if asked["cpu"].endswith("m") else float(asked["cpu"])
            memory += float(asked["memory"][:-2]) / (1024 if asked["memory"].endswith("Mi") else 1)
    (serve,) = (pod.containers[0]["resources"]["requests"] for pod in pods() if pod.name == "serve")
    claims = [item for item in manifests() if item["kind"] == "PersistentVolumeClaim"]
    claims += manifest("StatefulSet", "postgres")["spec"]["volumeClaimTemplates"]
    volumes = sum(int(claim["spec"]["resources"]["requests"]["storage"][:-2]) for claim in claims)
    text = " ".join(README.split())
    assert f"on Kubernetes {cpus:.0f} CPUs, {memory:.0f} GB of memory and {volumes} GB of volumes" in text
    assert f"each pod of `serve` {serve['cpu']} CPUs and {serve['memory'][:-2]} GB more" in text
