"""Options that commands share which run a preset."""

from __future__ import annotations

from typing import Annotated

import typer

PresetOption = Annotated[str, typer.Option("--preset", help="A preset's name, or the path of a .yaml file.")]
OverrideOption = Annotated[
    list[str] | None, typer.Option("--override", "-o", help="dotted.key=value, for example train.steps=100.")
]
ConfigOption = Annotated[str | None, typer.Option("--config", help="A resolved config on any fsspec path.")]
