"""The commands `smooth ingest` and `smooth latents`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from smooth.options import ConfigOption, OverrideOption, PresetOption

if TYPE_CHECKING:
    from smooth.data.verify import Found

ingest_app = typer.Typer(invoke_without_command=True)
latents_app = typer.Typer(help="Check and mend cached latents.", no_args_is_help=True)


@ingest_app.callback()
def ingest_command(
    context: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count, by rule, what would be fetched.")] = False,
    config: ConfigOption = None,
    preset: PresetOption = "tiny",
    override: OverrideOption = None,
) -> None:
    """Fetch the pictures of the URL list, or say what would be fetched and refused, without a packet.

    For example:

        smooth ingest --dry-run --preset tiny
    """
    if context.invoked_subcommand is not None:
        return
    from smooth.cli import load_config, reported, stage_command

    if not dry_run:
        stage_command("ingest", config, preset, override)
        return
    import tempfile

    from smooth.data import selection

    with reported(), tempfile.TemporaryDirectory() as folder:
        found = selection.dry_run(load_config(preset, override, config).ingest, folder)
        print(f"{found.rows:>12,} rows listed")
        for rule, count in found.refused.items():
            print(f"{count:>12,} refused by ingest.{rule}")
        print(f"{found.allowed:>12,} would be fetched")


@ingest_app.command("retry")
def ingest_retry(config: ConfigOption = None, preset: PresetOption = "tiny", override: OverrideOption = None) -> None:
    """Ask once more for what a finished ingest did not get for a cause that may have passed.

    Once `smooth ingest` has finished, for example:

        smooth ingest retry --preset tiny
    """
    from smooth.cli import load_config, reported
    from smooth.data import retry

    with reported():
        found = retry.retry(load_config(preset, override, config))
        print(f"{found.asked:>12,} rows asked for again")
        print(f"{found.won:>12,} pictures won, {found.manifest['kept']:,} in all")


@latents_app.command("verify")
def latents_verify(config: ConfigOption = None, preset: PresetOption = "tiny", override: OverrideOption = None) -> None:
    """Check every byte of the cached latents, and draw a sheet of what they decode to.

    Once the stage latents has finished, for example:

        smooth latents verify --preset tiny
    """
    from smooth.cli import FAILURE, load_config, reported
    from smooth.data import contact_sheet, verify

    with reported():
        run_config = load_config(preset, override, config)
        found = verify.verify(run_config.stage_dir("latents"))
        _print_faults(found)
        if found.faults:
            raise typer.Exit(FAILURE)
        path, difference = contact_sheet.write(run_config)
        print(f"{found.parts} parts with {found.rows} rows are sound")
        compared = "" if difference is None else f", mean difference from the sources {difference:.1f} of 255"
        print(f"decoded rows: {path}{compared}")


@latents_app.command("repair")
def latents_repair(config: ConfigOption = None, preset: PresetOption = "tiny", override: OverrideOption = None) -> None:
    """Encode anew what `verify` finds broken, and leave the rest as it is.

    Once the stage latents has finished, for example:

        smooth latents repair --preset tiny
    """
    from smooth.cli import load_config, reported
    from smooth.data import verify

    with reported():
        found, manifest = verify.repair(load_config(preset, override, config))
        _print_faults(found)
        broken = len({fault.part for fault in found.faults if fault.part is not None})
        print(f"{broken} of {found.parts} parts were encoded anew; {manifest['rows']} rows")


def _print_faults(found: Found) -> None:
    for fault in found.faults:
        print(f"fault: {fault.text}", file=sys.stderr)
