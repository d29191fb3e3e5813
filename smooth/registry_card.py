"""The card of a registered version, in Markdown."""

from __future__ import annotations

from typing import Any

from smooth import tracking
from smooth.config import RunConfig


def card(config: RunConfig, training: dict[str, Any], evaluation: dict[str, Any]) -> str:
    """Markdown: what the version is, its metrics with intervals, what it was made from, how to load it."""
    rows = [
        f"| {metric['name']} | {metric['model']} | {metric['value']:.4g} | {_interval(metric)} | {metric['n']} |"
        for metric in evaluation["metrics"]
        if metric["value"] is not None
    ]
    lineage = [f"- {stage}: `{value}`" for stage, value in tracking.fingerprint_tags(config).items()]
    uri = f"models:/{config.register_.name}@{config.register_.alias}"
    whole = config.train.method == "full"
    what = "Smooth UNet" if whole else f"Smooth LoRA of rank {config.train.lora.rank}"
    load = "unet = UNet2DConditionModel.from_pretrained(%s, subfolder='unet')" if whole else "load_lora_weights(%s)"
    return tracking.redact(
        "\n".join(
            [
                f"{what} for `{config.model.base}`: lambda {config.train.variation.weight:g}, "
                f"{training['steps']} steps.",
                "",
                "| metric | model | value | 95 % interval | n |",
                "|---|---|---|---|---|",
                *rows,
                "",
                f"Pictures: `strips.png`, `curves.png` beside the weights and under `evaluate/` of run "
                f"`{training['run_id']}`.",
                "",
                "Made from:",
                *lineage,
                "",
                f"    mlflow.pyfunc.load_model('{uri}').predict({{'prompt': ['a red heart'], 'seed': [7]}})",
                "    pipeline." + load % "f'{downloaded_folder}/adapter_weights'",
                "",
            ]
        )
    )


def _interval(metric: dict[str, Any]) -> str:
    return "" if metric["low"] is None else f"{metric['low']:.4g} to {metric['high']:.4g}"
