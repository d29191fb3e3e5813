"""Parts that several tabs are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import gradio as gr

from smooth.cli import is_ours
from smooth.edit import GUIDANCE, STEPS
from smooth.studio.desk import Desk, picture_of, told

ENDINGS = [".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"]
PREVIEW = 512  # pixels
QUEUE = {"concurrency_id": "network", "concurrency_limit": 1, "api_visibility": "private"}
AT_ONCE = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
SAID = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}  # warnings come by the queue
BAR = gr.Progress()


@contextmanager
def tab(title: str, explained: str) -> Iterator[None]:
    """A tab that says what it is for, above a row of fields and results."""
    with gr.Tab(title, id=title.lower()):
        gr.Markdown(explained)
        with gr.Row():
            yield


def field(label: str, name: str) -> Any:
    """A field for a picture of the person's own.

    gradio's also fetches, into the server, whatever address a request names in the place of an uploaded file.
    """
    file = gr.File(label=label, file_types=ENDINGS, height=140, elem_id=f"{name}-upload")
    move = file.async_move_resource_to_block_cache

    async def own(path: Any) -> str | None:
        if path is not None and "://" in str(path):
            raise gr.Error("Upload a file, not an address.", print_exception=False)
        found: str | None = await move(path)
        return found

    file.async_move_resource_to_block_cache = own
    return file


def upload(label: str, name: str) -> tuple[Any, Any]:
    """A field for a picture, and below it what the model will see: the square in its middle."""
    with gr.Column(min_width=150):
        file = field(label, name)
        shown = gr.Image(
            label="As the model sees it", interactive=False, buttons=[], height=220, format="png",
            elem_id=f"{name}-seen", visible=False,
        )  # fmt: skip
    return file, shown


def previewed(path: str | None) -> tuple[Any, Any]:
    """Updates of field and preview; a bad picture leaves both empty, with a message."""
    if not path:
        return gr.skip(), gr.Image(value=None, visible=False)
    try:
        return gr.skip(), gr.Image(value=picture_of(path, PREVIEW), visible=True)
    except ValueError as error:
        if not is_ours(error):
            raise
        gr.Warning(told(error).message, title="Not this picture")
        return gr.File(value=None), gr.Image(value=None, visible=False)


def show_uploads(file: Any, shown: Any) -> None:
    """Show what was uploaded."""
    for happens in (file.upload, file.clear):
        happens(previewed, file, [file, shown], **SAID)


def sampling(name: str, null_text: bool = False, guided: bool = True) -> list[Any]:
    """Fields of the settings that most people leave as they are: steps, guidance, null-text steps."""
    with gr.Accordion("More settings", open=False):
        fields = [gr.Slider(1, 100, STEPS, step=1, label="Steps", info="More is slower", elem_id=f"{name}-steps")]
        if guided:
            fields += [
                gr.Slider(
                    1, 15, GUIDANCE, step=0.5, label="Guidance", info="How closely to follow the prompt; 1 is none"
                )
            ]
        if null_text:
            fields += [
                gr.Slider(
                    0, 50, 10, step=1, label="Null-text steps",
                    info="More is slower and truer; 0 is DDIM inversion alone",
                    elem_id=f"{name}-null-text",
                )
            ]  # fmt: skip
    return fields


def buttons(label: str) -> tuple[Any, Any]:
    """To run and to call off."""
    with gr.Row():
        run = gr.Button(label, variant="primary", scale=3, min_width=120)
        cancel = gr.Button("Cancel", scale=1, min_width=80)
    return run, cancel


def gallery(name: str) -> Any:
    """Pictures with a caption each; a click shows one large, with its download."""
    return gr.Gallery(
        label="Result", show_label=False, columns=2, object_fit="contain", height="auto",
        interactive=False, format="png", buttons=["download", "fullscreen"], elem_id=f"{name}-result",
        elem_classes="pictures",
    )  # fmt: skip


def wire(
    desk: Desk,
    pressed: tuple[Any, Any],
    work: Callable[..., Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
) -> Any:
    """Let the buttons run the work in the queue, and call it off."""
    run, cancel = pressed
    running = run.click(work, list(inputs), list(outputs), show_progress_on=outputs[0], **QUEUE)
    cancel.click(desk.cancel, None, None, cancels=[running], **AT_ONCE)
    return running
