"""Disk, memory, shared memory, GPUs and open files of this machine."""

from __future__ import annotations

import resource
import shutil
import subprocess
import tempfile
from importlib import metadata
from pathlib import Path

import psutil

from smooth.config import RunConfig
from smooth.doctor.finding import GIB, Finding, error, ok, warning
from smooth.settings import home

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where Ray keeps objects
CGROUP = Path("/sys/fs/cgroup/memory.max")
RAY_FULL = 0.95  # of a disk, above which Ray writes no object to it
RAY_OBJECTS = 0.3  # of the memory, which Ray takes for objects
SERVICES_BYTES = 3 * GIB  # Ray's head, MLflow, Prefect and its worker, at rest
PROCESS_BYTES = 3 * GIB // 2  # torch, diffusers and Ray, without weights
RESERVE_BYTES = GIB  # databases, logs
DRAWINGS = 3953  # of the built-in web
TEXT_BYTES = 77 * 768 * 2  # SD 1.5's embedding of a caption
MODELS, WAYS = 2, 3  # that an evaluation samples, and of each reconstruction; all pictures are kept uncompressed
MOMENTS = 4  # weights, average and two moments of Adam, in fp32
UNET_BYTES = 860_000_000 * 4  # SD 1.5's, where the base isn't at hand
PIXEL_BYTES = {"png": 3.0, "jpg": 1.0}  # at most
DRIVERS = {12: 525, 13: 580}  # oldest of NVIDIA's that runs programs of a CUDA version
OPEN_FILES = 8192  # what Ray recommends
FEWEST_FILES = 1024


def disk(config: RunConfig) -> list[Finding]:
    """Room for a run's artifacts, and for what Ray writes to the temporary folder."""
    root = config.storage.root
    needs = {home(): RESERVE_BYTES}
    if "://" not in root:
        artifacts = Path(root).absolute()
        if _existing(artifacts).stat().st_dev == _existing(home()).stat().st_dev:
            needs = {artifacts: disk_bytes(config)}
        else:
            needs[artifacts] = disk_bytes(config)
    found = [_room(folder, needed) for folder, needed in needs.items()]
    temporary = Path(tempfile.gettempdir())
    used = shutil.disk_usage(temporary)
    share = 1 - used.free / used.total
    if share > RAY_FULL:
        mend = f"make room in {temporary}: Ray stores no object on a disk that is over {RAY_FULL:.0%} full"
        return [*found, error("temporary", f"{temporary} is {share:.0%} full", mend)]
    return [*found, ok("temporary", f"{temporary} is {share:.0%} full")]


def _room(folder: Path, needed: int) -> Finding:
    place = _existing(folder)
    free = shutil.disk_usage(place).free
    text = f"{free / GIB:.1f} GiB free at {folder}, up to {needed / GIB:.1f} are needed"
    mend = f"make room in {place}, or set storage.root to another disk (and SMOOTH_HOME for databases)"
    if free < needed:
        return error("disk", text, mend)
    return ok("disk", text) if free >= 2 * needed else warning("disk", text, mend)


def _existing(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that is there."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def disk_bytes(config: RunConfig) -> int:
    """Bytes that a run writes, from above; of a list whose length nobody knows here, the shards under way."""
    ingest, latents, evaluate = config.ingest, config.latents, config.evaluate
    rows = ingest.shard_size * ingest.processes
    if ingest.demo_web is not None:
        rows = ingest.demo_web.pictures or DRAWINGS
    pictures = rows * ingest.image_size**2 * PIXEL_BYTES[ingest.encode_format]
    encoded = rows * latents.crops * latents.image_size**2 + rows * TEXT_BYTES
    kept = evaluate.pictures + evaluate.prompts * evaluate.frames + WAYS * evaluate.reconstructions
    sampled = MODELS * kept * latents.image_size**2 * PIXEL_BYTES["png"]
    return int(pictures + encoded + sampled + _checkpoints(config) + RESERVE_BYTES)


def _checkpoints(config: RunConfig) -> int:
    """Bytes of all that is trained, as often as it is kept; an adapter's are within the reserve."""
    if config.train.method != "full":
        return 0
    return MOMENTS * UNET_BYTES * (config.train.best_checkpoints + config.train.last_checkpoints + 1)


def memory(config: RunConfig) -> Finding:
    """What is free against what the services and a stage's processes take."""
    available, total = psutil.virtual_memory().available, psutil.virtual_memory().total
    limit = CGROUP.read_text().strip() if CGROUP.is_file() else "max"
    if limit.isdecimal() and int(limit) < total:
        total, available = int(limit), min(available, int(limit) - int(CGROUP.with_name("memory.current").read_text()))
    processes = max(config.train.workers, config.evaluate.actors, config.latents.actors)
    needed = SERVICES_BYTES + processes * PROCESS_BYTES
    text = f"{available / GIB:.1f} of {total / GIB:.1f} GiB free, the services and {processes} processes take "
    text += f"some {needed / GIB:.1f} without weights"
    mend = "stop other programs, or take fewer: train.workers, evaluate.actors, latents.actors (Ray kills at 95 %)"
    if available < needed / 2:
        return error("memory", text, mend)
    return ok("memory", text) if available >= needed else warning("memory", text, mend)


def shared_memory(folder: Path = SHARED_MEMORY) -> Finding:
    """Where Ray keeps objects that processes share; a container has 64 MiB of it unless told."""
    if not folder.is_dir():
        return warning("shared memory", f"no {folder}", "Ray keeps objects in files instead, which is slow")
    free = shutil.disk_usage(folder).free
    wanted = int(RAY_OBJECTS * psutil.virtual_memory().total)
    text = f"{free / GIB:.1f} GiB free at {folder}"
    if free < min(wanted, GIB):
        mend = "delete files in it, or give the container more: docker run --shm-size=4gb"
        return warning("shared memory", f"{text}: Ray takes files instead, which is slow", mend)
    return ok("shared memory", text)


def open_files() -> Finding:
    """How many files a process may open: Ray's workers hold many sockets, and raise the soft limit to the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = f"{soft} a process, at most {'any' if hard == resource.RLIM_INFINITY else hard}"
    mend = f"ulimit -n {OPEN_FILES}; for good: nofile in /etc/security/limits.conf, LimitNOFILE= of a unit"
    if soft < FEWEST_FILES:
        return error("open files", text, mend)
    if hard != resource.RLIM_INFINITY and hard < OPEN_FILES:
        return warning("open files", text, mend)
    return ok("open files", text)


def gpus(config: RunConfig) -> list[Finding]:
    """GPUs with driver and memory, against what the preset asks for; none is well where it asks for none."""
    asked = {
        "train.gpus_per_worker": config.train.workers * config.train.gpus_per_worker,
        "latents.gpus_per_actor": config.latents.actors * config.latents.gpus_per_actor,
        "evaluate.gpus_per_actor": config.evaluate.actors * config.evaluate.gpus_per_actor,
    }
    most = max(asked, key=lambda key: asked[key])
    wants = f"preset {config.preset} asks for {asked[most]:g}"
    here = "they must be the Ray cluster's then"
    found, failure = _nvidia_smi()
    if failure:
        return [error("gpu", failure, "install NVIDIA's driver anew; `nvidia-smi` must list the GPUs")]
    if len(found) < asked[most]:
        mend = f"start on a cluster that has them (infra/README.md), or set {most} and train.workers"
        return [warning("gpu", f"{len(found) or 'none'} on this machine, {wants}: {here}", mend)]
    if not found:
        return [ok("gpu", f"none on this machine, and {wants}")]
    return [_gpu(line) for line in found]


def _gpu(line: str) -> Finding:
    name, driver, total, used = (part.strip() for part in line.split(","))
    text = f"{name}, driver {driver}, {int(total) / 1024:.0f} GiB, {int(used) / 1024:.0f} in use"
    cuda = _cuda_of_torch()
    oldest = DRIVERS.get(cuda)
    if oldest is not None and int(driver.partition(".")[0]) < oldest:
        return error("gpu", f"{text}; torch's CUDA {cuda} needs driver {oldest}", f"install driver {oldest} or newer")
    return ok("gpu", text)


def _nvidia_smi() -> tuple[list[str], str]:
    """A line a GPU, or why there is none although there is a driver."""
    if shutil.which("nvidia-smi") is None:
        return [], ""
    query = "--query-gpu=name,driver_version,memory.total,memory.used"
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return [], "nvidia-smi does not answer: a GPU hangs"
    if result.returncode:
        return [], " ".join((result.stdout + result.stderr).split())[:200]
    return [line for line in result.stdout.splitlines() if line.strip()], ""


def _cuda_of_torch() -> int:
    """Major version of the CUDA that torch came with; 0 where it came with none."""
    try:
        return int(metadata.version("nvidia-cuda-runtime").partition(".")[0])
    except metadata.PackageNotFoundError:
        return 0
