"""Whether a registered model loads and paints: fetched, looked through, loaded as its users do it, asked once."""

from __future__ import annotations

import io
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from PIL import Image

from smooth import registry_pyfunc
from smooth.promotion import PromotionError

if TYPE_CHECKING:
    from smooth.promotion.registry import Registry

PROMPT, SEED = "a red heart", 7
MOST_STEPS = 10  # it is to be seen that it paints, not how well
LOADER = "registry_pyfunc"
CODE = {f"code/{LOADER}.py"}
PICKLES = {".bin", ".ckpt", ".joblib", ".msgpack", ".npy", ".npz", ".onnx", ".pickle", ".pkl", ".pt", ".pt2", ".pth"}
"""ends of names of weights that are no safetensors"""


@dataclass(frozen=True)
class Drawn:
    """What came of it."""

    picture: bytes | None
    """PNG; None where the model does not load or paint"""
    figure: str
    words: str
    base_identity: str | None
    """of the base model that the version was registered with, where it says so"""


def draw(registry: Registry, number: str) -> Drawn:
    """Fetch, check and load a version, and draw one picture with it."""
    base_identity = None
    with tempfile.TemporaryDirectory(prefix="smooth-promotion-") as temporary:
        try:
            folder = registry.fetch(number, Path(temporary))
            described = yaml.safe_load((folder / "MLmodel").read_text())
            base_identity = (described.get("metadata") or {}).get("smooth.base_identity")
            check_files(folder, described)
            bring_own_loader(folder)
            picture = _paint(registry.load(folder))
        except Exception as error:  # noqa: BLE001 - whatever a broken model raises, the gate's line tells it
            words = f"{type(error).__name__}: {str(error).strip() or 'no message'}"
            return Drawn(None, "nothing", words[:500], base_identity)
    with Image.open(io.BytesIO(picture)) as image:
        width, height = image.size
    return Drawn(picture, f"{width} x {height} pixels", f'"{PROMPT}", seed {SEED}', base_identity)


def check_files(folder: Path, described: dict[str, Any]) -> None:
    """Refuse what could run code of its own when it is loaded: the only program in there has our loader's name.

    Raises:
        PromotionError: another program, or weights that are no safetensors.
    """
    loader = described["flavors"].get("python_function", {}).get("loader_module")
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    programs = {name for name in files if name.endswith((".py", ".pyc", ".so"))}
    if loader != LOADER or not programs <= CODE:
        found = ", ".join(sorted(programs - CODE)) or f"loader {loader}"
        raise PromotionError(f"it brings a program that the register stage did not put there: {found}")
    pickles = sorted(name for name in files if Path(name).suffix.lower() in PICKLES)
    if pickles:
        raise PromotionError(f"weights must be safetensors: {', '.join(pickles)}")
    if not any(name.endswith(".safetensors") for name in files):
        raise PromotionError("it holds no safetensors")


def bring_own_loader(folder: Path) -> None:
    """Put our loader in the place of the model's: whoever may write to the registry runs no code here."""
    for name in CODE:
        shutil.copyfile(registry_pyfunc.__file__, folder / name)


def _paint(model: Any) -> bytes:
    """One picture at the model's own size.

    Raises:
        PromotionError: it is no PNG, or of one colour, as NaN becomes.
    """
    defaults = {param.name: param.default for param in model.metadata.signature.params}
    steps = min(defaults["num_inference_steps"], MOST_STEPS)
    (picture,) = model.predict({"prompt": [PROMPT], "seed": [SEED]}, params={"num_inference_steps": steps})
    with Image.open(io.BytesIO(picture), formats=["PNG"]) as image:
        if all(low == high for low, high in image.convert("RGB").getextrema()):  # type: ignore[misc]
            raise PromotionError("it paints nothing but one colour")
    return bytes(picture)
