"""The rule of imports: data walks one way, and each big library has one door."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]

# Library -> the only modules of smooth/ that may import it.
DOORS = {
    "mlflow": {
        "smooth/promotion/registry.py",
        "smooth/registry.py",
        "smooth/tracked.py",
        "smooth/tracking.py",
    },
    "bitsandbytes": {"smooth/train/eight_bit.py"},
    "deepspeed": {"smooth/train/zero.py"},
    "gradio": {
        "smooth/studio/desk.py",
        "smooth/studio/drag.py",
        "smooth/studio/edit.py",
        "smooth/studio/generate.py",
        "smooth/studio/interpolate.py",
        "smooth/studio/invert.py",
        "smooth/studio/page.py",
        "smooth/studio/parts.py",
        "smooth/studio/server.py",
    },
    "img2dataset": {"smooth/data/download.py"},
    "onnxruntime": {"smooth/export/graphs.py"},
    "ray": {
        "smooth/serve/app.py",
        "smooth/cluster.py",
        "smooth/data/dispatch.py",
        "smooth/data/latents.py",
        "smooth/train/launch.py",
        "smooth/train/upload.py",
        "smooth/train/watch.py",
        "smooth/evaluate/measure.py",
    },
    "ray.serve": {"smooth/serve/app.py"},
    "prefect": set[str](),
    "flows": set[str](),
    "infra": set[str](),
}
# Folder -> what nothing under it may load (a name for a type hint is no dependency).
CLOSED = {
    "flows/": {
        "torch",
        "torchvision",
        "ray",
        "mlflow",
        "deepspeed",
        "diffusers",
        "transformers",
        "peft",
        "img2dataset",
    },
    "infra/": {"torch", "torchvision", "ray", "mlflow", "deepspeed", "diffusers", "transformers", "peft", "flows"},
    "smooth/diffusion/": {"ray", "diffusers", "transformers", "fsspec", "pathlib", "smooth.store"},
}


def imported(source: str) -> Iterator[tuple[int, str]]:
    """Line and full name of each import, also those inside functions and by ``importlib``."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=str(module), names=names, level=0):
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in names)
            case ast.Call(func=func, args=[ast.Constant(value=str(name)), *_]):
                if ast.unparse(func) in ("importlib.import_module", "import_module", "__import__"):
                    yield node.lineno, name


def without_type_imports(source: str) -> str:
    """The source without its ``if TYPE_CHECKING:`` blocks, with all lines in their places."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            indent = " " * node.col_offset
            lines[node.lineno - 1 : node.end_lineno] = [f"{indent}pass"] * ((node.end_lineno or 0) - node.lineno + 1)
    return "\n".join(lines)


def is_part_of(name: str, library: str) -> bool:
    return name == library or name.startswith(f"{library}.")


def violations(path: str, source: str) -> list[str]:
    """What the module at ``path`` (from the project's root) imports against the rule."""
    found = set()
    if path.startswith("smooth/"):
        shut = {library for library, doors in DOORS.items() if path not in doors}
        found |= _meet(path, source, shut)
    for folder, libraries in CLOSED.items():
        if path.startswith(folder):
            found |= _meet(path, without_type_imports(source), libraries)
    return sorted(found)


def _meet(path: str, source: str, libraries: set[str]) -> set[str]:
    return {
        f"{path}:{line} imports {library}"
        for line, name in imported(source)
        for library in libraries
        if is_part_of(name, library)
    }


def modules() -> list[Path]:
    return sorted(path for folder in ("smooth", "flows", "infra") for path in (PROJECT / folder).rglob("*.py"))


def test_no_module_breaks_the_rule_of_imports() -> None:
    files = modules()
    assert len(files) > 20
    assert [text for file in files for text in violations(file.relative_to(PROJECT).as_posix(), file.read_text())] == []


@pytest.mark.parametrize(
    ("path", "source", "library"),
    [
        ("smooth/store.py", "import prefect", "prefect"),
        ("smooth/store.py", "if TYPE_CHECKING:\n    from prefect import Flow", "prefect"),
        ("smooth/train/loop.py", "from flows.stages import run_stage", "flows"),
        ("smooth/train/loop.py", "def f():\n    from mlflow.tracking import MlflowClient", "mlflow"),
        ("smooth/evaluate/istd.py", "import ray.data as data", "ray"),
        ("smooth/train/step.py", "import importlib\nimportlib.import_module('deepspeed')", "deepspeed"),
        ("smooth/cluster.py", "from ray import serve", "ray.serve"),
        ("smooth/data/policy.py", "import img2dataset", "img2dataset"),
        ("smooth/export/run.py", "from importlib import import_module\nimport_module('onnxruntime')", "onnxruntime"),
        ("smooth/edit/generate.py", "import gradio as gr", "gradio"),
        ("flows/reports.py", "import torch", "torch"),
        ("smooth/diffusion/sampler.py", "from smooth import store", "smooth.store"),
        ("smooth/diffusion/sampler.py", "from diffusers import DDIMScheduler", "diffusers"),
    ],
)
def test_a_planted_violation_is_caught(path: str, source: str, library: str) -> None:
    caught = violations(path, source)
    assert len(caught) == 1
    assert caught[0].endswith(f"imports {library}")


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("smooth/cluster.py", "import ray"),
        ("smooth/registry.py", "import mlflow"),
        ("flows/stages.py", "from smooth.config import RunConfig"),
        ("smooth/data/policy.py", "import rayleigh"),
        (
            "smooth/diffusion/sampler.py",
            "if TYPE_CHECKING:\n    from diffusers import StableDiffusionPipeline\nimport torch",
        ),
    ],
)
def test_what_the_rule_allows_is_not_reported(path: str, source: str) -> None:
    assert violations(path, source) == []
