"""PNGs of the page, with the parameters and the command that the command line would have put into them."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from smooth.edit.media import Picture
    from smooth.edit.model import EditModel


def png(command: str, edited: EditModel, picture: Picture, /, **values: Any) -> bytes:
    """The PNG that ``smooth COMMAND`` writes when its parameters have these values, and its defaults else.

    Args:
        command: of the edit room.
        edited: the model.
        picture: (H, W, 3) uint8.
        **values: of the command's other parameters; ``found`` is what it tells beside them.
    """
    import typer

    from smooth import __version__
    from smooth.cli import app
    from smooth.edit import media
    from smooth.edit.options import command_of

    commands: Any = typer.main.get_command(app)
    context = typer.Context(commands.commands[command], info_name=command)
    defaults = {str(each.name): each.get_default(context) for each in context.command.params}
    values["model"] = edited.name
    known = {"smooth": __version__, "command": command, "identity": edited.identity, **defaults, **values}
    return media.png(picture, known, command_of(context, defaults | values))


def plain(picture: Picture) -> bytes:
    """The PNG of a picture that no command gives alone."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()
