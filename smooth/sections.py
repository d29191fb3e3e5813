"""The sections of a run config: what each stage can be told, with its bounds and its meaning."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


def runtime(default: Any, description: str, **constraints: Any) -> Any:
    """A field that changes how fast a stage runs, never what it makes: not in the fingerprint."""
    return Field(default, description=description, json_schema_extra={"runtime": True}, **constraints)


def note(description: str) -> Any:
    """A field that says something of the data and changes nothing: not in the fingerprint, either."""
    return runtime(None, description)


Side = Annotated[int, Field(ge=8)]
Size = tuple[Side, Side]  # of a picture: height, width in pixels


class Section(BaseModel):
    """Base of every config section: unknown keys are errors, values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def identity(self) -> dict[str, Any]:
        """The fields that decide what a stage makes, as plain JSON values."""
        result: dict[str, Any] = {}
        for name, info in type(self).model_fields.items():
            extra = info.json_schema_extra
            if isinstance(extra, dict) and extra.get("runtime"):
                continue
            value = getattr(self, name)
            result[name] = value.identity() if isinstance(value, Section) else value
        return result


class StorageConfig(Section):
    """Where artifacts lie."""

    root: str = runtime(".smooth/artifacts", "any fsspec path; a relative one counts from the working directory")


class ModelConfig(Section):
    """The base diffusion model that is made smooth."""

    base: str = Field("builtin:tiny", description="builtin:NAME, a diffusers folder, a hub id or models:/NAME@ALIAS")
    revision: str | None = Field(None, description="hub revision (commit, tag or branch)")


class DemoWebConfig(Section):
    """The built-in web of captioned OpenMoji pictures, served on loopback while ingest runs."""

    pictures: int | None = Field(None, ge=1, description="slice of the good pictures; None is all (about 3,900)")
    fault_share: float = Field(0.05, ge=0, le=0.5, description="share of rows that are bad as the web is bad")
    seed: int = 0


class IngestConfig(Section):
    """Which rows of the URL list are fetched, and how (img2dataset)."""

    url_list: str | None = Field(None, description="Parquet file or folder on any fsspec path")
    demo_web: DemoWebConfig | None = Field(None, description="serve and use the built-in list instead of url_list")
    source: str | None = note("where the list is from, for the manifest and for MLflow")
    licence: str | None = note("of its pictures, as far as one is known")
    columns: dict[str, str] = Field({}, description="names of the list's columns that are not known: {URL: link}")
    image_size: int = Field(512, ge=8, description="pixels; the shorter side is resized to it")
    resize_mode: Literal["center_crop", "keep_ratio"] = Field(
        "center_crop", description="keep the square in the centre, or the whole picture, as latents.buckets want it"
    )
    min_size: int = Field(0, ge=0, description="pixels; smallest WIDTH and HEIGHT that is fetched")
    max_aspect: float | None = Field(None, ge=1, description="largest ratio of the longer side to the shorter")
    min_aesthetic: float | None = Field(None, description="smallest AESTHETIC_SCORE")
    max_punsafe: float | None = Field(None, ge=0, le=1)
    max_pwatermark: float | None = Field(None, ge=0, le=1)
    min_similarity: float | None = Field(None, ge=-1, le=1, description="smallest CLIP similarity of text and image")
    min_caption: int = Field(1, ge=1, description="characters beside white space around them")
    max_caption: int | None = Field(None, ge=1, description="characters")
    blocked_domains: str | None = Field(None, description="file of domains, one a line; subdomains are meant, too")
    blocked_hashes: str | None = Field(None, description="file of values of the column hash, one a line")
    duplicate_url: Literal["refuse", "keep"] = Field("refuse", description="rows whose URL an earlier row has")
    duplicate_hash: Literal["refuse", "keep"] = Field("refuse", description="rows whose hash an earlier row has")
    limit: int | None = Field(None, ge=1, description="keep the first n rows of the list")
    shard_size: int = Field(10_000, ge=1, description="pictures per WebDataset shard")
    encode_format: Literal["jpg", "png"] = Field("jpg", description="jpg at quality 95, or png: larger, no loss")
    timeout_s: float = Field(10.0, gt=0, description="seconds to connect, and to wait for the next bytes")
    deadline_s: float = Field(60.0, gt=0, description="seconds for one request, redirects and slow bodies included")
    max_bytes: int = Field(50_000_000, ge=1, description="of one picture")
    max_pixels: int = Field(100_000_000, ge=1, description="of one picture, by its header, before it is decoded")
    allowed_hosts: tuple[str, ...] = Field((), description="host:port that may lie in a private network")
    retries: int = Field(2, ge=0, description="of transient failures")
    back_off_s: float = Field(0.5, gt=0, description="seconds before a retry, doubled for each; Retry-After goes first")
    connections_per_host: int = runtime(
        32, "connections to one host at once, shared evenly by the processes and at least one for each", ge=1
    )
    processes: int = runtime(2, "downloading processes: Ray tasks of one CPU each", ge=1)
    threads: int = runtime(32, "connections of one process", ge=1)
    node_resource: str | None = runtime(
        None, "Ray resource of the nodes that may fetch (ray start --resources), one each process; None is any node"
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.url_list is None) == (self.demo_web is None):
            raise ValueError(
                "ingest needs exactly one source: set ingest.url_list to a Parquet list, or ingest.demo_web "
                "(for example ingest.demo_web.fault_share=0.05) and leave the other null"
            )
        return self


class LatentsConfig(Section):
    """How pictures become cached VAE latents and text embeddings (Ray Data)."""

    image_size: int = Field(
        512, ge=8, description="pixels; a multiple of the VAE's downsampling. Evaluate and register sample such squares"
    )
    buckets: tuple[Size, ...] = Field(
        (),
        description="sizes instead of a square: [[512, 512], [416, 608]], height and width in pixels; a picture goes "
        "to the one of the nearest aspect. About equal areas keep losses and norms comparable",
    )
    cache_text: bool = Field(True, description="cache the text encoder's output; false caches token ids")
    crop: Literal["centre", "random"] = Field("centre", description="part that is shown; random ones vary in size")
    crops: int = Field(1, ge=1, le=64, description="rows a picture gives, each a random crop of its own")
    seed: int = Field(0, ge=0, description="of the random crops")
    flip: bool = Field(False, description="each row is followed by one of its mirror image")
    batch_size: int = runtime(16, "pictures a VAE call encodes", ge=1)
    actors: int = runtime(1, "encoding actors", ge=1)
    gpus_per_actor: float = runtime(0.0, "GPUs each actor holds", ge=0)

    @property
    def sizes(self) -> tuple[Size, ...]:
        """Height and width in pixels of each bucket; one square where there are none."""
        return self.buckets or ((self.image_size, self.image_size),)

    @model_validator(mode="after")
    def _buckets_differ(self) -> Self:
        by_aspect: dict[Fraction, Size] = {}
        for height, width in self.buckets:
            other = by_aspect.setdefault(Fraction(width, height), (height, width))
            if other != (height, width) or self.buckets.count(other) > 1:
                raise ValueError(
                    f"latents.buckets: {list(other)} and {[height, width]} have the same aspect, and pictures go by "
                    "that alone; keep one of them"
                )
        return self

    @model_validator(mode="after")
    def _crops_differ(self) -> Self:
        if self.crops > 1 and self.crop == "centre":
            raise ValueError(
                f"latents.crops={self.crops} would give the same centre crop again; set latents.crop=random"
            )
        return self


class LoraConfig(Section):
    """Low-rank adapter on the UNet's attention layers (peft)."""

    rank: int = Field(8, ge=1)
    alpha: float = Field(8.0, gt=0)
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")


class VariationConfig(Section):
    """Step-wise variation regularization (paper eq. 9 and 10)."""

    weight: float = Field(1.0, ge=0, description="lambda of eq. 14; 0 switches the regularizer off")
    target_decay: float = Field(0.01, gt=0, le=1, description="a <- a + decay (mean norm - a)")
    target_knots: int = Field(
        1, ge=1, description="the target a is a line through so many points over the timesteps; 1 is the paper's"
    )
    estimator: Literal["one_sided_difference", "central_difference", "double_backward"] = "one_sided_difference"
    difference_step: float | None = Field(None, gt=0, description="RMS in the noise; None goes by train.precision")
    every: int = Field(
        1,
        ge=1,
        description="lazy: each k-th micro-step has weight k lambda; let k divide the micro-steps of a worker",
    )

    @model_validator(mode="after")
    def _target_is_stable(self) -> Self:
        if self.target_knots * self.target_decay > 1:
            raise ValueError(
                f"train.variation.target_knots={self.target_knots} x target_decay={self.target_decay} is above 1, and "
                "a knot would overshoot what it averages; lower one of them"
            )
        return self


class TrainConfig(Section):
    """Fine-tuning: Ray Train workers, DeepSpeed ZeRO, LoRA, AdamW."""

    steps: int = Field(30_000, ge=1, description="optimizer steps")
    global_batch_size: int = Field(96, ge=1, description="samples per optimizer step, over all workers")
    micro_batch_size: int = runtime(3, "samples a worker holds at once; the rest is accumulated", ge=1)
    workers: int = runtime(4, "training processes", ge=1)
    gpus_per_worker: float = runtime(0.0, "GPUs each worker holds", ge=0)
    min_workers: int | None = runtime(None, "go on with as few where nodes are lost, back up to workers later", ge=1)
    zero_stage: Annotated[int, Field(ge=0, le=3)] = runtime(2, "0 is plain DDP, 1 to 3 are DeepSpeed's ZeRO")
    offload_optimizer: bool = runtime(False, "optimizer and its float32 weights in CPU memory, with zero_stage >= 1")
    gradient_checkpointing: bool = runtime(False, "compute activations twice instead of keeping them")
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    method: Literal["lora", "full"] = Field("lora", description="what is trained of the UNet")
    optimizer: Literal["adamw", "adamw_8bit"] = Field("adamw", description="8-bit moments by bitsandbytes")
    learning_rate: float = Field(1e-4, gt=0)
    schedule: Literal["constant", "cosine"] = Field("constant", description="of the learning rate, after the warm-up")
    warmup_steps: int = Field(0, ge=0, description="optimizer steps of linear warm-up")
    ema_decay: float | None = Field(None, gt=0, lt=1, description="the result is this moving average of the weights")
    weight_decay: float = Field(1e-4, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float = Field(1.0, gt=0)
    caption_dropout: float = Field(0.0, ge=0, le=1)
    lora: LoraConfig = LoraConfig()
    variation: VariationConfig = VariationConfig()
    checkpoint_every: int = runtime(500, "optimizer steps between checkpoints", ge=1)
    async_checkpoints: bool = runtime(
        True, "train on while one is uploaded; false waits: an interruption costs one interval at most"
    )
    best_checkpoints: int = runtime(2, "checkpoints of the least mean loss that are kept", ge=0)
    last_checkpoints: int = runtime(2, "latest checkpoints that are kept beside the best", ge=1)
    validate_every: int = runtime(500, "optimizer steps between validation pictures", ge=1)
    log_samples: bool = runtime(False, "append each step's sample indices and rows to samples/rank-R.jsonl")
    peak_tflops: float | None = runtime(
        None, "a worker's device, dense, at train.precision; None knows some GPUs", gt=0
    )
    istd_every: int | None = runtime(None, "optimizer steps between estimates of ISTD; None is never", ge=1)
    istd_prompts: int = runtime(8, "prompts of an estimate: the evaluation's first, with their noises", ge=1)
    istd_gpus: float = runtime(0.0, "GPUs its actor holds beside the workers'", ge=0)
    max_failures: int = runtime(2, "worker failures survived before the stage fails", ge=0)
    max_skipped: int = runtime(5, "steps in a row left out for a loss or gradient that is not finite", ge=0)

    @property
    def accumulation(self) -> int:
        """Micro-steps per optimizer step of a worker."""
        return self.global_batch_size // (self.micro_batch_size * self.workers)

    @property
    def worker_counts(self) -> range:
        """How many workers may train at a time."""
        return range(self.min_workers or self.workers, self.workers + 1)

    def with_workers(self, workers: int) -> Self:
        """The same training on so many workers."""
        return self.model_copy(update={"workers": workers})

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        if not self.worker_counts:
            raise ValueError(f"train.min_workers={self.min_workers} is more than train.workers={self.workers}")
        for workers in self.worker_counts:
            per_micro_step = self.micro_batch_size * workers
            if self.global_batch_size % per_micro_step:
                raise ValueError(
                    f"train.global_batch_size={self.global_batch_size} is not a multiple of micro_batch_size x workers "
                    f"= {self.micro_batch_size} x {workers} = {per_micro_step}; change one of the three, or "
                    "min_workers where it is set"
                )
        return self

    @model_validator(mode="after")
    def _optimizer_fits_zero(self) -> Self:
        if self.offload_optimizer and not self.zero_stage:
            raise ValueError("train.offload_optimizer needs DeepSpeed; set train.zero_stage to 1, 2 or 3")
        if self.optimizer == "adamw_8bit" and self.zero_stage:
            raise ValueError(
                "train.optimizer=adamw_8bit needs whole weights: its blocks of 256 would run across them in ZeRO's "
                "flat shards, and no checkpoint could tell them apart; set train.zero_stage=0, or train.optimizer=adamw"
            )
        return self

    @model_validator(mode="after")
    def _estimator_fits_zero(self) -> Self:
        if self.zero_stage == 3 and self.variation.weight > 0:
            every = self.variation.every
            for accumulation in (self.with_workers(workers).accumulation for workers in self.worker_counts):
                if accumulation % every:
                    raise ValueError(
                        "train.zero_stage=3 needs all ranks to regularize the same micro-steps: "
                        f"train.variation.every={every} must divide a worker's {accumulation} accumulated micro-steps"
                    )
        if self.zero_stage == 3 and self.variation.weight > 0 and self.variation.estimator == "double_backward":
            raise ValueError(
                "train.zero_stage=3 can't run train.variation.estimator=double_backward: ZeRO-3 releases the weights "
                "that the second backward pass needs; set train.variation.estimator=one_sided_difference or "
                "central_difference, or train.zero_stage=2"
            )
        return self


class EvaluateConfig(Section):
    """What is measured, on which prompts and noises, base against fine-tuned."""

    prompts_file: str | None = Field(
        None, description="one prompt a line, or COCO's captions as JSON; None draws captions of the data set"
    )
    picture_prompts_file: str | None = Field(None, description="likewise for the single pictures; a random subset")
    reference: str | None = Field(None, description="folder of pictures to compare with; None: the ingested ones")
    prompts: int = Field(500, ge=1, description="prompts of ISTD, two noises each")
    until_ci: float | None = Field(
        None, gt=0, lt=1, description="stop when half of ISTD's 95 % interval is within this share of it, both models"
    )
    frames: int = Field(11, ge=3, description="pictures from noise to noise")
    pictures: int = Field(1000, ge=2, description="pictures of the Fréchet and kernel distances")
    reconstructions: int = Field(0, ge=0, description="real pictures that are inverted and painted again")
    path_lengths: int = Field(0, ge=0, description="paths of the perceptual path length (PPL), two pictures each")
    null_text_steps: int = Field(10, ge=1, description="of the optimizer, for each step of null-text inversion")
    inception_weights: str | None = Field(None, description="torch-fidelity's file, for FID; None: torch's hub cache")
    clip: str | None = Field(
        None, description="CLIP for CMMD and CLIP score, folder or hub id; None: the published one"
    )
    dinov2: str | None = Field(None, description="DINOv2 for FD-DINOv2, folder or hub id; None: the published one")
    steps: int = Field(50, ge=1, description="DDIM steps")
    guidance: float = Field(7.5, ge=0, description="classifier-free guidance scale")
    strips: int = Field(8, ge=1, description="interpolation strips drawn, base above smooth")
    batch_size: int = runtime(22, "pictures sampled at once", ge=1)
    reconstruction_batch: int = runtime(4, "pictures inverted at once; null-text inversion needs gradients", ge=1)
    actors: int = runtime(2, "sampling actors", ge=1)
    gpus_per_actor: float = runtime(0.0, "GPUs each actor holds", ge=0)

    def identity(self) -> dict[str, Any]:
        """Without paths it is what it was before there were any: what was measured then stays."""
        found = super().identity()
        if not self.path_lengths:
            del found["path_lengths"]
        return found


class RegisterConfig(Section):
    """Where the result goes in the MLflow registry."""

    name: str = "smooth-diffusion"
    alias: str = "candidate"
