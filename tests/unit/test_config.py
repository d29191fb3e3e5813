"""Run configs: presets, overrides, errors that name the way out, fingerprints."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st

from smooth.config import STAGES, ConfigError, RunConfig, file_identity, known_keys, resolve_model
from smooth.overrides import preset_names

# A base model that is named, not stored here: fingerprints then need no files.
REMOTE = "model.base=someone/some-model"


def load(*overrides: str) -> RunConfig:
    return RunConfig.load("tiny", [REMOTE, *overrides])


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_and_survives_its_own_yaml(name: str, tmp_path: Path) -> None:
    config = RunConfig.load(name)
    saved = tmp_path / "config.yaml"
    saved.write_text(config.to_yaml())
    assert RunConfig.load(str(saved)) == config


def test_the_paper_recipe_is_the_papers() -> None:
    train = RunConfig.load("sd15-laion").train
    assert (train.steps, train.global_batch_size, train.accumulation) == (30_000, 96, 8)
    assert (train.learning_rate, train.weight_decay, train.lora.rank, train.variation.weight) == (1e-4, 1e-4, 8, 1.0)


@pytest.mark.parametrize(
    ("name", "size", "batch", "zero_stage", "method"),
    [
        ("sd15-laion", 512, (3, 4, 8), 2, "lora"),
        ("sd15-8xh100", 512, (12, 8, 1), 0, "lora"),
        ("sd15-full", 512, (12, 8, 1), 3, "full"),
        ("sdxl-lora", 1024, (4, 8, 3), 2, "lora"),
    ],
)
def test_every_recipe_takes_the_papers_96_samples_a_step(
    name: str, size: int, batch: tuple[int, int, int], zero_stage: int, method: str
) -> None:
    config = RunConfig.load(name)
    train = config.train
    assert (train.micro_batch_size, train.workers, train.accumulation) == batch
    assert math.prod(batch) == train.global_batch_size == 96
    assert (train.zero_stage, train.method, train.gpus_per_worker) == (zero_stage, method, 1)
    assert train.variation.weight == 1
    assert (config.ingest.image_size, config.latents.image_size) == (size, size)
    assert config.latents.actors == config.evaluate.actors == train.workers


def test_overrides_are_read_as_yaml() -> None:
    config = load(
        "train.steps=7", "ingest.demo_web.pictures=null", "train.lora.targets=[to_q]", "train.betas=[0.8, 0.9]"
    )
    assert config.train.steps == 7
    assert config.ingest.demo_web is not None
    assert config.ingest.demo_web.pictures is None
    assert config.train.lora.targets == ("to_q",)
    assert config.train.betas == (0.8, 0.9)


def test_register_is_a_key_like_the_others() -> None:
    assert load("register.alias=shadow").register_.alias == "shadow"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.step=3", "unknown key train.step; nearest is train.steps"),
        ("trian.steps=3", "nearest is train"),
        ("train.steps=many", "train.steps: .*given: 'many'"),
        ("train.steps=0", "train.steps: .*greater than or equal to 1"),
        ("train.steps", "must read dotted.key=value"),
        ("train.steps=[1", "not YAML"),
        ("train.workers=3", "global_batch_size=8 is not a multiple .* change one of the three"),
        ("ingest.url_list=list.parquet", "exactly one source"),
        ("ingest.demo_web=null", "exactly one source"),
    ],
)
def test_a_mistake_is_named_with_its_way_out(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(override)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.zero_stage=0", "train.offload_optimizer=true"], "set train.zero_stage to 1, 2 or 3"),
        (["train.optimizer=adamw_8bit"], "set train.zero_stage=0, or train.optimizer=adamw"),
        (["train.min_workers=3"], "train.min_workers=3 is more than train.workers=2"),
        (["train.min_workers=1", "train.workers=4", "train.micro_batch_size=2"], "2 x 3 = 6; .*min_workers"),
        (["train.zero_stage=3", "train.variation.every=2"], "every=2 must divide a worker's 1 accumulated"),
        (["train.log_samples=true", "storage.root=s3://bucket/smooth"], r"log_samples.*storage\.root"),
    ],
)
def test_settings_that_contradict_each_other_are_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(*overrides)


def test_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown preset 'tini'; nearest is tiny"):
        RunConfig.load("tini")


def test_a_preset_file_must_exist_and_be_a_mapping(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        RunConfig.load(str(tmp_path / "none.yaml"))
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("- a list")
    with pytest.raises(ConfigError, match="mapping of sections"):
        RunConfig.load(str(wrong))


def test_unreachable_inputs_fail_when_the_fingerprint_is_asked(tmp_path: Path) -> None:
    config = load(f"ingest.url_list={tmp_path}/none.parquet", "ingest.demo_web=null")
    with pytest.raises(ConfigError, match=r"ingest\.url_list=.*no such file"):
        config.fingerprint("ingest")
    with pytest.raises(ConfigError, match="no diffusers pipeline there"):
        resolve_model(str(tmp_path))
    with pytest.raises(ConfigError, match="no such built-in model"):
        resolve_model("builtin:huge")


def fingerprints(config: RunConfig) -> list[str]:
    return [config.fingerprint(stage) for stage in STAGES]


@pytest.mark.parametrize(
    ("override", "first_changed"),
    [
        ("ingest.min_aesthetic=5.5", 0),
        ("latents.cache_text=false", 1),
        ("model.revision=abc", 1),
        ("train.steps=3", 2),
        ("seed=1", 2),
        ("evaluate.frames=5", 3),
        ("register.name=other", 4),
    ],
)
def test_a_change_reaches_its_stage_and_all_after_it_and_none_before(override: str, first_changed: int) -> None:
    same = [before == after for before, after in zip(fingerprints(load()), fingerprints(load(override)), strict=True)]
    assert same == [True] * first_changed + [False] * (len(STAGES) - first_changed)


@pytest.mark.parametrize(
    "override",
    ["storage.root=/elsewhere", "train.zero_stage=1", "latents.actors=2", "ingest.threads=3", "experiment=x"],
)
def test_how_fast_a_stage_runs_changes_no_fingerprint(override: str) -> None:
    assert fingerprints(load(override)) == fingerprints(load())


def test_the_content_of_a_local_model_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    config = load(f"model.base={tmp_path}")
    before = config.fingerprint("latents")
    (tmp_path / "model_index.json").write_text('{"changed": 1}')
    assert config.fingerprint("latents") != before


def test_an_artifact_lies_under_the_root_by_stage_and_fingerprint() -> None:
    config = load("storage.root=s3://bucket/runs")
    assert config.stage_dir("train") == f"s3://bucket/runs/train/{config.fingerprint('train')}"
    assert Path(load().stage_dir("train")).is_absolute()


@given(st.integers(1, 10**6))
def test_equal_values_mean_equal_fingerprints_however_they_are_written(steps: int) -> None:
    assert load(f"train.steps={steps}").fingerprint("train") == load(f"train.steps= {steps} ").fingerprint("train")


def test_known_keys_are_dotted_and_by_their_public_names() -> None:
    keys = known_keys()
    assert {"train.lora.rank", "ingest.demo_web.fault_share", "register.alias"} <= set(keys)
    assert not [key for key in keys if key.startswith("register_")]


def test_a_folder_of_any_size_is_listed_once_to_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """On an object store each question for one file is a request."""
    fs = MemoryFileSystem()
    for number in range(20):
        fs.pipe(f"/reference/{number % 3}/{number}.jpg", bytes([number]))
    asked: list[str] = []

    def counted(name: str) -> None:
        inner = getattr(MemoryFileSystem, name)

        def call(self: MemoryFileSystem, *args: Any, **options: Any) -> Any:
            asked.append(name)
            return inner(self, *args, **options)

        monkeypatch.setattr(MemoryFileSystem, name, call)

    for name in ("find", "checksum", "exists"):
        counted(name)
    before = file_identity("evaluate.reference", "memory://reference")
    assert asked == ["exists", "find"]
    assert file_identity("evaluate.reference", "memory://reference") == before
    fs.pipe("/reference/0/0.jpg", b"another")
    changed = file_identity("evaluate.reference", "memory://reference")
    fs.pipe("/reference/0/20.jpg", b"one more")
    assert len({before, changed, file_identity("evaluate.reference", "memory://reference")}) == 3
    assert file_identity("evaluate.reference", "memory://reference/0/0.jpg") not in (before, changed)
