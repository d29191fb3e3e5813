"""What people call a model, and what is measured then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from smooth import store
from smooth.config import ConfigError, ModelConfig
from smooth.evaluate.subjects import Subject, find
from smooth.models import WEIGHTS_NAME

BASE = ModelConfig(base="builtin:tiny")


def no_registry(*_: Any) -> Any:
    raise AssertionError("the registry was asked")


def of(name: str, scratch: Path) -> Subject:
    return find(name, BASE, str(scratch), no_registry)


def test_pipelines_by_folder_name_and_hub_id(tmp_path: Path, tiny_base: str) -> None:
    assert of("builtin:tiny", tmp_path) == Subject("builtin:tiny")
    assert of(tiny_base, tmp_path) == Subject(tiny_base)
    assert of("some/model", tmp_path) == Subject("some/model")
    assert of("some/model@v2", tmp_path) == Subject("some/model", "v2")


def test_what_was_trained_goes_with_the_base(tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    store.write_bytes(str(adapter / WEIGHTS_NAME), b"weights")
    assert of(str(adapter), tmp_path) == Subject("builtin:tiny", None, str(adapter))
    store.write_bytes(str(tmp_path / "whole" / "unet" / "config.json"), b"{}")
    assert of(str(tmp_path / "whole"), tmp_path).trained == str(tmp_path / "whole")


def test_actors_that_work_elsewhere_find_the_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store.write_bytes(str(tmp_path / "adapter" / WEIGHTS_NAME), b"weights")
    assert find("adapter", BASE, "scratch", no_registry).trained == str(tmp_path / "adapter")
    copied = find(f"adapter/{WEIGHTS_NAME}", BASE, "scratch", no_registry).trained
    assert copied is not None
    assert copied.startswith(str(tmp_path / "scratch"))
    assert find("models:/a@b", BASE, "scratch", lambda _, root: ("base", None, root)).trained == str(
        tmp_path / "scratch"
    )


def test_a_file_of_any_name_is_a_lora(tmp_path: Path) -> None:
    file = tmp_path / "style.safetensors"
    file.write_bytes(b"weights")
    subject = of(str(file), tmp_path / "scratch")
    assert subject.base == "builtin:tiny"
    assert subject.trained is not None
    assert Path(subject.trained, WEIGHTS_NAME).read_bytes() == b"weights"


def test_identity_goes_by_content(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        store.write_bytes(str(folder / WEIGHTS_NAME), b"weights")
    identities = {of(name, tmp_path).identity for name in (str(first), str(second))}
    assert len(identities) == 1
    store.write_bytes(str(second / WEIGHTS_NAME), b"others")
    assert of(str(second), tmp_path).identity not in identities
    assert of("builtin:tiny", tmp_path).identity not in identities


def test_registered_versions_come_from_the_registry(tmp_path: Path) -> None:
    def fetch(name: str, root: str) -> tuple[str, str | None, str]:
        assert name == "models:/smooth@candidate"
        return "some/base", "v1", f"{root}/fetched"

    found = find("models:/smooth@candidate", BASE, str(tmp_path), fetch)
    assert found == Subject("some/base", "v1", f"{tmp_path}/fetched")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{root}/model.ckpt", "is a pickle"),
        ("{root}/none.safetensors", "no such file"),
        ("{root}", "is no model"),
        ("./nothing", "is no model"),
        ("s3x/../{root}/model.bin", "is a pickle"),
    ],
)
def test_what_is_no_model_is_refused(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        of(name.format(root=tmp_path), tmp_path)
