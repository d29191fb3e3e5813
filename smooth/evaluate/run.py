"""The evaluate stage: base against fine-tuned on the same prompts and noises. Any two models likewise."""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace
from typing import Any

from smooth import store, tracking
from smooth.config import STAGE_VERSIONS, ConfigError, RunConfig
from smooth.evaluate import istd, networks, page, report
from smooth.evaluate.compare import metric_key, metrics_of, summary_of
from smooth.evaluate.measure import Comparison, Found, evaluations, measure
from smooth.evaluate.metric import Metric
from smooth.evaluate.protocol import Protocol
from smooth.evaluate.subjects import Subject

STRIPS, CURVES, HISTOGRAM, RECONSTRUCTIONS = "strips.png", "curves.png", "histogram.png", "reconstructions.png"
REPORT = "report.html"


def run(config: RunConfig) -> dict[str, Any]:
    """Measure both models, draw the strips and curves, log all of it to the model's MLflow run.

    Finished blocks of pictures are kept on the way, so a retry continues; a model's are shared by all evaluations
    under the same protocol. A finished evaluation that can tell more, since a network has come to hand, is measured
    again from what was kept.

    Raises:
        store.ArtifactError: the training or what it was made from is not finished.
        ConfigError: weights of a feature network are named and not there, or not what they should be.
        ValueError: the tracking server has not the training's run.
    """
    folder = config.stage_dir("evaluate")
    if (finished := _finished(folder, config)) is not None:
        return finished
    started = time.monotonic()
    training = store.read_manifest(config.stage_dir("train"))
    base = Subject(config.model.base, config.model.revision)
    comparison = _comparison(config, replace(base, trained=config.stage_dir("train")), base)
    names = (f"{config.model.base}, trained by {config.preset}", config.model.base)
    with tracking.resume_run(training["run_id"]) as tracked:  # first, since a run that is gone costs no picture then
        found = measure(comparison)
        metrics = _present(folder, config, found, names, started)
        tracked.set_tags(tracking.fingerprint_tags(config, ("evaluate",)))
        _log(tracked, folder, metrics, _pictures(found))
    about = {
        "stage": "evaluate",
        "fingerprint": config.fingerprint("evaluate"),
        "run_id": training["run_id"],
        "ingest": training["ingest"],
    }
    return _finish(folder, about, found, metrics, started)


def compare(config: RunConfig, model: Subject, against: Subject, names: tuple[str, str]) -> tuple[str, dict[str, Any]]:
    """Measure any two models by a preset's protocol, on the prompts and reference pictures of its finished data.

    What comes of it lies beside the stage's, in a folder named by both models' content and the protocol, and in an
    MLflow run of its own. ``names`` are what a person calls the two. Returns that folder and its manifest.

    Raises:
        store.ArtifactError: the preset's ingest or latents are not finished.
        ConfigError: the two are one model, or weights of a feature network are not what they should be.
    """
    started = time.monotonic()
    if model.identity == against.identity:
        raise ConfigError(f"{names[0]} and {names[1]} are the same model, to the byte; name another by --against")
    comparison = _comparison(config, model, against)
    parts = [str(STAGE_VERSIONS["evaluate"]), comparison.protocol.fingerprint, model.identity, against.identity]
    parts += [str(config.evaluate.until_ci), *_named(config, comparison.protocol)]
    parts += [f"{paths} paths"] if (paths := config.evaluate.path_lengths) else []
    fingerprint = hashlib.sha256("/".join(parts).encode()).hexdigest()[:16]
    folder = store.join(evaluations(config), f"models-{fingerprint}")
    if (finished := _finished(folder, config)) is not None:
        return folder, finished
    found = measure(comparison)
    metrics = _present(folder, config, found, names, started)
    tags = {"smooth.model": names[0], "smooth.against": names[1], "smooth.preset": config.preset}
    with tracking.start_evaluation(config, f"{names[0]} against {names[1]}", tags) as tracked:
        _log(tracked, folder, metrics, _pictures(found))
    about = {"stage": "evaluate", "fingerprint": fingerprint, "run_id": tracked.run_id, "models": names}
    return folder, _finish(folder, about, found, metrics, started)


def _finished(folder: str, config: RunConfig) -> dict[str, Any] | None:
    """The manifest of an evaluation that can tell no more than it did."""
    if not store.is_complete(folder):
        return None
    manifest = store.read_manifest(folder)
    return None if networks.is_outdone(config.evaluate, manifest) else manifest


def _named(config: RunConfig, protocol: Protocol) -> list[str]:
    """Identities of the networks that the config names; the others are those that there happen to be."""
    keys = {network.identity: networks.KEYS.get(network.kind) for network in protocol.networks}
    return [identity for identity, key in keys.items() if key is not None and getattr(config.evaluate, key) is not None]


def _comparison(config: RunConfig, model: Subject, against: Subject) -> Comparison:
    at_hand = networks.find(config.evaluate, config.latents.image_size)
    protocol = replace(Protocol.of(config), base=against.identity, networks=at_hand)
    return Comparison(config, protocol, {"base": against, "smooth": model})


def _present(folder: str, config: RunConfig, found: Found, names: tuple[str, str], started: float) -> list[Metric]:
    """Write the metrics, draw the pictures, and make the report of both."""
    reconstructed = found.reconstructed
    metrics = metrics_of(found.protocol, found.base, found.smooth, found.reference, reconstructed, found.network)
    values = [metric.as_dict() for metric in metrics]
    store.write_json(store.join(folder, "metrics.json"), values)
    report.draw_strips(store.join(folder, STRIPS), found.protocol.prompts, found.base.strips, found.smooth.strips)
    report.draw_curves(store.join(folder, CURVES), found.base.distances, found.smooth.distances)
    report.draw_histogram(store.join(folder, HISTOGRAM), found.base.distances, found.smooth.distances)
    if reconstructed is not None:
        report.draw_reconstructions(store.join(folder, RECONSTRUCTIONS), reconstructed)
    pictures = {name: store.read_bytes(store.join(folder, name)) for name in _pictures(found)}
    evaluate = config.evaluate
    cost = page.Cost(time.monotonic() - started, found.sampled, evaluate.actors * evaluate.gpus_per_actor)
    shown = (tracking.redact(names[0]), tracking.redact(names[1]))
    html = page.render(shown, values, pictures, cost, time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()))
    store.write_bytes(store.join(folder, REPORT), html.encode())
    return metrics


def _pictures(found: Found) -> list[str]:
    """In the order in which they are shown."""
    return [STRIPS, CURVES, HISTOGRAM, *([] if found.real is None else [RECONSTRUCTIONS])]


def _log(tracked: tracking.Run, folder: str, metrics: list[Metric], pictures: list[str]) -> None:
    tracked.log_metrics({metric_key(metric): metric.value for metric in metrics if metric.value is not None})
    for name in ("metrics.json", REPORT):
        tracked.log_artifact(store.join(folder, name), "evaluate")
    for picture in pictures:
        tracked.log_picture(store.join(folder, picture), "evaluate")


def _finish(folder: str, about: dict[str, Any], found: Found, metrics: list[Metric], started: float) -> dict[str, Any]:
    """Write the manifest. It keeps each prompt's ISTD: two models' pair where the stamps agree, whenever measured."""
    return store.write_manifest(
        folder,
        about
        | {
            "seconds": time.monotonic() - started,
            "summary": summary_of(metrics, found.base.distances, found.smooth.distances, found.protocol.seed),
            "pictures": _pictures(found),
            "report": REPORT,
            "metrics": [metric.as_dict() for metric in metrics],
            "protocol": found.protocol.fingerprint,
            "networks": found.networks,
            networks.PER_PROMPT: {
                name: istd.deviation(measured.distances).tolist()
                for name, measured in (("base", found.base), ("smooth", found.smooth))
            },
        },
    )
