"""The evaluate stage on real Ray actors and a real MLflow store."""

from __future__ import annotations

import json
import time
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import transformers
from mlflow import MlflowClient
from PIL import Image
from ray.util import ActorPool
from typer.testing import CliRunner

from smooth import store, tracking
from smooth.cli import app
from smooth.config import ConfigError, RunConfig
from smooth.evaluate import measure
from smooth.evaluate import run as stage
from smooth.evaluate.protocol import Protocol
from smooth.evaluate.real import Encoded, decoded
from smooth.evaluate.subjects import Subject
from smooth.models import WEIGHTS_NAME
from tests.evaluated import trained
from tests.shards import png

pytestmark = [
    pytest.mark.usefixtures("ray_local"),
    pytest.mark.filterwarnings("ignore::smooth.evaluate.frechet.BiasWarning"),  # of four pictures
]
PATHS = "evaluate.path_lengths=3"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluate")


@pytest.fixture(autouse=True)
def mlflow(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/mlflow.db")


@pytest.fixture(scope="module")
def finished(root: Path, tiny_base: str) -> tuple[RunConfig, dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/mlflow.db")
        config = trained(tiny_base, root / "artifacts", "evaluate.actors=1", PATHS)
        return config, stage.run(config)


def base_folder(config: RunConfig) -> Path:
    """Where the base's pictures are kept."""
    base = Subject(config.model.base).identity
    (folder,) = Path(config.stage_dir("evaluate")).parent.glob(f"pictures-*/{base}")
    return folder


def smooth_blocks(config: RunConfig) -> Path:
    smooth = Subject(config.model.base, trained=config.stage_dir("train")).identity
    (folder,) = Path(config.stage_dir("evaluate")).parent.glob(f"pictures-*/{smooth}/blocks-3")
    return folder


def test_metrics_pictures_and_lineage_are_where_people_look(finished: tuple[RunConfig, dict[str, Any]]) -> None:
    config, manifest = finished
    folder = Path(config.stage_dir("evaluate"))
    metrics = {(m["name"], m["model"]): m for m in json.loads((folder / "metrics.json").read_text())}
    base, smooth = metrics["ISTD", "base"], metrics["ISTD", "smooth"]
    assert base["stamp"] == smooth["stamp"]
    assert base["n"] == 2
    assert base["value"] != smooth["value"]
    assert metrics["ISTD", "smooth - base"]["value"] == pytest.approx(smooth["value"] - base["value"])
    kid = metrics["KID (EfficientNet-Lite0) x1000", "smooth"]
    assert kid["low"] < kid["value"] < kid["high"]
    assert "raise evaluate.prompts" in metrics["sample diversity", "smooth"]["note"]  # there are two
    assert "evaluate.inception_weights" in metrics["FID (Inception-v3)", "base"]["note"]
    assert manifest["summary"]["ISTD base"] == pytest.approx(base["value"], abs=1e-4)
    for name in manifest["pictures"]:
        with Image.open(folder / name) as picture:
            assert picture.width > 300
    assert "reconstructions.png" in manifest["pictures"]
    ppl, difference = (metrics["PPL (pixels)", model] for model in ("smooth", "smooth - base"))
    assert ppl["low"] < ppl["value"] < ppl["high"]
    assert (ppl["n"], ppl["stamp"]["paths"], ppl["stamp"]["epsilon"]) == (3, 3, 1e-3)
    assert difference["value"] == pytest.approx(ppl["value"] - metrics["PPL (pixels)", "base"]["value"])
    assert "alexnet" in metrics["PPL (LPIPS)", "smooth"]["note"]
    vae, ddim = (metrics[f"PSNR ({way})", "smooth"] for way in ("VAE alone", "DDIM inversion"))
    assert vae["n"] == vae["stamp"]["pictures"] == 8
    assert vae["value"] > ddim["value"]
    assert "alexnet" in metrics["LPIPS (VAE alone)", "base"]["note"]

    client = MlflowClient(tracking.tracking_uri())
    run = client.get_run(manifest["run_id"])
    assert run.data.metrics["evaluate/istd_base"] == pytest.approx(base["value"])
    assert run.data.metrics["evaluate/istd_smooth"] == pytest.approx(smooth["value"])
    names = {item.path for item in client.list_artifacts(manifest["run_id"], "evaluate")}
    assert names >= {"evaluate/strips.png", "evaluate/curves.png", "evaluate/metrics.json"}


def test_finished_stage_is_reused(finished: tuple[RunConfig, dict[str, Any]]) -> None:
    config, manifest = finished
    assert stage.run(config) == manifest


def pictures_and_features(folder: Path) -> tuple[list[Any], list[Any]]:
    """The base's finished blocks: all pictures, and features of the single ones."""
    pictures, features = (
        [np.load(path) for path in sorted(folder.glob(f"blocks-*/{pattern}.npy"))] for pattern in ("*", "*/*")
    )
    assert pictures
    assert features
    return pictures, features


def test_two_actors_one_of_them_killed_make_what_one_makes(
    finished: tuple[RunConfig, dict[str, Any]], tiny_base: str, root: Path
) -> None:
    """One of the two dies as soon as the first block is there."""
    config, undisturbed = finished
    again = trained(tiny_base, root / "other", "evaluate.actors=2", PATHS)
    killed = list[int]()

    def kill() -> None:
        while not list(Path(again.stage_dir("evaluate")).parent.glob("pictures-*/*/blocks-*/*.npy")):
            time.sleep(0.05)
        painter = next(p for p in psutil.process_iter(["name"]) if "ray::Painter" in (p.info["name"] or ""))
        painter.kill()
        killed.append(painter.pid)

    thread = Thread(target=kill)
    thread.start()
    try:
        manifest = stage.run(again)
    finally:
        thread.join()
    assert killed
    pictures, features = pictures_and_features(base_folder(config))
    two_pictures, two_features = pictures_and_features(base_folder(again))
    np.testing.assert_equal(pictures, two_pictures)
    for one, two in zip(features, two_features, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5)
    values = {(metric["name"], metric["model"]): metric["value"] for metric in undisturbed["metrics"]}
    for metric in manifest["metrics"]:
        expected = values[metric["name"], metric["model"]]
        assert metric["value"] == (None if expected is None else pytest.approx(expected, rel=1e-5, abs=1e-9))


def test_another_training_shares_the_pictures(
    finished: tuple[RunConfig, dict[str, Any]], tiny_base: str, root: Path
) -> None:
    """Of the base, and of the same weights under another name."""
    config, first = finished
    before = times(base_folder(config).parent)
    control = trained(tiny_base, root / "artifacts", "evaluate.actors=1", PATHS, "train.variation.weight=0")
    assert stage.run(control)["fingerprint"] != first["fingerprint"]
    assert times(base_folder(config).parent) == before

    adapter = store.join(config.stage_dir("train"), WEIGHTS_NAME)
    options = ["--model", adapter, "--preset", str(saved(control, root))]
    shown = CliRunner().invoke(app, ["evaluate", *options])
    assert shown.exit_code == 3  # of FID, there is no file
    assert "unavailable: FID" in shown.output
    assert times(base_folder(config).parent) == before
    (folder,) = Path(config.stage_dir("evaluate")).parent.glob("models-*")
    manifest = store.read_manifest(str(folder))
    assert manifest["metrics"] == first["metrics"]
    run = MlflowClient(tracking.tracking_uri()).get_run(manifest["run_id"])
    assert run.info.run_name == f"{adapter} against {config.model.base}"
    assert "evaluate/istd_smooth" in run.data.metrics
    assert run.info.status == "FINISHED"
    same = CliRunner().invoke(app, ["evaluate", *options, "--against", adapter])
    assert same.exit_code == 2
    assert "are the same model" in same.output


def saved(config: RunConfig, root: Path) -> Path:
    path = root / "preset.yaml"
    path.write_text(config.to_yaml())
    return path


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_retry_samples_only_what_is_missing(finished: tuple[RunConfig, dict[str, Any]]) -> None:
    config, manifest = finished
    folder = Path(config.stage_dir("evaluate"))
    kept, lost = sorted(smooth_blocks(config).glob("*.npy"))[:2]
    bytes_lost, time_kept = lost.read_bytes(), kept.stat().st_mtime_ns
    lengths = sorted(smooth_blocks(config).glob("ppl-*/*.npy"))[1]
    for path in (lost, lengths, folder / store.MANIFEST):
        path.unlink()
    again = stage.run(config)
    assert again["metrics"] == manifest["metrics"]
    assert lost.read_bytes() == bytes_lost
    assert kept.stat().st_mtime_ns == time_kept


def test_a_training_whose_run_is_gone_is_told_before_any_picture(tiny_base: str, root: Path) -> None:
    config = trained(tiny_base, root / "elsewhere")
    training = store.read_manifest(config.stage_dir("train"))
    store.write_manifest(config.stage_dir("train"), training | {"run_id": "0" * 32})
    with pytest.raises(ValueError, match=r"no MLflow run 0+ at .*; point MLFLOW_TRACKING_URI to .*, or train again"):
        stage.run(config)
    assert not Path(config.stage_dir("evaluate")).parent.exists()


def test_prompts_of_a_file_and_too_few_of_them(
    finished: tuple[RunConfig, dict[str, Any]], tiny_base: str, root: Path
) -> None:
    file = root / "prompts.txt"
    file.write_text("a red hat\n\na cat\n")
    listed = RunConfig.parse(
        finished[0].model_dump() | {"evaluate": {**finished[0].evaluate.model_dump(), "prompts_file": str(file)}}
    )
    assert Protocol.of(listed).prompts == ("a red hat", "a cat")
    assert Protocol.of(listed).fingerprint != Protocol.of(finished[0]).fingerprint
    file.write_text("a red hat\n")
    with pytest.raises(ConfigError, match=r"has 1 prompts, evaluate\.prompts asks for 2"):
        Protocol.of(listed)


def write_dinov2(cache: Path) -> None:
    """A small one of random weights in Hugging Face's cache, under the published one's name."""
    place = cache / "models--facebook--dinov2-large"
    width = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    transformers.Dinov2Model(transformers.Dinov2Config(**width)).save_pretrained(place / "snapshots" / "revision")
    transformers.BitImageProcessor().save_pretrained(place / "snapshots" / "revision")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("revision")


def test_a_network_that_comes_later_is_measured_by_from_the_pictures_that_were_kept(
    finished: tuple[RunConfig, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The actors look into another cache than this process, as those on other machines do."""
    config, manifest = finished
    pictures = times(base_folder(config).parent)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    write_dinov2(tmp_path)
    again = stage.run(config)
    kept = times(base_folder(config).parent)
    files = {path for path in pictures if path.is_file()}
    assert {path: kept[path] for path in files} == {path: pictures[path] for path in files}
    assert {path.parts[-2].partition("-")[0] for path in kept.keys() - pictures.keys() if path.is_file()} == {"dinov2"}
    before, after = ({(m["name"], m["model"]): m for m in each["metrics"]} for each in (manifest, again))
    new = {("FD-DINOv2", model) for model in ("base", "smooth")}
    assert before.keys() == after.keys()
    assert {name for name in before if before[name] != after[name]} == new
    assert all(before[name]["value"] is None and after[name]["value"] > 0 for name in new)
    assert again["networks"].keys() == {"efficientnet", "dinov2"}
    assert stage.run(config) == again
    monkeypatch.undo()
    assert stage.run(config) == again  # gone again, and nothing is lost


@ray.remote
class Judge:
    def references(self, batch: list[Encoded], numbers: list[int]) -> list[Any]:
        return [decoded(batch, 8)[:, 0, 0, :1] for _ in numbers]


def test_reference_pictures_are_decoded_by_actors_a_few_at_a_time_and_in_order() -> None:
    taken = 0

    def batches(broken: int | None = None) -> Any:
        nonlocal taken
        for number in range(12):
            taken += 1
            data = b"no picture" if number == broken else png(np.full((9, 9, 3), number, np.uint8))
            yield [Encoded(f"picture {number}", data)]

    pool = ActorPool([Judge.remote() for _ in range(2)])
    for received, features in enumerate(measure._in_turn(pool, batches(), [0, 1])):
        assert [part.tolist() for part in features] == [[[received]]] * 2
        assert taken <= received + 3
    assert taken == 12
    with pytest.raises(ConfigError) as refused:
        list(measure._in_turn(pool, batches(broken=5), [0]))
    assert str(refused.value).startswith("the reference picture 5 is no picture that can be read: ")
    assert "\n" not in str(refused.value)
