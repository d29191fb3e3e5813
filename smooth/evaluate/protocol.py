"""What is sampled: prompts, noises and reference pictures, chosen by the run's seed from the run's own data."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import pyarrow.parquet as pq

from smooth import store
from smooth.config import ConfigError, EvaluateConfig, RunConfig, file_identity, model_identity
from smooth.evaluate.networks import Network


@dataclass(frozen=True)
class Protocol:
    """All that the measured values depend on besides the model: the same for every model that is compared."""

    prompts: tuple[str, ...]
    """of the interpolations, two noises each"""
    picture_prompts: tuple[str, ...]
    """of the Fréchet and kernel distances, one noise each"""
    frames: int
    strips: int
    seed: int
    image_size: int
    steps: int
    guidance: float
    base: str
    """identity of the base model"""
    data: str
    """digest of the ingested pictures: references of the reconstructions, and of the distances where no others are"""
    reference_order: str = "key"
    """by what the ingested pictures are counted when the reference pictures are drawn"""
    reference: str = ""
    """identity of the folder of reference pictures; empty: they are the data's own"""
    networks: tuple[Network, ...] = ()
    """that make features of the single pictures"""
    reconstructions: int = 0
    """real pictures that are inverted and painted again"""
    null_text_steps: int = 10
    """of the optimizer, for each step of null-text inversion"""
    path_lengths: int = 0
    """paths of the perceptual path length, each with two noises and the prompt of a single picture"""
    until_ci: float | None = None
    """the width that ended the interpolations early, which makes their intervals a little too narrow; None: all"""

    @classmethod
    def of(cls, config: RunConfig) -> Protocol:
        """The protocol of a run whose latents are finished.

        Raises:
            ConfigError: the prompts file is missing or too short.
            store.ArtifactError: the latents are not finished.
        """
        evaluate = config.evaluate
        captions = captions_of(config.stage_dir("latents"))
        if evaluate.prompts_file is None:
            prompts = _draw(captions, evaluate.prompts, f"{config.seed}/prompts")
        else:
            prompts = _first(_read_prompts("prompts_file", evaluate.prompts_file), evaluate)
        if evaluate.picture_prompts_file is not None:
            captions = _read_prompts("picture_prompts_file", evaluate.picture_prompts_file)
        reference = evaluate.reference
        return cls(
            prompts=tuple(prompts),
            picture_prompts=tuple(_draw(captions, evaluate.pictures, f"{config.seed}/pictures")),
            reference="" if reference is None else file_identity("evaluate.reference", reference),
            frames=evaluate.frames,
            strips=min(evaluate.strips, evaluate.prompts),
            seed=config.seed,
            image_size=config.latents.image_size,
            steps=evaluate.steps,
            guidance=evaluate.guidance,
            base=model_identity(config.model.base, config.model.revision),
            data=_data(config),
            reconstructions=evaluate.reconstructions,
            null_text_steps=evaluate.null_text_steps,
            path_lengths=evaluate.path_lengths,
        )

    def first(self, prompts: int) -> Protocol:
        """The same on the first ``prompts`` (at most those that there are), with their noises; no single pictures."""
        return replace(self, prompts=self.prompts[:prompts], picture_prompts=(), reconstructions=0, path_lengths=0)

    def stopped(self, prompts: int, until_ci: float | None) -> Protocol:
        """What was sampled when it ended after ``prompts``, by ``until_ci`` where that is fewer than all."""
        if prompts == len(self.prompts):
            return self
        return replace(self, prompts=self.prompts[:prompts], strips=min(self.strips, prompts), until_ci=until_ci)

    @property
    def fingerprint(self) -> str:
        """16 hex digits over all that is sampled: pictures are kept under it and shared by evaluations.

        Networks judge pictures and don't change them; a path is the same among however many.
        """
        facts = asdict(replace(self, networks=()))
        del facts["path_lengths"]
        return _digest(facts)

    @property
    def references(self) -> str:
        """16 hex digits over which reference pictures are taken: their features are kept under it."""
        drawn = [self.reference or self.data, self.reference_order, self.seed, len(self.picture_prompts)]
        return _digest([*drawn, self.image_size])

    @property
    def stamp(self) -> dict[str, str | int | float]:
        """The part every value carries."""
        return {
            "base": self.base,
            "sampler": "DDIM",
            "steps": self.steps,
            "guidance": self.guidance,
            "image_size": self.image_size,
            "seed": self.seed,
        }

    @property
    def interpolation_stamp(self) -> dict[str, str | int | float]:
        """The part of values measured on interpolations."""
        stopped: dict[str, str | int | float] = {} if self.until_ci is None else {"until_ci": self.until_ci}
        prompts = _digest(self.prompts)
        return {**self.stamp, "prompts": prompts, "frames": self.frames, "interpolation": "slerp", **stopped}

    @property
    def picture_stamp(self) -> dict[str, str | int | float]:
        """The part of values measured against reference pictures."""
        return {
            **self.stamp,
            "prompts": _digest(self.picture_prompts),
            "reference": self.reference or self.data,
            "reference_order": self.reference_order,
        }

    def path_prompt(self, path: int) -> str:
        """Prompt of a path; those of the single pictures go round."""
        return self.picture_prompts[path % len(self.picture_prompts)]

    @property
    def path_stamp(self) -> dict[str, str | int | float]:
        """The part of perceptual path lengths."""
        return {**self.stamp, "prompts": _digest([self.path_prompt(path) for path in range(self.path_lengths)])}

    @property
    def reconstruction_stamp(self) -> dict[str, str | int | float]:
        """The part of values measured on pictures that were inverted and painted again."""
        return {
            **self.stamp,
            "reference": self.data,
            "pictures": self.reconstructions,
            "prompts": "captions",
            "null_text_steps": self.null_text_steps,
            "pixels": "[0, 1]",
        }


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _data(config: RunConfig) -> str:
    """Of the pictures as they are now: `smooth ingest retry` changes them. Latents without them say what they were."""
    ingest = config.stage_dir("ingest")
    if store.is_complete(ingest):
        return str(store.read_manifest(ingest)["digest"])
    return str(store.read_manifest(config.stage_dir("latents"))["ingest"])


def captions_of(latents: str) -> list[str]:
    """Distinct captions of the data set, sorted."""
    found: set[str] = set()
    for file in store.read_manifest(latents)["files"]:
        path = store.join(latents, file["texts"]["name"])
        with store.filesystem(path)[0].open(path, "rb") as handle:
            found.update(pq.read_table(handle, columns=["caption"])["caption"].to_pylist())
    if not found:
        raise store.ArtifactError(f"the latents at {latents} hold no caption; run the ingest and latents stages again")
    return sorted(found)


def _read_prompts(key: str, path: str) -> list[str]:
    """All prompts of a text file, or of COCO's annotations."""
    if not store.exists(path):
        raise ConfigError(f"evaluate.{key}={path}: no such file; give a text file with one prompt a line")
    text = store.read_bytes(path).decode()
    if path.endswith(".json"):
        try:
            lines = [str(annotation["caption"]) for annotation in json.loads(text)["annotations"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"evaluate.{key}={path} is no COCO captions file (annotations: caption)") from error
    else:
        lines = text.splitlines()
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ConfigError(f"evaluate.{key}={path} holds no prompt; give one a line")
    return prompts


def _first(prompts: list[str], evaluate: EvaluateConfig) -> list[str]:
    if len(prompts) < evaluate.prompts:
        raise ConfigError(
            f"evaluate.prompts_file={evaluate.prompts_file} has {len(prompts)} prompts, evaluate.prompts asks for "
            f"{evaluate.prompts}; lower it"
        )
    return prompts[: evaluate.prompts]


def _draw(values: Sequence[str], count: int, seed: str) -> list[str]:
    """``count`` of the values in random order; all of them again and again where there are too few."""
    rng = random.Random(seed)
    drawn: list[str] = []
    while len(drawn) < count:
        drawn += rng.sample(values, min(len(values), count - len(drawn)))
    return drawn
