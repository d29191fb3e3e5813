"""The command line. Heavy libraries are imported by the commands that use them, so that help comes at once."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from smooth.data.cli import ingest_app, latents_app
from smooth.doctor.cli import doctor
from smooth.edit import cli as edit_commands
from smooth.edit import cli_edit, cli_interpolate
from smooth.export.cli import export
from smooth.options import ConfigOption, OverrideOption, PresetOption
from smooth.pretrain.cli import pretrain
from smooth.promotion.cli import registry_app
from smooth.serve.cli import serve
from smooth.studio.cli import studio

if TYPE_CHECKING:
    from smooth.config import RunConfig

FAILURE, USER_ERROR, INCOMPLETE = 1, 2, 3

app = typer.Typer(
    help="Make the latent space of a text-to-image diffusion model smooth, and measure it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(help="Look at run configs.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(ingest_app, name="ingest")
app.add_typer(latents_app, name="latents")
app.command("doctor")(doctor)
app.add_typer(registry_app, name="registry")
app.command("pretrain")(pretrain)
app.command("export")(export)
app.command("studio")(studio)
app.command("serve")(serve)
edit_commands.register(app)
app.command("interpolate")(cli_interpolate.interpolate)
cli_edit.register(app)


@contextmanager
def reported() -> Iterator[None]:
    """End the command with one clear line: exit code 2 for what the user can cure, 1 for the rest.

    A ValueError that our own code raised says what to change, so its traceback is left out.
    """
    try:
        yield
    except typer.Exit:
        raise
    except Exception as error:  # noqa: BLE001 - the program's outermost boundary; nothing is hidden
        if is_ours(error):
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(USER_ERROR) from None
        traceback.print_exception(error)
        print(f"error: {type(error).__name__}: {str(error).strip() or 'no message'}", file=sys.stderr)
        raise typer.Exit(FAILURE) from None


def is_ours(error: Exception) -> bool:
    """Whether ``error`` is a ValueError raised by a line of this package."""
    if not isinstance(error, ValueError) or error.__traceback__ is None:
        return False
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] == "smooth"


def load_config(preset: str, overrides: list[str] | None, path: str | None = None) -> RunConfig:
    """The config of the command line: a saved one at ``path``, else a preset with overrides."""
    import yaml

    from smooth import store
    from smooth.config import ConfigError, RunConfig

    if path is None:
        return RunConfig.load(preset, overrides or [])
    if overrides:
        raise ConfigError("--config is a resolved config and takes no --override; use --preset PATH -o key=value")
    if not store.exists(path):
        raise ConfigError(f"--config {path}: no such file")
    return RunConfig.parse(yaml.safe_load(store.read_bytes(path)))


@config_app.command("show")
def config_show(preset: PresetOption = "tiny", override: OverrideOption = None) -> None:
    """Print the resolved config as YAML.

    For example:

        smooth config show --preset sd15-laion -o train.steps=100
    """
    with reported():
        print(load_config(preset, override).to_yaml(), end="")


@app.command("stage")
def stage_command(
    name: Annotated[str, typer.Argument(help="ingest, latents, train, evaluate or register.")],
    config: ConfigOption = None,
    preset: PresetOption = "tiny",
    override: OverrideOption = None,
) -> None:
    """Run one stage here, in this process. Its inputs must be finished already.

    For example:

        smooth stage ingest -o ingest.demo_web.pictures=100
    """
    from smooth import stages
    from smooth.config import STAGES, ConfigError

    with reported():
        stage = next((known for known in STAGES if known == name), None)
        if stage is None:
            raise ConfigError(f"unknown stage {name!r}; there are: {', '.join(STAGES)}")
        run_config = load_config(preset, override, config)
        manifest = stages.run(stage, run_config)
        print(f"{stage} {manifest['fingerprint']} finished in {manifest['seconds']:.1f} s")
        for key, value in manifest["summary"].items():
            print(f"  {key}: {value}")


@app.command("stages")
def stages_command(preset: PresetOption = "tiny", override: OverrideOption = None) -> None:
    """Show each stage's fingerprint and whether its artifact is there: what a run would reuse.

    For example:

        smooth stages --preset tiny -o train.steps=100
    """
    from smooth import stages
    from smooth.config import STAGES

    with reported():
        config = load_config(preset, override)
        for stage in STAGES:
            folder = config.stage_dir(stage)
            print(f"{stage:<9} {config.fingerprint(stage)}  {stages.status(stage, config):<8}  {folder}")


@app.command("evaluate")
def evaluate_command(
    model: Annotated[
        str, typer.Option(help="Pipeline (folder or hub id), LoRA (file or folder), or models:/NAME@ALIAS.")
    ],
    against: Annotated[
        str | None, typer.Option(help="What to compare with, likewise; else the model's own base.")
    ] = None,
    until_ci: Annotated[
        float | None, typer.Option(help="Stop when half of ISTD's interval is within this share of it: 0.05.")
    ] = None,
    config: ConfigOption = None,
    preset: PresetOption = "tiny",
    override: OverrideOption = None,
) -> None:
    """Measure any model against another, on a preset's finished data. Exit status 3: some metric is unavailable.

    Once a training is registered, for example:

        smooth evaluate --model models:/smooth-diffusion@candidate --until-ci 0.05
    """
    from rich.console import Console

    from smooth.evaluate import run, subjects, table

    with reported():
        overrides = [*(override or []), *([] if until_ci is None else [f"evaluate.until_ci={until_ci}"])]
        run_config = load_config(preset, overrides, config)
        scratch = f"{run_config.storage.root}/models"
        judged = subjects.find(model, run_config.model, scratch)
        other = subjects.base_of(judged) if against is None else subjects.find(against, run_config.model, scratch)
        folder, manifest = run.compare(run_config, judged, other, (model, against or other.base))
        table.show(manifest["metrics"], Console(width=None if sys.stdout.isatty() else 120))
        print(f"smooth is {model}, base is {against or other.base}")
        print(f"report {folder}/{manifest['report']}, MLflow run {manifest['run_id']}")
        if table.unavailable(manifest["metrics"]):
            raise typer.Exit(INCOMPLETE)


@app.command("plan")
def plan_command(
    preset: PresetOption = "tiny",
    override: OverrideOption = None,
    memory_gib: Annotated[
        float | None, typer.Option(min=0, help="Of one worker's device; else the GPU's here.")
    ] = None,
    samples_per_second: Annotated[
        float | None, typer.Option(min=1e-9, help="Of the whole job; else of a finished training like it.")
    ] = None,
    dollars_per_hour: Annotated[float | None, typer.Option(min=0, help="Of one worker.")] = None,
) -> None:
    """Tell what a training needs: parameters, memory by part, batches, hours, cost. Refuse what can't fit.

    For example:

        smooth plan --preset tiny --memory-gib 16 --samples-per-second 2
    """
    from smooth.plan import estimate, report

    with reported():
        plan = estimate.plan(
            load_config(preset, override),
            memory_gib=memory_gib,
            samples_per_second=samples_per_second,
            dollars_per_hour=dollars_per_hour,
        )
        print("\n".join(report.lines(plan)))
        plan.check_fits()
