"""The train stage on real Ray Train, gloo, DeepSpeed and MLflow (SQLite): few steps on random latents."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray.train
import torch
from mlflow import MlflowClient
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from smooth import store
from smooth.config import ConfigError, RunConfig
from smooth.data.encoder import Encoder
from smooth.train import launch
from smooth.train.checkpoint import TENSORS
from smooth.train.state import TrainState
from tests import history
from tests.synthetic import shapes_of, write_latents

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),  # MLflow's, of SQLAlchemy
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),  # Ray Data, of its own options
]
STEPS = 6
ROWS = 10
SIZES = (7, 3)  # of them square and wide
CAPTIONS = [f"picture {row}" for row in range(ROWS)]


class Runner:
    """Runs the train stage of one folder of artifacts, always on the same latents."""

    def __init__(self, base: str, root: Path) -> None:
        self.base, self.root = base, root

    def config(self, name: str, *overrides: str) -> RunConfig:
        config = RunConfig.load(
            "tiny",
            [
                f"model.base={self.base}",
                f"storage.root={self.root / name}",
                f"train.steps={STEPS}",
                "train.global_batch_size=4",
                "train.micro_batch_size=1",
                "train.checkpoint_every=2",
                f"train.validate_every={STEPS}",
                "train.max_failures=0",
                "train.learning_rate=1e-3",
                "train.caption_dropout=0.3",
                "train.variation.weight=1",
                "train.variation.target_knots=1",
                "train.istd_every=null",
                "evaluate.frames=3",
                "evaluate.steps=2",
                "train.log_samples=true",
                *overrides,
            ],
        )
        latents = Path(config.stage_dir("latents"))
        if not latents.exists():
            texts = Encoder(self.base, None, config.latents.cache_text).texts([*CAPTIONS, ""])["text"]
            shape = shapes_of(self.base)["latent_shape"]
            # Two sizes of latents, as of aspect buckets; the plain form goes through the chain.
            wide = shape[0], shape[1] // 2, 2 * shape[2]
            write_latents(latents, rows=ROWS, latent_shape=shape, wide=wide, text_shape=texts.shape[1:], texts=texts)
        return config

    def history(self, manifest: dict[str, Any], metric: str) -> dict[int, float]:
        client = MlflowClient(f"sqlite:///{self.root}/mlflow.db")
        return {point.step: point.value for point in client.get_metric_history(manifest["run_id"], metric)}


@pytest.fixture(scope="module")
def runner(ray_local: None, small_base: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    root = tmp_path_factory.mktemp("train")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/mlflow.db")
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # checkpoints are registered at that pace
        yield Runner(small_base, root)


@pytest.fixture(scope="module")
def uninterrupted(runner: Runner) -> dict[str, Any]:
    """Two workers, ZeRO 2, from start to end."""
    watched = f"train.istd_every={STEPS}", "train.istd_prompts=2"
    config = runner.config("uninterrupted", *watched, "train.best_checkpoints=0", "train.last_checkpoints=1")
    manifest = launch.run(config)
    return {**manifest, "folder": config.stage_dir("train")}


def _adapter(folder: str) -> Tensor:
    """All trained weights as one vector."""
    weights = load_file(Path(folder, "pytorch_lora_weights.safetensors"))
    trained = [weight.flatten() for name, weight in sorted(weights.items()) if "lora_B" in name or "lora.up" in name]
    vector = torch.cat(trained)
    assert vector.abs().max() > 0  # they start at 0
    return vector


def _assert_same_adapter(left: str, right: str, tolerance: float) -> None:
    """Relative L2 difference. Adam turns the rounding of a small gradient into a whole step of its learning rate."""
    first, second = _adapter(left), _adapter(right)
    assert float((first - second).norm() / second.norm()) <= tolerance


def test_artifact_metrics_and_pictures(runner: Runner, uninterrupted: dict[str, Any]) -> None:
    folder = uninterrupted["folder"]
    assert (uninterrupted["steps"], uninterrupted["samples_seen"]) == (STEPS, 4 * STEPS)
    assert uninterrupted["pictures"] == [f"validation/step-{STEPS:06d}.png"]
    with Image.open(Path(folder, uninterrupted["pictures"][0])) as picture:
        assert picture.size == (256, 128)
    assert RunConfig.load(str(Path(folder, "run_config.yaml"))).train.steps == STEPS
    of_training = "loss", "regularizer", "norm", "target", "learning_rate"
    of_time = "samples_per_second", "tflops_per_worker", "seconds/data_wait", "seconds/communication"
    for metric in (*of_training, *of_time):
        assert sorted(runner.history(uninterrupted, metric)) == list(range(1, STEPS + 1)), metric
    metrics = {
        name: runner.history(uninterrupted, name) for name in ("loss", "loss_base", "regularizer", "norm", "target")
    }
    assert metrics["target"][1] == pytest.approx(metrics["norm"][1], rel=1e-6)
    for step in range(1, STEPS + 1):
        assert runner.history(uninterrupted, "difference_error")[step] < 0.1
        assert metrics["loss"][step] == pytest.approx(metrics["loss_base"][step] + metrics["regularizer"][step])
        if step > 1:
            before, norm = metrics["target"][step - 1], metrics["norm"][step - 1]
            assert metrics["target"][step] == pytest.approx(before + 0.01 * (norm - before), rel=1e-6)
    for name in ("base", "smooth", "difference"):
        assert STEPS in runner.history(uninterrupted, f"istd_estimate/{name}"), name
    difference = runner.history(uninterrupted, "istd_estimate/difference")[STEPS]
    assert difference != 0
    assert 0 < runner.history(uninterrupted, "seconds/communication")[STEPS] < 60
    assert runner.history(uninterrupted, "model_flops_utilisation") == {}  # nobody knows the peak of these cores
    checkpoint = Path(folder, "checkpoints", f"step-{STEPS:06d}")
    whole = sorted(path.parent.name for path in checkpoint.parent.glob(f"*/{TENSORS}"))
    assert whole == [f"step-{STEPS - 2:06d}", checkpoint.name]
    assert TrainState.load(checkpoint.parent / "step-000002").samples_seen == 8
    settings = json.loads((checkpoint / "engine.json").read_text())
    assert settings["zero_optimization"]["stage"] == 2
    history.check(Path(folder), STEPS, 4, *SIZES)
    assert history.restarts(Path(folder)) == []
    # A second call returns the finished artifact.
    config = runner.config("uninterrupted")
    assert launch.run(config) == store.read_manifest(folder)


def _kill_a_worker_after(checkpoints: Path, step: int) -> None:
    """Kill one training process of this test's own Ray once the checkpoint of ``step`` is registered."""
    snapshot = checkpoints / "checkpoint_manager_snapshot.json"
    while not (snapshot.exists() and f"step-{step:06d}" in snapshot.read_text()):
        time.sleep(0.05)
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # another that ended meanwhile
            if "RayTrainWorker" in " ".join(process.cmdline()):
                process.kill()
                return


def test_a_killed_stage_goes_on_from_its_checkpoint_with_fewer_workers_to_the_same_weights(
    runner: Runner, uninterrupted: dict[str, Any]
) -> None:
    slowly = "train.validate_every=1"  # so that there is time to kill it in
    config = runner.config("killed", slowly)
    folder = config.stage_dir("train")
    killer = threading.Thread(target=_kill_a_worker_after, args=(Path(folder, "checkpoints"), 2), daemon=True)
    killer.start()
    with pytest.raises(ray.train.TrainingFailedError):
        launch.run(config)
    killer.join(timeout=5)
    assert not store.is_complete(folder)
    manifest = launch.run(runner.config("killed", slowly, "train.workers=1", "train.zero_stage=0"))
    assert manifest["samples_seen"] == 4 * STEPS
    assert runner.history(manifest, "loss") == pytest.approx(runner.history(uninterrupted, "loss"), rel=1e-5)
    assert runner.history(manifest, "workers")[STEPS] == 1
    history.check(Path(folder), STEPS, 4, *SIZES)
    # One worker has two threads, whose sums round otherwise; with one each it is 1e-5: tests/numerics/test_engines.py.
    _assert_same_adapter(folder, uninterrupted["folder"], tolerance=1e-3)


def test_zero_3_and_texts_encoded_in_the_step_train_the_same(runner: Runner, uninterrupted: dict[str, Any]) -> None:
    changes = "train.zero_stage=3", "train.workers=1", "train.steps=1", "latents.cache_text=false"
    manifest = launch.run(runner.config("sharded", *changes))  # over two ranks: tests/numerics/test_engines.py
    assert manifest["pictures"] == ["validation/step-000001.png"]
    assert runner.history(manifest, "seconds/communication") == {}  # gloo does not tell all of ZeRO-3's
    for metric in ("loss", "loss_base", "norm", "target"):
        first = runner.history(uninterrupted, metric)[1]
        assert runner.history(manifest, metric) == {1: pytest.approx(first, rel=2e-3)}


def test_double_backward_on_zero_3_is_refused_before_anything_starts() -> None:
    with pytest.raises(ConfigError, match=r"double_backward.*one_sided_difference"):
        RunConfig.load("tiny", ["train.zero_stage=3", "train.variation.estimator=double_backward"])
