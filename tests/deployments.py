"""The files of infra/ as their programs read them: compose with its variables filled in, manifests, the Dockerfile."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from dockerfile_parse import DockerfileParser

from infra.credentials import CREDENTIALS
from infra.local.layout import PROJECT

INFRA = PROJECT / "infra"
COMPOSE = INFRA / "compose.yaml"
NOTIFY = INFRA / "compose.notify.yaml"
KUBERAY = INFRA / "kuberay"
SECRETS = {name: make() for name, make in CREDENTIALS.items()}

VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?:(?P<rule>:[-?+])(?P<text>[^}]*))?\}")


class MissingVariableError(ValueError):
    """A variable that compose demands is not set; the message is the file's."""


def interpolated(value: Any, environment: Mapping[str, str]) -> Any:
    """What compose makes of a parsed file: ``${X}``, ``${X:-default}``, ``${X:?message}`` and ``${X:+text}``."""
    if isinstance(value, dict):
        return {key: interpolated(item, environment) for key, item in value.items()}
    if isinstance(value, list):
        return [interpolated(item, environment) for item in value]
    if not isinstance(value, str):
        return value

    def of(match: re.Match[str]) -> str:
        name, rule, text = match["name"], match["rule"], match["text"]
        found = environment.get(name, "")
        if rule == ":?" and not found:
            raise MissingVariableError(f"{name}: {text}")
        if rule == ":+":
            return text if found else ""
        if rule == ":-":
            return found or text
        assert found or rule == ":?", f"${{{name}}} has no default and is not demanded"
        return found

    return VARIABLE.sub(of, value)


def compose(*over: Path, **environment: str) -> dict[str, Any]:
    """The compose file with those ``over`` it, the credentials of a cluster, and ``environment`` over them."""
    document = yaml.safe_load(COMPOSE.read_text())
    for path in over:
        document = merged(document, yaml.safe_load(path.read_text()))
    result: dict[str, Any] = interpolated(document, SECRETS | environment)
    return result


def merged(below: Any, over: Any) -> Any:
    """What compose makes of two files: mappings are merged, lists appended, anything else is replaced."""
    if isinstance(below, dict) and isinstance(over, dict):
        return {key: merged(below[key], over[key]) if key in below and key in over else (below | over)[key]
                for key in below | over}  # fmt: skip
    return below + over if isinstance(below, list) and isinstance(over, list) else over


def manifests() -> list[dict[str, Any]]:
    """All objects of the folder kuberay/ that its kustomization names, the caller's to change."""
    return deepcopy(_manifests())


@cache
def _manifests() -> list[dict[str, Any]]:
    named = yaml.safe_load((KUBERAY / "kustomization.yaml").read_text())["resources"]
    return [document for name in named for document in yaml.safe_load_all((KUBERAY / name).read_text())]


def manifest(kind: str, name: str) -> dict[str, Any]:
    """One object of the manifests."""
    (found,) = (item for item in manifests() if (item["kind"], item["metadata"]["name"]) == (kind, name))
    return found


@dataclass(frozen=True)
class Pod:
    """A pod that the manifests make, with the labels that KubeRay adds."""

    name: str
    labels: dict[str, str]
    spec: dict[str, Any]

    @property
    def containers(self) -> list[dict[str, Any]]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]


def pods() -> Iterator[Pod]:
    """Every pod of the manifests."""
    for item in manifests():
        if item["kind"] in ("Deployment", "StatefulSet"):
            template = item["spec"]["template"]
            yield Pod(item["metadata"]["name"], template["metadata"]["labels"], template["spec"])
    ray = manifest("RayCluster", "smooth")
    groups = [{"groupName": "headgroup", **ray["spec"]["headGroupSpec"]}, *ray["spec"]["workerGroupSpecs"]]
    for group in groups:
        labels = {
            "ray.io/cluster": ray["metadata"]["name"],
            "ray.io/group": group["groupName"],
            "ray.io/node-type": "head" if group["groupName"] == "headgroup" else "worker",
        }
        yield Pod(group["groupName"], labels, group["template"]["spec"])


def environment_of(container: Mapping[str, Any]) -> dict[str, str | None]:
    """A container's variables; None where the value is a secret's."""
    return {item["name"]: item.get("value") for item in container.get("env", [])}


@dataclass(frozen=True)
class Step:
    """An instruction of the Dockerfile, in the stage it belongs to ("" before the first)."""

    stage: str
    name: str
    value: str


def dockerfile() -> list[Step]:
    """The Dockerfile's instructions."""
    parser = DockerfileParser(fileobj=io.BytesIO((INFRA / "Dockerfile").read_bytes()))
    steps, stage = [], ""
    for item in parser.structure:
        if item["instruction"] == "FROM":
            stage = item["value"].split(" AS ")[1]
        if item["instruction"] != "COMMENT":
            steps.append(Step(stage, item["instruction"], item["value"]))
    return steps


def copied(folder: Path) -> Path:
    """Fill ``folder`` as the Dockerfile fills /opt/smooth, and return it."""
    folder.mkdir()
    for step in dockerfile():
        if step.stage == "cpu" and step.name == "COPY" and "--from" not in step.value:
            *sources, target = step.value.split()
            for source in sources:
                if (PROJECT / source).is_dir():
                    shutil.copytree(PROJECT / source, folder / target, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(PROJECT / source, folder / target)
    return folder
