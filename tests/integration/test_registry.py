"""Registration into a real MLflow registry, and the two ways to load what was registered."""

from __future__ import annotations

import io
import re
import shlex
import sys
import zipfile
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import yaml
from mlflow import MlflowClient
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from infra.local.layout import free_ports
from smooth import registry, stages, store, tracking
from smooth.cli import app
from smooth.config import RunConfig, resolve_model
from smooth.edit.media import read_parameters
from smooth.models.pipeline import load_pipeline
from smooth.promotion import PromotionError
from smooth.promotion.drawing import draw
from smooth.promotion.registry import Registry
from smooth.studio.models import Models
from smooth.studio.told import png
from tests.evaluated import trained
from tests.unit.test_readme import block

METRIC = {"name": "ISTD", "value": 1.5, "low": 1.4, "high": 1.6, "n": 40, "stamp": {}, "note": ""}


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory, tiny_base: str) -> Any:
    root = tmp_path_factory.mktemp("registry")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/mlflow.db")
        config = trained(tiny_base, root / "artifacts")
        evaluation, ingest = config.stage_dir("evaluate"), config.stage_dir("ingest")
        data = store.read_manifest(config.stage_dir("train"))["ingest"]
        store.write_manifest(ingest, store.read_manifest(ingest) | {"digest": data})
        store.write_bytes(store.join(evaluation, "strips.png"), b"PNG")
        metrics = [METRIC | {"model": "base"}, METRIC | {"model": "smooth", "value": 1.25}]
        store.write_manifest(evaluation, {"stage": "evaluate", "metrics": metrics, "pictures": ["strips.png"]})
        yield config, registry.run(config)


@pytest.fixture(scope="module")
def example(registered: tuple[RunConfig, dict[str, Any]]) -> dict[str, Any]:
    """What the README's example leaves: the loaded ``model``, and the ``png`` of a red heart."""
    assert registered[1]["uri"] == "models:/smooth-diffusion@candidate"
    places: dict[str, Any] = {}
    exec(block("mlflow.pyfunc.load_model"), places)
    return places


@pytest.fixture(scope="module")
def model(example: dict[str, Any]) -> Any:
    return example["model"]


def pixels(png: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def test_version_carries_alias_metrics_and_lineage(registered: tuple[RunConfig, dict[str, Any]]) -> None:
    config, manifest = registered
    client = MlflowClient(tracking.tracking_uri())
    version = client.get_model_version_by_alias("smooth-diffusion", "candidate")
    assert int(version.version) == manifest["version"]
    assert version.run_id == manifest["run_id"]
    experiment = client.get_run(manifest["run_id"]).info.experiment_id
    (logged,) = client.search_logged_models([experiment])
    assert logged.source_run_id == manifest["run_id"]
    assert version.tags["smooth.metric.istd.smooth"] == "1.25"
    for stage in ("ingest", "latents", "train", "evaluate"):
        assert version.tags[f"smooth.fingerprint.{stage}"] == config.fingerprint(stage)
    assert "| ISTD | smooth | 1.25 | 1.4 to 1.6 | 40 |" in version.description
    kept = f"{registry.EVIDENCE}/{config.fingerprint('evaluate')}"
    held = {item.path for item in client.list_artifacts(manifest["run_id"], kept)}
    assert held == {f"{kept}/manifest.json", f"{kept}/strips.png"}


def test_prompt_and_seed_in_same_png_out(
    model: Any, example: dict[str, Any], registered: tuple[RunConfig, dict[str, Any]]
) -> None:
    first, second, other = model.predict(pd.DataFrame({"prompt": ["red heart"] * 3, "seed": [7, 7, 8]}))
    assert first == second == example["png"]
    assert not np.array_equal(pixels(first), pixels(other))
    size = registered[0].latents.image_size
    assert pixels(first).shape == (size, size, 3)
    by_parameter = model.predict(pd.DataFrame({"prompt": ["red heart"]}), params={"seed": 7})
    assert by_parameter[0] == first
    assert model.predict({"prompt": ["red heart"], "seed": [7]})[0] == first


def test_folder_loads_in_plain_diffusers_and_gives_the_same_picture(
    model: Any, registered: tuple[RunConfig, dict[str, Any]], tiny_base: str, tmp_path: Path
) -> None:
    import torch

    manifest = registered[1]
    folder = mlflow.artifacts.download_artifacts(manifest["uri"], dst_path=str(tmp_path))
    pipeline: Any = load_pipeline(tiny_base)
    settings = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "np"}
    plain = pipeline("a cat", generator=torch.Generator().manual_seed(1), **settings).images[0]
    pipeline.load_lora_weights(f"{folder}/adapter_weights")
    smooth = pipeline("a cat", generator=torch.Generator().manual_seed(1), **settings).images[0]
    served = pixels(model.predict({"prompt": ["a cat"], "seed": [1]})[0])
    assert np.abs(np.round(smooth * 255) - served).max() <= 1
    assert np.abs(np.round(plain * 255) - served).max() > 1, "the adapter does nothing"

    loaded = mlflow.diffusers.load_model(manifest["uri"])
    assert Path(loaded.adapter_path, "pytorch_lora_weights.safetensors").is_file()
    assert pipeline.unet.dtype == torch.float32


@pytest.mark.parametrize("is_absolute", [False, True])
def test_a_registered_models_own_program_is_never_run(
    registered: tuple[RunConfig, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_absolute: bool
) -> None:
    """A picture that is a zip with a loader in it, named as the place of the model's code."""
    for name in ("model", "copy"):
        (tmp_path / name).mkdir()
    folder = Path(mlflow.artifacts.download_artifacts(registered[1]["uri"], dst_path=str(tmp_path / "model")))
    mark, zipped = tmp_path / "mark", folder / "adapter_weights/strips.png"
    with zipfile.ZipFile(zipped, "w") as archive:
        program = f"from pathlib import Path\nPath({str(mark)!r}).touch()\nraise OSError('it ran')"
        archive.writestr("registry_pyfunc.py", program)
    described = yaml.safe_load((folder / "MLmodel").read_text())
    code = str(zipped) if is_absolute else "adapter_weights/strips.png"
    described["flavors"]["python_function"]["code"] = code
    (folder / "MLmodel").write_text(yaml.safe_dump(described))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "registry_pyfunc", raising=False)
    with pytest.raises(OSError, match="it ran"):
        mlflow.pyfunc.load_model(str(folder))
    mark.unlink()  # so this is what it does where it may

    name = f"tampered-{is_absolute}"
    client = MlflowClient(tracking.tracking_uri())
    client.create_registered_model(name)
    client.create_model_version(name, source=str(folder))
    shelf = Registry(name)
    monkeypatch.setattr(sys, "path", list(sys.path))
    sys.path[:] = [entry for entry in sys.path if not entry.startswith(str(tmp_path))]
    before = list(sys.path)
    drawn = draw(shelf, "1")
    assert (drawn.picture, f"did not put there: code: {code}" in drawn.words) == (None, True), drawn.words
    (picture,) = shelf.load(shelf.fetch("1", tmp_path / "copy")).predict({"prompt": ["a red heart"], "seed": [7]})
    assert pixels(picture).shape == (64, 64, 3)
    assert not mark.exists()
    assert (sys.path, "registry_pyfunc" in sys.modules) == (before, False)

    described["flavors"]["diffusers"]["adapter_weights"] = "../elsewhere"
    (folder / "MLmodel").write_text(yaml.safe_dump(described))
    client.create_model_version(name, source=str(folder))
    with pytest.raises(store.ArtifactError, match=r"names weights outside of itself: \.\./elsewhere"):
        registry.fetch(f"models:/{name}/2", str(tmp_path / "scratch"))


def test_an_outage_is_no_fault_of_the_model(
    registered: tuple[RunConfig, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = mlflow.get_tracking_uri()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_ports(1)[0]}")
    try:
        gone = Registry("smooth-diffusion")
        with pytest.raises(PromotionError, match=r"models:/smooth-diffusion/1 can't be fetched.* nothing was changed"):
            draw(gone, "1")
    finally:
        mlflow.set_tracking_uri(before)


def test_an_evaluation_made_again_reaches_the_registry(registered: tuple[RunConfig, dict[str, Any]]) -> None:
    config, manifest = registered
    evaluation = config.stage_dir("evaluate")
    before = store.read_bytes(store.join(evaluation, store.MANIFEST))
    assert stages.status("register", config) == "complete"
    metrics = [METRIC | {"model": "smooth", "value": 1.125}]
    store.write_manifest(evaluation, {"stage": "evaluate", "metrics": metrics, "pictures": ["strips.png"]})
    try:
        assert stages.status("register", config) == "to do"
        assert registry.run(config)["version"] == manifest["version"]
        version = MlflowClient(tracking.tracking_uri()).get_model_version_by_alias("smooth-diffusion", "candidate")
        assert version.tags["smooth.metric.istd.smooth"] == "1.125"
    finally:
        store.write_bytes(store.join(evaluation, store.MANIFEST), before)
    registry.run(config)
    assert stages.status("register", config) == "complete"


def test_same_training_stays_one_version(registered: tuple[RunConfig, dict[str, Any]]) -> None:
    config, manifest = registered
    Path(config.stage_dir("register"), store.MANIFEST).unlink()
    again = registry.run(config)
    assert {**again, "seconds": 0} == {**manifest, "seconds": 0}
    client = MlflowClient(tracking.tracking_uri())
    assert len(client.search_model_versions("name = 'smooth-diffusion'")) == 1


def test_versions_are_listed_with_their_aliases_and_open_in_the_studio(
    registered: tuple[RunConfig, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "models:/smooth-diffusion/1"
    assert registry.versions(5) == [(name, ["candidate"])]
    models = Models(["builtin:tiny"], "builtin:tiny")
    choices, note = models.listed()
    assert choices[1:] == [("smooth-diffusion version 1 (candidate)", name)]
    assert note == "Registered versions: 1"
    monkeypatch.chdir(tmp_path)
    opened = models.open(name)
    assert opened.has_base
    assert models.open(name) is opened
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    choices, note = models.listed()
    assert len(choices) == 1
    assert note.startswith("No registry: http://127.0.0.1:9 does not answer")


def test_a_picture_tells_the_version_that_an_alias_meant_and_an_open_model_follows_it(
    registered: tuple[RunConfig, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["generate", "red heart", "--model", "models:/smooth-diffusion@spare", "--steps", "2", "--out", "p.png"]
    client, name = MlflowClient(tracking.tracking_uri()), "smooth-diffusion"
    models = Models(["models:/smooth-diffusion@spare"], "builtin:tiny")
    client.set_registered_model_alias(name, "spare", "1")
    first = models.open("models:/smooth-diffusion@spare")
    assert first.name == "models:/smooth-diffusion/1"
    assert models.open(first.name) is first
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.stderr
    version = client.get_model_version(name, "1")
    second = client.create_model_version(name, version.source, version.run_id).version
    try:
        client.set_registered_model_alias(name, "spare", second)
        for now in ("models:/smooth-diffusion@spare", "models:/smooth-diffusion/latest"):
            assert models.open(now).name == f"models:/smooth-diffusion/{second}"
    finally:
        client.delete_registered_model_alias(name, "spare")
        client.delete_model_version(name, second)
    told = shlex.split(CliRunner().invoke(app, ["show-params", "p.png"]).stdout)
    assert "--model=models:/smooth-diffusion/1" in told
    before = Path("p.png").read_bytes()
    Path("p.png").unlink()
    assert CliRunner().invoke(app, told[1:]).exit_code == 0
    assert Path("p.png").read_bytes() == before
    parameters, told = read_parameters(png("generate", first, np.zeros((8, 8, 3), np.uint8), prompts=["red heart"]))
    assert parameters["model"] == "models:/smooth-diffusion/1"
    assert "--model=models:/smooth-diffusion/1" in told


def test_fetches_what_was_trained_and_its_base(
    registered: tuple[RunConfig, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, manifest = registered
    server = tracking.tracking_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)  # first: MLflow's own setting below changes the variable, too
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/elsewhere.db")  # what MLflow would ask by itself
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    base, revision, folder = registry.fetch(manifest["uri"], str(tmp_path))
    assert (base, revision) == (resolve_model(config.model.base), None)
    name = "pytorch_lora_weights.safetensors"
    assert Path(folder, name).read_bytes() == Path(config.stage_dir("train"), name).read_bytes()
    assert registry.fetch(f"models:/{manifest['name']}/{manifest['version']}", str(tmp_path))[2] == folder
    with pytest.raises(store.ArtifactError, match="nobody@nowhere can't be fetched"):
        registry.fetch("models:/nobody@nowhere", str(tmp_path))


def test_the_example_in_the_help_of_export_works_when_pasted(
    registered: tuple[RunConfig, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = CliRunner().invoke(app, ["export", "--help"], env={"COLUMNS": "80"}).stdout
    (example,) = re.findall(r"^ *smooth (export .*)$", shown, flags=re.MULTILINE)
    name = "pytorch_lora_weights.safetensors"
    result = CliRunner().invoke(app, shlex.split(example))
    assert (result.exit_code, result.stdout) == (0, f"wrote smooth-lora/{name}\n")
    trained = load_file(Path(registered[0].stage_dir("train"), name))
    exported = load_file(tmp_path / "smooth-lora" / name)
    assert exported.keys() == trained.keys()
    assert all((exported[key] == weight).all() for key, weight in trained.items())
