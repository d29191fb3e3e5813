"""What is exported means to others what it means to us: the same tensors, the same outputs, or a refusal."""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer
from typer.testing import CliRunner

from smooth.cli import app
from smooth.config import LoraConfig, TrainConfig, resolve_model
from smooth.evaluate.subjects import Subject
from smooth.export import ExportError, adapters
from smooth.export.merged import merge
from smooth.export.run import Format, export
from smooth.export.targets import replacing
from smooth.models import WEIGHTS_NAME, trained
from smooth.models.lora import adapter_names, add_lora, save_lora
from smooth.models.pipeline import load_pipeline
from tests import small, xl

ALPHA = 6.4  # unlike the rank, and no number of fp32


def write_adapter(base: str, folder: Path) -> Path:
    """A LoRA as the training saves it, whose weights are not zero."""
    unet = load_pipeline(base).unet
    torch.manual_seed(2)
    for parameter in add_lora(unet, LoraConfig(rank=4, alpha=ALPHA), seed=1):
        parameter.data += 0.05 * torch.randn_like(parameter)
    save_lora(str(folder), adapter_names(unet, {name: w.detach() for name, w in unet.named_parameters()}), unet)
    return folder


@pytest.fixture(scope="module")
def folder(tiny_base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tiny_base, tmp_path_factory.mktemp("adapter"))


@pytest.fixture(scope="module")
def subject(tiny_base: str, folder: Path) -> Subject:
    return Subject(tiny_base, None, str(folder))


@torch.no_grad()
def output(pipeline: Any) -> Tensor:
    """The UNet's prediction on fixed inputs, 2 x C x H x W."""
    unet, generator = pipeline.unet, torch.Generator().manual_seed(0)
    sample = torch.randn(2, 4, 16, 16, generator=generator)
    text = torch.randn(2, 7, unet.config.cross_attention_dim, generator=generator)
    added = None
    if unet.config.addition_embed_type == "text_time":
        pooled = torch.randn(2, xl.WIDTHS[1], generator=generator)
        added = {"text_embeds": pooled, "time_ids": torch.tensor([[32.0, 32, 0, 0, 32, 32]] * 2)}
    found: Tensor = unet(sample, torch.tensor([10, 700]), encoder_hidden_states=text, added_cond_kwargs=added).sample
    return found


def with_lora(base: str, path: Path, strength: float = 1.0) -> Tensor:
    """What plain diffusers makes of the file."""
    pipeline = DiffusionPipeline.from_pretrained(resolve_model(base), dtype=torch.float32)
    pipeline.load_lora_weights(str(path))
    pipeline.set_adapters(pipeline.get_active_adapters(), strength)
    return output(pipeline)


def by_peft(path: Path) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Tensors by peft's names and alphas by kohya's, as diffusers' own reader has them."""
    raw = load_file(path)
    alphas = {name: value.item() for name, value in raw.items() if name.endswith(".alpha")}
    named, _ = StableDiffusionPipeline.lora_state_dict(raw)
    return convert_unet_state_dict_to_peft(named), alphas


def contents(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return load_file(path), file.metadata()


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].dtype == weight.dtype and torch.equal(found[name], weight) for name, weight in expected.items()
    )


def test_the_diffusers_file_is_the_one_that_training_wrote(subject: Subject, folder: Path, tmp_path: Path) -> None:
    export(subject, "diffusers", tmp_path / "lora")
    export(subject, "diffusers", tmp_path / "other.safetensors")
    tensors, metadata = contents(folder / WEIGHTS_NAME)
    assert json.loads(metadata["lora_adapter_metadata"])["unet.lora_alpha"] == ALPHA
    for written in (tmp_path / "lora" / WEIGHTS_NAME, tmp_path / "other.safetensors"):
        found = contents(written)
        assert same(found[0], tensors)
        assert found[1] == metadata


def test_kohya_and_back_loses_nothing(subject: Subject, tiny_base: str, folder: Path, tmp_path: Path) -> None:
    kohya, source = tmp_path / "kohya.safetensors", load_file(folder / WEIGHTS_NAME)
    export(subject, "kohya", kohya)
    # The names that kohya-ss, ComfyUI and A1111 build of a diffusers UNet's layers.
    modules = {re.sub(r"\.lora_[AB]\.weight$", "", name).replace(".", "_") for name in source}
    ends = ("lora_down.weight", "lora_up.weight", "alpha")
    assert load_file(kohya).keys() == {f"lora_{module}.{end}" for module in modules for end in ends}
    tensors, alphas = by_peft(kohya)
    assert same(tensors, source)
    assert set(alphas.values()) == {ALPHA}
    expected = with_lora(tiny_base, folder)
    torch.testing.assert_close(with_lora(tiny_base, kohya), expected, rtol=0, atol=1e-6)
    assert (expected - output(load_pipeline(tiny_base))).abs().max() > 1e-2

    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / WEIGHTS_NAME).write_bytes(kohya.read_bytes())
    export(Subject(tiny_base, None, str(copy)), "diffusers", tmp_path / "back")
    assert same(load_file(tmp_path / "back" / WEIGHTS_NAME), source)
    back = adapters.read(str(tmp_path / "back"))
    assert {back.alpha(module) for module in back.modules} == {ALPHA}
    assert torch.equal(with_lora(tiny_base, tmp_path / "back"), with_lora(tiny_base, folder))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_kohya_keeps_every_kind_of_layer_and_its_precision(tiny_base: str, tmp_path: Path, dtype: torch.dtype) -> None:
    unet = load_pipeline(tiny_base).unet
    targets = ["to_k", "to_out.0", "proj_in", "ff.net.0.proj", "conv1", "conv_shortcut", "time_emb_proj", "linear_1"]
    ranks = {"attn2.to_k": 2, "mid_block.*conv1": 1}
    unet.add_adapter(
        PeftLoraConfig(r=4, lora_alpha=3, rank_pattern=ranks, target_modules=targets, init_lora_weights=False)
    )
    weights = {name: weight.to(dtype) for name, weight in get_peft_model_state_dict(unet).items()}
    save_lora(str(tmp_path), weights, unet)
    export(Subject(tiny_base, None, str(tmp_path)), "kohya", tmp_path / "kohya.safetensors")
    tensors, alphas = by_peft(tmp_path / "kohya.safetensors")
    assert same(tensors, load_file(tmp_path / WEIGHTS_NAME))
    assert {weight.shape[0] for name, weight in tensors.items() if "lora_A" in name} == {1, 2, 4}
    assert set(alphas.values()) == {3.0}


def test_a_file_without_settings_has_alpha_equal_to_rank(tiny_base: str, folder: Path, tmp_path: Path) -> None:
    save_file(load_file(folder / WEIGHTS_NAME), tmp_path / WEIGHTS_NAME)
    export(Subject(tiny_base, None, str(tmp_path)), "kohya", tmp_path / "kohya.safetensors")
    assert set(by_peft(tmp_path / "kohya.safetensors")[1].values()) == {4.0}
    expected = with_lora(tiny_base, tmp_path / WEIGHTS_NAME)
    torch.testing.assert_close(with_lora(tiny_base, tmp_path / "kohya.safetensors"), expected, rtol=0, atol=1e-6)


def test_several_alphas_go_to_diffusers_alone(tiny_base: str, tmp_path: Path) -> None:
    unet = load_pipeline(tiny_base).unet
    settings = PeftLoraConfig(
        r=4, lora_alpha=8, alpha_pattern={"attn2.to_k": 3}, target_modules=["to_k"], init_lora_weights=False
    )
    unet.add_adapter(settings)
    save_lora(str(tmp_path), get_peft_model_state_dict(unet), unet)
    subject = Subject(tiny_base, None, str(tmp_path))
    adapter = adapters.read(str(tmp_path))
    assert {module.split(".")[-2]: adapter.alpha(module) for module in adapter.modules} == {"attn1": 8, "attn2": 3}
    export(subject, "diffusers", tmp_path / "out")
    assert torch.equal(with_lora(tiny_base, tmp_path / "out"), with_lora(tiny_base, tmp_path / WEIGHTS_NAME))
    with pytest.raises(ExportError, match="more than one alpha"):
        export(subject, "kohya", tmp_path / "kohya.safetensors")
    assert not (tmp_path / "kohya.safetensors").exists()


def test_merged_is_the_base_at_0_and_the_lora_at_1(
    subject: Subject, tiny_base: str, folder: Path, tmp_path: Path
) -> None:
    base = DiffusionPipeline.from_pretrained(resolve_model(tiny_base), dtype=torch.float32)
    outputs = {}
    for strength in (0.0, 0.5, 1.0):
        out = tmp_path / f"merged-{strength}"
        export(subject, "merged", out, strength=strength)
        pipeline = DiffusionPipeline.from_pretrained(out)
        assert type(pipeline) is type(base)
        assert pipeline.scheduler.config == base.scheduler.config
        outputs[strength] = output(pipeline)
        if strength == 0:
            for part in ("unet", "vae", "text_encoder"):
                assert same(getattr(pipeline, part).state_dict(), getattr(base, part).state_dict())
        unfused = with_lora(tiny_base, folder, strength)
        torch.testing.assert_close(outputs[strength], unfused, rtol=0, atol=2e-5)
    assert torch.equal(outputs[0.0], output(base))
    assert (outputs[0.5] - outputs[1.0]).abs().max() > 1e-2


def test_a_whole_unet_becomes_a_pipeline_and_no_lora(tiny_base: str, tmp_path: Path) -> None:
    unet, config = load_pipeline(tiny_base).unet, TrainConfig(method="full")
    weights = {name: 1.1 * w.detach() for name, w in trained.choose(unet, config, seed=0).items()}
    trained.save(str(tmp_path / "tuned"), weights, unet, config)
    subject = Subject(tiny_base, None, str(tmp_path / "tuned"))
    export(subject, "merged", tmp_path / "merged")
    assert same(DiffusionPipeline.from_pretrained(tmp_path / "merged").unet.state_dict(), weights)
    kinds: tuple[Format, ...] = ("diffusers", "kohya")
    for kind in kinds:
        with pytest.raises(ExportError, match=r"whole fine-tuned UNet.*use --format merged"):
            export(subject, kind, tmp_path / "a.safetensors")
    with pytest.raises(ExportError, match=r"--strength 0\.5 is for a LoRA"):
        export(subject, "merged", tmp_path / "half", strength=0.5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged", "tuned"]


def test_xl(tmp_path: Path) -> None:
    base = xl.write_pipeline(tmp_path / "base")
    subject = Subject(base, None, str(write_adapter(base, tmp_path / "adapter")))
    export(subject, "kohya", tmp_path / "kohya.safetensors")
    export(subject, "merged", tmp_path / "merged")
    expected = with_lora(base, tmp_path / "adapter")
    torch.testing.assert_close(with_lora(base, tmp_path / "kohya.safetensors"), expected, rtol=0, atol=1e-6)
    merged = DiffusionPipeline.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(output(merged), expected, rtol=0, atol=2e-5)
    assert (expected - output(load_pipeline(base))).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (b"\x80\x04not safetensors", "can't be read as safetensors"),
        ({"text_encoder.layer.lora_A.weight": (4, 8)}, "adapts a text encoder"),
        ({"unet.to_q.lora_A.weight": (4, 8)}, "no matching pair of weights for the layer to_q"),
        ({"unet.a.lora_A.weight": (4, 8), "unet.a.lora_B.weight": (8, 3)}, "no matching pair"),
        ({"model.diffusion_model.out.weight": (4, 8)}, "is no LoRA of a diffusers UNet"),
        ({"lora_unet_down_blocks_0_to_q.lora_down.weight": (4, 8)}, "no whole LoRA"),
        ({"lora_unet_input_blocks_1_1_to_q.lora_down.weight": (4, 8)}, "as the original Stable Diffusion does"),
    ],
)
def test_what_is_no_lora_is_refused(weights: Any, message: str, tmp_path: Path) -> None:
    if isinstance(weights, bytes):
        (tmp_path / WEIGHTS_NAME).write_bytes(weights)
    else:
        save_file({name: torch.zeros(shape) for name, shape in weights.items()}, tmp_path / WEIGHTS_NAME)
    with pytest.raises(ExportError, match=message):
        export(Subject("builtin:tiny", None, str(tmp_path)), "diffusers", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_lora_of_another_base_is_refused(subject: Subject, tmp_path: Path) -> None:
    other = Subject(small.write_pipeline(tmp_path / "small"), None, subject.trained)
    with pytest.raises(ExportError, match=r"does not fit .*small; name the pipeline .* by --base"):
        export(other, "merged", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_a_target_is_replaced_only_by_force_and_only_whole(tmp_path: Path) -> None:
    out = tmp_path / "model"

    def fail_halfway() -> None:
        with replacing(out, force=False) as path:
            path.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_halfway()
    assert list(tmp_path.iterdir()) == []
    for force in (False, True):
        with replacing(out, force) as path:
            path.mkdir()
            (path / "model_index.json").write_text(str(force))
    assert (out / "model_index.json").read_text() == "True"
    assert list(tmp_path.iterdir()) == [out]
    with pytest.raises(ExportError, match="exists; give --force"), replacing(out, force=False):
        pass
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("mine")
    with pytest.raises(ExportError, match="a folder that no export made"), replacing(tmp_path / "letters", force=True):
        pass
    assert (tmp_path / "letters" / "dear.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "gguf", "--out", "a"], "--format gguf: unknown; there are: diffusers, kohya, merged, onnx"),
        (["--format", "kohya", "--out", "a"], "let its name end in .safetensors"),
        (["--strength", "0.5", "--out", "a"], "--strength is for --format merged and onnx"),
        (["--format", "merged", "--strength", "nan", "--out", "a"], "--strength nan is no finite number"),
        (["--out", "s3://bucket/a"], "give a path of this machine"),
        (["--model", "evil.ckpt", "--out", "a"], "evil.ckpt is a pickle"),
        (["--model", "builtin:tiny", "--out", "a"], "holds no LoRA; use --format merged or onnx"),
        (["--base", "{folder}", "--out", "a"], "is no whole pipeline"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [argument.format(folder=folder) for argument in arguments]
    result = CliRunner().invoke(app, ["export", "--model", str(folder), *given])
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_and_replaces(folder: Path, tiny_base: str, tmp_path: Path) -> None:
    out = tmp_path / "new" / "kohya.safetensors"
    arguments = ["export", "--model", str(folder / WEIGHTS_NAME), "--base", tiny_base]
    arguments += ["--format", "kohya", "--out", str(out)]
    assert CliRunner().invoke(app, arguments).stdout == f"wrote {out}\n"
    first = out.read_bytes()
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 2
    assert "give --force" in refused.stderr
    out.write_bytes(b"")
    assert CliRunner().invoke(app, [*arguments, "--force"]).exit_code == 0
    assert out.read_bytes() == first


def test_onnx_says_what_to_install(subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smooth.export.graphs.find_spec", lambda name: None)
    with pytest.raises(ExportError, match=r"pip install onnx onnxscript onnxruntime"):
        export(subject, "onnx", tmp_path / "onnx")


def write_shallow_pipeline(folder: Path) -> str:
    """Networks of as few layers as there can be, for the exporter's time goes by these."""
    torch.manual_seed(0)
    pipeline: Any = load_pipeline("builtin:tiny")
    text = pipeline.text_encoder.config
    text.num_hidden_layers = 1
    pipeline.text_encoder = CLIPTextModel(text)
    blocks: dict[str, Any] = {"block_out_channels": (16,), "layers_per_block": 1, "norm_num_groups": 8}
    pipeline.unet = UNet2DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D",),
        mid_block_type=None,
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=text.hidden_size,
        **blocks,
    )
    pipeline.vae = AutoencoderKL(latent_channels=4, sample_size=8, scaling_factor=0.5, **blocks)
    pipeline.save_pretrained(folder)
    return str(folder)


def test_a_picture_by_onnx_alone_is_that_of_torch(tmp_path: Path) -> None:
    onnxruntime: Any = import_module("onnxruntime")  # has no types
    base = write_shallow_pipeline(tmp_path / "base")
    subject = Subject(base, None, str(write_adapter(base, tmp_path / "adapter")))
    said: list[str] = []
    out = export(subject, "onnx", tmp_path / "onnx", strength=0.5, say=said.append)
    assert [line.partition(":")[0] for line in said] == ["unet", "text_encoder", "vae_decoder"]

    expected = merge(subject, 0.5)
    expected.scheduler = DDIMScheduler.from_config(expected.scheduler.config)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    settings = {"num_inference_steps": 3, "guidance_scale": 1.0, "output_type": "np"}
    pictures = expected(["a red heart", "a cat"], latents=latents.clone(), **settings).images

    def run(name: str, **inputs: Any) -> Any:
        session = onnxruntime.InferenceSession(out / name / "model.onnx", providers=["CPUExecutionProvider"])
        return session.run(None, inputs)[0]

    tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
    ids = tokenizer(["a red heart", "a cat"], padding="max_length", truncation=True, return_tensors="np").input_ids
    text = run("text_encoder", input_ids=ids.astype(np.int64))
    scheduler = DDIMScheduler.from_pretrained(out / "scheduler")
    scheduler.set_timesteps(3)
    latents = latents * scheduler.init_noise_sigma
    for step in scheduler.timesteps:
        steps = np.full(2, int(step), np.int64)
        noise = run("unet", sample=latents.numpy(), timestep=steps, encoder_hidden_states=text)
        latents = scheduler.step(torch.from_numpy(noise), step, latents).prev_sample
    scaling = json.loads((out / "vae_decoder" / "config.json").read_text())["scaling_factor"]
    found = run("vae_decoder", latent_sample=latents.numpy() / np.float32(scaling))
    np.testing.assert_allclose((found.transpose(0, 2, 3, 1) / 2 + 0.5).clip(0, 1), pictures, atol=1e-4)
