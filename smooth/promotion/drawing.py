"""Whether a registered model loads and paints: fetched, looked through, loaded by our own loader, asked once."""

from __future__ import annotations

import io
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from PIL import Image

from smooth.promotion import PromotionError

if TYPE_CHECKING:
    from smooth.promotion.registry import Registry

PROMPT, SEED = "a red heart", 7
MOST_STEPS = 10  # it is to be seen that it paints, not how well
LOADER = "registry_pyfunc"
CODE = {f"code/{LOADER}.py"}
PYFUNC = {"loader_module": LOADER, "code": "code"}
FREE = {"env", "python_version"}  # of the pyfunc flavour; whatever else it may set, it is a way to another program
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
    """Fetch, check and load a version, and draw one picture with it.

    Raises:
        PromotionError: it could not be fetched.
    """
    base_identity = None
    with tempfile.TemporaryDirectory(prefix="smooth-promotion-") as temporary:
        folder = registry.fetch(number, Path(temporary))  # out here: an outage is no fault of the model
        try:
            described = yaml.safe_load((folder / "MLmodel").read_text())
            base_identity = (described.get("metadata") or {}).get("smooth.base_identity")
            check_files(folder, described)
            picture = _paint(registry.load(folder))
        except Exception as error:  # noqa: BLE001 - whatever a broken model raises, the gate's line tells it
            words = f"{type(error).__name__}: {str(error).strip() or 'no message'}"
            return Drawn(None, "nothing", words[:500], base_identity)
    with Image.open(io.BytesIO(picture)) as image:
        width, height = image.size
    return Drawn(picture, f"{width} x {height} pixels", f'"{PROMPT}", seed {SEED}', base_identity)


def check_files(folder: Path, described: dict[str, Any]) -> None:
    """Refuse what could run code of its own where MLflow loads it: the only program in there has our loader's name.

    MLflow puts the flavour's ``code`` in front of ``sys.path``, and Python imports out of any file that is a zip.

    Raises:
        PromotionError: another program or way to one, weights that are no safetensors, or lie elsewhere.
    """
    flavors = described["flavors"]
    pyfunc, diffusers = flavors.get("python_function", {}), flavors.get("diffusers", {})
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    programs = {name for name in files if name.endswith((".py", ".pyc", ".so")) or name.startswith("code/")} - CODE
    ways = {key: value for key, value in pyfunc.items() if key not in FREE and value != PYFUNC.get(key)}
    ways |= {key: pyfunc.get(key) for key in PYFUNC.keys() - pyfunc.keys()}
    if diffusers.get("code", "code") != "code":
        ways["code"] = diffusers["code"]
    if programs or ways:
        found = ", ".join([*sorted(programs), *(f"{key}: {value}" for key, value in sorted(ways.items()))])
        raise PromotionError(f"it brings a program that the register stage did not put there: {found}")
    pickles = sorted(name for name in files if Path(name).suffix.lower() in PICKLES)
    if pickles:
        raise PromotionError(f"weights must be safetensors: {', '.join(pickles)}")
    weights = str(diffusers.get("adapter_weights"))
    if not any(name.startswith(f"{weights}/") and name.endswith(".safetensors") for name in files):
        raise PromotionError(f"it holds no safetensors in {weights}")


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
