"""Serving: requests by HTTP in batches, against a bare loop of the diffusers pipeline at the same batch.

``OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_serving``. The bare loop calls the pipeline on batches with noises
at hand and throws its pictures away; the service reads JSON, batches, paints with one thread, too, and answers with
PNGs. The two take turns. Once there are as many requests in flight as a batch has pictures, so that the painter waits
for answers to go out and requests to come in, and once twice as many, so that a batch is always at hand. A third way is
steady traffic, a request every so often without waiting for answers.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import torch
from mlflow import MlflowClient

from infra.local.layout import free_ports
from smooth.edit import GUIDANCE
from smooth.edit.model import open_model
from tests.benchmarks.results import Result, report
from tests.served import is_up, mlflow_server, register, running, smooth, until

MODEL = "models:/smooth-diffusion@candidate"
PROMPT = "a red heart"
STEADY = 0.85  # of the bare loop's rate


def ask(client: httpx.Client, url: str, seed: int, steps: int) -> None:
    """One picture."""
    answer = client.post(url, json={"prompt": PROMPT, "seed": seed, "steps": steps})
    if answer.status_code != httpx.codes.OK:
        raise RuntimeError(f"{answer.status_code} {answer.text}")


def at_once(url: str, pictures: int, steps: int, in_flight: int) -> None:
    """So many requests in flight until all pictures are there."""
    with httpx.Client(timeout=600) as client, ThreadPoolExecutor(in_flight) as pool:
        list(pool.map(lambda seed: ask(client, url, seed, steps), range(pictures)))


def steadily(url: str, pictures: int, steps: int, rate: float) -> float:
    """Requests at a rate, in pictures/s; returns that of the answers, from the first request to the last answer."""
    limits = httpx.Limits(max_connections=pictures)
    with httpx.Client(timeout=600, limits=limits) as client, ThreadPoolExecutor(pictures) as pool:
        begun = time.perf_counter()
        asked = []
        for seed in range(pictures):
            time.sleep(max(0.0, begun + seed / rate - time.perf_counter()))
            asked.append(pool.submit(ask, client, url, seed, steps))
        for each in asked:
            each.result()
        return pictures / (time.perf_counter() - begun)


def measure(url: str, pipeline: Any, args: argparse.Namespace) -> list[Result]:
    """Medians of alternating rounds."""
    batch, steps, pictures = args.batch, args.steps, args.batch * args.batches
    shape = (batch, pipeline.unet.config.in_channels, *[pipeline.unet.config.sample_size] * 2)

    def bare() -> None:
        for _ in range(args.batches):
            pipeline(
                prompt=[PROMPT] * batch,
                latents=torch.randn(shape),
                num_inference_steps=steps,
                guidance_scale=GUIDANCE,
                output_type="np",
            )

    works: dict[str, Callable[[], None]] = {
        "bare loop": bare,
        f"served, {batch} in flight": lambda: at_once(url, pictures, steps, batch),
        f"served, {2 * batch} in flight": lambda: at_once(url, pictures, steps, 2 * batch),
    }
    rates: dict[str, list[float]] = {name: [] for name in works}
    at_once(url, batch, steps, batch)
    bare()
    for _ in range(args.rounds):
        for name, work in works.items():
            begun = time.perf_counter()
            work()
            rates[name].append(pictures / (time.perf_counter() - begun))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    wanted = STEADY * medians["bare loop"]
    steady = statistics.median(steadily(url, pictures, steps, wanted) for _ in range(args.rounds))
    ratios = [rate / medians["bare loop"] for rate in medians.values()]
    return [
        *(Result(name, rate, "pictures/s") for name, rate in medians.items()),
        Result(f"{batch} in flight / bare", ratios[1], ""),
        Result(f"{2 * batch} in flight / bare", ratios[2], "", ">= 0.9"),
        Result(f"steady traffic at {STEADY:g} of bare, answered / asked", steady / wanted, ""),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--batches", type=int, default=6, help="of a round")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="smooth-bench-") as folder:
        root = Path(folder)
        registry_port, port, metrics_port = free_ports(3)
        address, logs = f"http://127.0.0.1:{registry_port}", (root / "registry.log", root / "serve.log")
        with running(mlflow_server(root, registry_port), logs[0]) as server:
            until(is_up(f"{address}/health"), server, logs[0])
            os.environ["MLFLOW_TRACKING_URI"] = address
            register("builtin:tiny", root / "artifacts", 0.05)
            MlflowClient().set_registered_model_alias("smooth-diffusion", "candidate", "1")
            options = [f"--model={MODEL}", f"--port={port}", f"--metrics-port={metrics_port}", "--threads=1"]
            command = smooth("serve", *options, f"--max-batch={args.batch}", "--queue=1000")
            with running(command, logs[1], {"SMOOTH_HOME": str(root / "home")}) as serving:
                until(is_up(f"http://127.0.0.1:{port}/health"), serving, logs[1])
                pipeline = open_model(MODEL, scratch=str(root / "bare")).at()
                results = measure(f"http://127.0.0.1:{port}/generate", pipeline, args)
    report("serving", results)


if __name__ == "__main__":
    main()
