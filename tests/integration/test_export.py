"""An exported LoRA without this project: an environment of diffusers and peft alone draws the same picture."""

from __future__ import annotations

import json
import os
import re
import subprocess
import venv
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
import torch
from packaging.requirements import Requirement

from smooth.config import resolve_model
from smooth.evaluate.subjects import Subject
from smooth.export.run import export
from smooth.models import trained
from smooth.models.pipeline import load_pipeline
from tests.evaluated import write_adapter

PLAIN = ("diffusers", "peft", "transformers", "torch", "safetensors", "accelerate")
PROMPT, STEPS, GUIDANCE, SEED = "a red heart", 4, 3.0, 7
# What a stranger writes; nothing in it is ours.
SCRIPT = f"""
import importlib.util, json, sys
for name in ("smooth", "mlflow", "ray"):
    assert importlib.util.find_spec(name) is None, name
import numpy, torch
from diffusers import DDIMScheduler, DiffusionPipeline
base, out, *files = sys.argv[1:]
pipe = DiffusionPipeline.from_pretrained(base, torch_dtype=torch.float32, safety_checker=None)
pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
pictures = []
for file in files:
    pipe.load_lora_weights(file)
    generator = torch.Generator().manual_seed({SEED})
    settings = dict(num_inference_steps={STEPS}, guidance_scale={GUIDANCE}, output_type="np")
    pictures.append(pipe({PROMPT!r}, generator=generator, **settings).images[0])
    pipe.unload_lora_weights()
numpy.save(out, numpy.stack(pictures))
print(json.dumps(sorted(path for path in sys.path if path)))
"""


def closure(names: Iterable[str]) -> dict[str, Distribution]:
    """The distributions that ``names`` require here, and what those do, by name; extras are left out."""
    found: dict[str, Distribution] = {}
    waiting = list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            assert name not in PLAIN, f"{name} is not installed"
            continue
        for text in found[name].requires or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return found


def fresh_environment(folder: Path) -> Path:
    """A virtual environment with those distributions alone, linked from this one; returns its interpreter."""
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python3.*/site-packages")
    for found in closure(PLAIN).values():
        for top in {file.parts[0] for file in found.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            source = Path(str(found.locate_file(top)))
            if source.exists() and not (site / top).exists():
                (site / top).symlink_to(source)
    return folder / "bin" / "python"


def test_plain_diffusers_draws_the_same_picture(tiny_base: str, tmp_path: Path) -> None:
    write_adapter(tiny_base, str(tmp_path / "trained"), scale=0.1)
    subject = Subject(tiny_base, None, str(tmp_path / "trained"))
    export(subject, "diffusers", tmp_path / "lora")
    export(subject, "kohya", tmp_path / "kohya.safetensors")

    python = fresh_environment(tmp_path / "venv")
    files = [str(tmp_path / "lora"), str(tmp_path / "kohya.safetensors")]
    command = [str(python), "-I", "-c", SCRIPT, resolve_model(tiny_base), str(tmp_path / "pictures.npy"), *files]
    environment = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    ours = str(Path(str(distribution("diffusers").locate_file(""))).resolve())
    assert ours not in json.loads(done.stdout.splitlines()[-1])

    pipeline: Any = load_pipeline(tiny_base)
    switch = trained.attach(pipeline, str(tmp_path / "trained"))
    pictures = {}
    for on in (True, False):
        switch(on)
        generator = torch.Generator().manual_seed(SEED)
        settings = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "np"}
        pictures[on] = pipeline(PROMPT, generator=generator, **settings).images[0]
    for picture in np.load(tmp_path / "pictures.npy"):
        assert np.abs(picture - pictures[True]).max() <= 1 / 255
    assert np.abs(pictures[False] - pictures[True]).max() > 10 / 255, "the adapter does nothing"
