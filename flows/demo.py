"""``python -m flows.demo``: run the deployment, follow it stage by stage, show what came out."""

from __future__ import annotations

import asyncio
import base64
import sys
import time
from typing import Annotated, Any, NoReturn

import typer
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, Log
from prefect.deployments import arun_deployment
from prefect.events import Event
from prefect.events.subscribers import FlowRunSubscriber
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_CLIENT_CUSTOM_HEADERS,
    temporary_settings,
)
from prefect.settings.legacy import Setting
from rich.console import Console

from smooth import settings, store
from smooth.config import STAGES, ConfigError, RunConfig
from smooth.evaluate import table

DEPLOYMENT = "smooth-train/full"
QUIET_SECONDS = 15.0
"""Least time between two progress lines where the output is not a terminal."""


class Screen:
    """One line per stage; what happens meanwhile is a status line on a terminal, a rare line elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._begun: dict[str, float] = {}
        self._status = console.status("waiting for the worker")
        self._told_at = time.monotonic()

    def __enter__(self) -> Screen:
        if self._console.is_terminal:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def show(self, item: Event | Log) -> None:
        """Take one item of the flow run's stream."""
        if isinstance(item, Log):
            stage, colon, _ = item.message.partition(":")
            if colon and stage in STAGES:
                self._progress(item.message)
            return
        kind, _, change = item.event.rpartition(".")
        stage = (item.resource.get("prefect.resource.name") or "").partition(" ")[0]
        if kind == "prefect.task-run" and stage in STAGES:
            self._change(stage, change, item)

    def _progress(self, text: str) -> None:
        if self._console.is_terminal:
            self._status.update(text)
        elif time.monotonic() - self._told_at >= QUIET_SECONDS:
            self._told_at = time.monotonic()
            self._console.print(f"    {text}", highlight=False, soft_wrap=True)

    def _change(self, stage: str, change: str, event: Event) -> None:
        now = event.occurred.timestamp()
        if change == "Running":
            self._begun.setdefault(stage, now)
            self._status.update(stage)
        elif change == "Cached":
            self._line(stage, "reused")
        elif change == "Completed":
            self._line(stage, f"{now - self._begun.get(stage, now):.1f} s")
        elif change in ("AwaitingRetry", "Failed", "Crashed", "Cancelled"):
            self._line(stage, {"AwaitingRetry": "failed, will be tried again"}.get(change, change.lower()))

    def _line(self, stage: str, text: str) -> None:
        self._told_at = time.monotonic()
        self._console.print(f"  {STAGES.index(stage) + 1}/{len(STAGES)} {stage:<9} {text}", highlight=False)


async def run(preset: str, overrides: list[str], console: Console) -> FlowRun:
    """Start the deployment, follow it to its end and return the finished flow run."""
    parameters = {"preset": preset, "overrides": overrides}
    started = await arun_deployment(DEPLOYMENT, parameters=parameters, timeout=0, as_subflow=False)
    ui = PREFECT_API_URL.value().removesuffix("/api")
    console.print(f"{DEPLOYMENT}, preset {preset}: {ui}/runs/flow-run/{started.id}", highlight=False, soft_wrap=True)
    with Screen(console) as screen:
        async with FlowRunSubscriber(started.id) as stream:
            async for item in stream:
                screen.show(item)
    async with get_client() as client:
        return await client.read_flow_run(started.id)


def show_results(config: RunConfig, console: Console) -> None:
    """Print base against fine-tuned, the registered version and where to look."""
    evaluated = store.read_manifest(config.stage_dir("evaluate"))
    table.show(evaluated["metrics"], console)
    version = store.read_manifest(config.stage_dir("register"))
    trained = store.read_manifest(config.stage_dir("train"))
    mlflow = settings.Services.load().mlflow_uri
    lines = [f"registered {version['name']} version {version['version']}, alias {version['alias']}"]
    if mlflow:
        lines += [f"  version  {mlflow}/#/models/{version['name']}/versions/{version['version']}"]
        lines += [f"  run      {mlflow}/#/runs/{trained['run_id']}"]
    lines.append(f"  report   {store.join(config.stage_dir('evaluate'), evaluated['report'])}")
    lines += [f"  picture  {store.join(config.stage_dir('evaluate'), name)}" for name in evaluated["pictures"]]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def main(
    preset: Annotated[str, typer.Option(help="Name of a preset, or path of a .yaml file.")] = "tiny",
    override: Annotated[list[str] | None, typer.Option("--override", "-o", help="dotted.key=value")] = None,
) -> None:
    """Run the whole chain on the local cluster and show what it made."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    begin = time.monotonic()
    overrides = override or []
    api = settings.state().get("prefect_api")
    if api is None:
        _fail("no local cluster is up: run `make cluster-up`")
    login = settings.credentials().get("SMOOTH_PREFECT_AUTH")
    try:
        config = RunConfig.load(preset, overrides)
    except ConfigError as error:
        _fail(str(error))
    try:
        with temporary_settings({PREFECT_API_URL: api, **_logged_in(login)}):
            flow_run = asyncio.run(run(preset, overrides, console))
    except KeyboardInterrupt:
        _fail("stopped watching; the flow run goes on (its page above has the button that cancels it)")
    if flow_run.state is None or not flow_run.state.is_completed():
        _fail(flow_run.state.message or "no message" if flow_run.state else "the flow run has no state")
    show_results(config, console)
    console.print(f"{time.monotonic() - begin:.0f} s in all", highlight=False)


def _logged_in(login: str | None) -> dict[Setting, Any]:
    """Settings for an open cluster; the streams of events and logs have no login of their own as they begin."""
    if login is None:
        return {}
    sent = base64.b64encode(login.encode()).decode()
    return {PREFECT_API_AUTH_STRING: login, PREFECT_CLIENT_CUSTOM_HEADERS: {"Authorization": f"Basic {sent}"}}


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    raise typer.Exit(1)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
