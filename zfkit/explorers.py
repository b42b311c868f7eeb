"""Sliders: views on drawing functions.

A `Picture` stands still, a `Live` box is the same function moved by hand.
"""

import asyncio
import base64
import html
import io
import platform
from contextlib import suppress
from importlib.metadata import version

import ipywidgets as W
import numpy as np
from IPython.display import Markdown
from PIL import Image

REST, GAP = (
    0.2,
    0.005,
)  # seconds without a move before a picture is refined, and between the steps of that
BOXES: dict[
    str, "Live"
] = {}  # name -> the box last made under it: lets a test or a reader call its drawing function


def encode(picture: np.ndarray, format: str = "JPEG") -> bytes:
    """The file bytes of a uint8 (H, W, 3) picture: JPEG of quality 80, or another format."""
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(f"a picture is uint8 (H, W, 3), got {picture.dtype} {picture.shape}")
    file = io.BytesIO()
    options = {"quality": 80, "optimize": True} if format == "JPEG" else {}
    Image.fromarray(picture).save(file, format, **options)
    return file.getvalue()


class Picture:
    """A still picture that a notebook shows: a JPEG, and its description as text."""

    def __init__(self, picture: np.ndarray, alt: str):
        self.picture, self.alt = picture, alt

    def _repr_mimebundle_(self, include=None, exclude=None):
        height, width = self.picture.shape[:2]
        data = {"image/jpeg": encode(self.picture), "text/plain": self.alt}
        return data, {"image/jpeg": {"width": width, "height": height, "alt": self.alt}}


class Live(W.VBox):
    """A slider box that carries a still picture for readers without a kernel.

    Attributes: render(**values) -> uint8 picture; describe(**values) -> its alt text; controls:
    name -> widget;
    task: the refinement of the present picture, if there is one.
    """

    task: asyncio.Task | None = None

    def _repr_mimebundle_(self, **keywords):
        view = super()._repr_mimebundle_(**keywords)
        view = view[0] if isinstance(view, tuple) else view
        values = self.values()
        return {
            **view,
            "text/plain": self.describe(**values),
            "image/jpeg": encode(self.render(**values)),
        }

    def values(self) -> dict:
        """The present value of every control by name."""
        return {name: control.value for name, control in self.controls.items()}


def result_card(figure: str, **facts) -> Markdown:
    """The card at a chapter's head: what is reproduced, on what, by which versions.

    facts: name -> text.
    """
    import torch

    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    versions += f", torchvision {version('torchvision')}"
    rows = {
        "reproduces": figure,
        **facts,
        "versions": versions,
        "threads": torch.get_num_threads(),
    }
    lines = [f"| {name.replace('_', ' ')} | {text} |" for name, text in rows.items()]
    return Markdown("\n".join(["| result card | |", "|---|---|", *lines]))


def img(picture: np.ndarray, alt: str, width: int) -> str:
    """An HTML image with its bytes inside, so that a page never shows half of it."""
    data = base64.b64encode(encode(picture)).decode()
    shown = f'width="{width}" style="max-width:100%;height:auto"'
    return f'<img alt="{html.escape(alt)}" {shown} src="data:image/jpeg;base64,{data}">'


def _row(name: str, control):
    """A control with its name; a slider gets a number field, which screen readers can name."""
    if not isinstance(control, W.IntSlider):
        control.description = control.description or name
        return control
    bounds = {key: getattr(control, key) for key in ("value", "min", "max", "step")}
    field = W.BoundedIntText(
        **bounds, description=control.description or name, layout=W.Layout(width="12em")
    )
    control.description, control.readout, control.layout.width = "", False, "20em"
    W.jslink((control, "value"), (field, "value"))
    for bound in ("min", "max"):
        W.dlink((control, bound), (field, bound))
    return W.HBox([field, control])


def live(
    render,
    alt,
    width: int | None = None,
    *,
    name: str | None = None,
    limits=None,
    refine=None,
    **controls,
) -> Live:
    """The slider box of a drawing function; evaluated last in a cell, it shows itself.

    render(**values) -> uint8 (H, W, 3); alt(**values) -> str, the description that follows the
    sliders.
    width: shown pixels, default the picture's own. name: its key in `BOXES`, default the
    function's name.
    limits(**values) -> {control: largest value}: for sliders whose range hangs on another
    control, as channel on layer.
    refine(**values) -> iterator of the work that is left for a finer picture, some 30 ms in
    each step. It runs while the sliders rest; after its end `render` is called once more. A
    move stops it, between two steps.
    controls: name -> ipywidgets control; an IntSlider is paired with a number field.
    Errors of `render` are shown in the box in one line and raised.
    """
    name = name or render.__name__
    picture, box = W.HTML(), Live()
    box.render, box.describe, box.controls = render, alt, controls

    def show(values):
        try:
            drawn = render(**values)
        except Exception as error:
            fail(error)
        picture.value = img(drawn, alt(**values), width or drawn.shape[1])

    def fail(error):
        picture.value = f'<p role="alert">{html.escape(f"{type(error).__name__}: {error}")}</p>'
        raise error

    def draw(_=None):
        for key, largest in (limits(**box.values()) if limits else {}).items():
            with controls[key].hold_trait_notifications():
                controls[key].value, controls[key].max = (
                    min(controls[key].value, largest),
                    largest,
                )
        show(box.values())
        if box.task:
            box.task.cancel()
        if refine:
            with suppress(RuntimeError):  # no loop runs: nobody moves sliders
                box.task = asyncio.get_running_loop().create_task(finish(box.values()))

    async def finish(values):
        await asyncio.sleep(REST)
        try:
            steps = [await asyncio.sleep(GAP) for _ in refine(**values)]
        except Exception as error:
            fail(error)
        if steps:
            show(values)

    draw()
    for control in controls.values():
        control.observe(draw, "value")
    box.children = [*(_row(key, control) for key, control in controls.items()), picture]
    BOXES[name] = box
    return box
