"""The pictures the built-in base learns from, rendered once and kept as one array on disk."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from smooth.data.openmoji import Drawing, Style, drawings, render
from smooth.pretrain.architecture import IMAGE_SIZE

FIRST_STYLE = 1  # style 0 is what the built-in web serves: pretraining never sees those very pixels
_BLOCK = 64  # drawings a process renders at once


@dataclass(frozen=True)
class Corpus:
    """``pictures`` is (drawings, styles, 64, 64, 3) uint8, memory-mapped; ``drawings`` names its first axis."""

    drawings: tuple[Drawing, ...]
    pictures: npt.NDArray[np.uint8]


def load_corpus(folder: Path, styles: int, *, held_out: bool) -> Corpus:
    """Render the training or the held-out drawings in ``styles`` styles each, or open them if that was done."""
    chosen = tuple(drawing for drawing in drawings() if drawing.held_out == held_out)
    path = folder / f"{'held-out' if held_out else 'train'}-{len(chosen)}x{styles}.npy"
    if not path.exists():
        _render_all(chosen, styles, path)
    return Corpus(chosen, np.load(path, mmap_mode="r"))


def to_batch(pictures: npt.NDArray[np.uint8], device: torch.device) -> torch.Tensor:
    """(B, H, W, 3) uint8 to (B, 3, H, W) float32 in [-1, 1], as the VAE takes them."""
    array = torch.from_numpy(np.array(pictures)).to(device, non_blocking=True)
    return array.permute(0, 3, 1, 2).float().div(127.5).sub(1)


def _render_block(block: tuple[Drawing, ...], styles: int) -> npt.NDArray[np.uint8]:
    indices = range(FIRST_STYLE, FIRST_STYLE + styles)
    return np.stack(
        [
            np.stack([render(drawing, IMAGE_SIZE, Style.draw(drawing.key, index)) for index in indices])
            for drawing in block
        ]
    )


def _render_all(chosen: tuple[Drawing, ...], styles: int, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = [chosen[start : start + _BLOCK] for start in range(0, len(chosen), _BLOCK)]
    # A name that ends in .npy, or numpy would append the suffix.
    partial = path.with_suffix(".partial.npy")
    shape = (len(chosen), styles, IMAGE_SIZE, IMAGE_SIZE, 3)
    array = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        start = 0
        for rendered in pool.map(_render_block, blocks, [styles] * len(blocks)):
            array[start : start + len(rendered)] = rendered
            start += len(rendered)
            print(f"rendered {start} of {len(chosen)} drawings in {styles} styles", flush=True)
    array.flush()
    partial.rename(path)
