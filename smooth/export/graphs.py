"""A pipeline's networks as ONNX graphs, each checked by ONNX Runtime against torch before it is kept."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from smooth.export import ExportError

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-3  # of the largest value; fp32 kernels differ by 1e-6 to 1e-5, a wrong graph by its whole size
SIZE = 16  # height and width of the example's latents; the graph takes others, and a UNet of four levels halves thrice
AXES = {  # name of an input -> the axes that are free
    "sample": {0: "batch", 2: "height", 3: "width"},
    "timestep": {0: "batch"},
    "encoder_hidden_states": {0: "batch"},
    "input_ids": {0: "batch"},
    "latent_sample": {0: "batch", 2: "height", 3: "width"},
}


class _First(nn.Module):
    """A network that takes tensors and returns its first output alone."""

    def __init__(self, network: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.network = network
        self.call = call

    def forward(self, *inputs: Tensor) -> Tensor:
        first: Tensor = self.call(*inputs)[0]
        return first


@dataclass(frozen=True)
class Graph:
    """A network to export, under the names that Optimum and diffusers gave its inputs and outputs."""

    folder: str
    network: nn.Module
    inputs: tuple[str, ...]
    output: str
    example: Callable[[int, int], tuple[Tensor, ...]]
    """takes a batch size and a factor of SIZE"""


def require() -> None:
    """Raise unless the packages that write and run ONNX are there.

    Raises:
        ExportError: some package is missing.
    """
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise ExportError(f"--format onnx needs {' and '.join(missing)}: pip install {' '.join(PACKAGES)}")


def write(pipeline: Any, folder: Path) -> Iterator[tuple[str, float]]:
    """Write UNet, text encoder and VAE decoder, each as ``NAME/model.onnx`` with its weights beside it.

    Batch, and the height and width of latents, are free. The tokenizer, the scheduler and the networks' configs lie
    beside the graphs as in a diffusers pipeline.

    Yields:
        The name of each graph and its largest difference from torch, as a share of torch's largest value.

    Raises:
        ExportError: the pipeline has two text encoders, or a graph computes something else than torch.
    """
    if getattr(pipeline, "text_encoder_2", None) is not None:
        raise ExportError("--format onnx writes pipelines of one text encoder; use --format merged for XL")
    for graph in graphs(pipeline):
        path = folder / graph.folder / "model.onnx"
        path.parent.mkdir(parents=True)
        _write(graph, path)
        yield graph.folder, difference(graph, path)
    pipeline.unet.save_config(folder / "unet")
    pipeline.vae.save_config(folder / "vae_decoder")
    pipeline.text_encoder.config.save_pretrained(folder / "text_encoder")
    pipeline.tokenizer.save_pretrained(folder / "tokenizer")
    pipeline.scheduler.save_pretrained(folder / "scheduler")


def graphs(pipeline: Any) -> list[Graph]:
    """The three networks that text to image takes.

    Shapes: sample and latent_sample N x C x H x W, timestep N (int64), input_ids N x L (int64), encoder_hidden_states
    N x L x D; fp32 but for the integers. The decoder takes latents divided by the VAE's scaling factor.
    """
    unet, text, vae = pipeline.unet, pipeline.text_encoder, pipeline.vae
    length, width = pipeline.tokenizer.model_max_length, unet.config.cross_attention_dim

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(0))

    def whole(below: int, *shape: int) -> Tensor:
        return torch.randint(below, shape, generator=torch.Generator().manual_seed(0))

    def latents(batch: int, factor: int) -> Tensor:
        return normal(batch, unet.config.in_channels, factor * SIZE, factor * SIZE)

    return [
        Graph(
            "unet",
            _First(unet, lambda *inputs: unet(*inputs, return_dict=False)),
            ("sample", "timestep", "encoder_hidden_states"),
            "out_sample",
            lambda batch, factor: (latents(batch, factor), whole(1000, batch), normal(batch, length, width)),
        ),
        Graph(
            "text_encoder",
            _First(text, lambda ids: text(ids, return_dict=False)),
            ("input_ids",),
            "last_hidden_state",
            lambda batch, _: (whole(text.config.vocab_size, batch, length),),
        ),
        Graph(
            "vae_decoder",
            _First(vae, lambda latent: vae.decode(latent, return_dict=False)),
            ("latent_sample",),
            "sample",
            lambda batch, factor: (latents(batch, factor),),
        ),
    ]


def _write(graph: Graph, path: Path) -> None:
    with warnings.catch_warnings():
        # Inputs that share an axis, which is meant, and what torch's exporter uses of its own that is to go.
        warnings.filterwarnings("ignore", message=r"# The axis name: .* will not be used")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        torch.onnx.export(
            graph.network.eval(),
            graph.example(2, 1),
            path,
            input_names=graph.inputs,
            output_names=[graph.output],
            dynamic_shapes=(tuple(AXES[name] for name in graph.inputs),),  # one: forward takes *inputs
            dynamo=True,
            external_data=True,
            verbose=False,
        )


def difference(graph: Graph, path: Path) -> float:
    """The largest difference between the graph and torch, over batches and sizes other than the exported one.

    Raises:
        ExportError: it is more than rounding.
    """
    onnxruntime: Any = import_module("onnxruntime")  # has no types
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    worst = 0.0
    for batch, factor in ((1, 1), (3, 1), (1, 2)):
        example = graph.example(batch, factor)
        with torch.no_grad():
            expected = graph.network(*example)
        fed = {name: value.numpy() for name, value in zip(graph.inputs, example, strict=True)}
        found = torch.from_numpy(session.run([graph.output], fed)[0])
        worst = max(worst, float((found - expected).abs().max() / expected.abs().max()))
    if not worst <= TOLERANCE:
        raise ExportError(
            f"the ONNX graph of {graph.folder} differs from torch by {worst:.2g}; try another torch or onnx"
        )
    return worst
