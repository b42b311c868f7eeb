"""Arrays in, pictures and figures out: one look for all chapters; no data sets or networks."""

from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from PIL import Image, ImageDraw, ImageFont

GREY = 128  # what zero looks like in a projection
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
)  # Okabe and Ito
HEAT = "cividis"  # positive maps; readable without red-green vision and in grey
SIGNED = "PuOr_r"  # maps with a zero in the middle


def style() -> None:
    """Set matplotlib to the series' look: quiet axes, colour-blind-safe cycle, 90 dpi."""
    plt.rcParams.update(
        {
            "figure.dpi": 90,
            "figure.constrained_layout.use": True,
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.prop_cycle": plt.cycler(color=COLOURS),
            "axes.titlesize": 10,
            "image.interpolation": "nearest",
            "legend.frameon": False,
        }
    )


def as_array(maps) -> np.ndarray:
    """The values of a tensor or array as float32 numpy, on the CPU and cut from any graph."""
    if hasattr(maps, "detach"):
        maps = maps.detach().float().cpu().numpy()
    return np.asarray(maps, np.float32)


def scale_of(projections, quantile: float = 0.995) -> float:
    """The grey-to-white distance that clips only the strongest 0.5 % of values (never 0)."""
    return float(np.quantile(np.abs(as_array(projections)), quantile)) or 1.0


def signed(projection, scale: float | None = None) -> np.ndarray:
    """A projection as a picture: uint8 (H, W, 3), (N, H, W, 3) for a batch; zero is mid-grey.

    projection: (3, H, W) or (N, 3, H, W), any float. scale: the value that becomes white; None
    gives every picture its own `scale_of`, which hides how strong it is: captions must say so.
    """
    values = as_array(projection)
    if values.ndim == 4:
        return np.stack([signed(one, scale) for one in values])
    values = values / (scale or scale_of(values))
    return np.clip(np.rint(GREY + 127 * values), 0, 255).astype(np.uint8).transpose(1, 2, 0)


def heat(values, top: float | None = None, low: float = 0.0, cmap: str = HEAT) -> np.ndarray:
    """A map (h, w) as uint8 (h, w, 3): `low` darkest, `top` (the maximum) brightest."""
    values = as_array(values)
    top = float(values.max()) if top is None else top
    unit = (values - low) / (top - low) if top > low else np.zeros_like(values)
    return (
        (matplotlib.colormaps[cmap](np.clip(unit, 0, 1))[..., :3] * 255)
        .round()
        .astype(np.uint8)
    )


def fit(picture: np.ndarray, height: int, width: int | None = None) -> np.ndarray:
    """The picture resized to a box: blown up by whole pixels, or smoothly reduced."""
    width = round(picture.shape[1] * height / picture.shape[0]) if width is None else width
    small = picture.shape[0] * 2 <= height
    how = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(picture).resize((width, height), how))


def tile(pictures, columns: int, gap: int = 2, fill: int = 255) -> np.ndarray:
    """Equal pictures (N, H, W, 3) laid out in rows: one uint8 picture, `gap` pixels between."""
    pictures = np.asarray(pictures)
    n, h, w, _ = pictures.shape
    rows = -(-n // columns)
    out = np.full((rows * (h + gap) - gap, columns * (w + gap) - gap, 3), fill, np.uint8)
    for i, picture in enumerate(pictures):
        y, x = (i // columns) * (h + gap), (i % columns) * (w + gap)
        out[y : y + h, x : x + w] = picture
    return out


def frame(
    picture: np.ndarray, box, colour: str = COLOURS[1], width: int = 2, zoom: int = 1
) -> np.ndarray:
    """The picture `zoom` times as large, framed at the half-open (top, left, bottom, right).

    The frame may leave the picture: what lies outside is simply not seen.
    """
    image = Image.fromarray(np.repeat(np.repeat(picture, zoom, 0), zoom, 1))
    top, left, bottom, right = (round(float(side) * zoom) for side in box)
    ImageDraw.Draw(image).rectangle(
        (left, top, right - 1, bottom - 1), outline=colour, width=width
    )
    return np.asarray(image)


@cache
def _font(size: int):
    return ImageFont.truetype(
        Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size
    )


def label(
    text: str, width: int, height: int, size: int = 12, anchor: str = "middle"
) -> np.ndarray:
    """Black text on white as uint8 (height, width, 3); what does not fit is made smaller."""
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    while size > 7 and draw.multiline_textbbox((0, 0), text, font=_font(size))[2] > width - 2:
        size -= 1
    x, code = (width / 2, "mm") if anchor == "middle" else (width - 4, "rm")
    draw.multiline_text(
        (x, height / 2), text, "black", _font(size), anchor=code, align="center", spacing=2
    )
    return np.asarray(image)


def sheet(
    rows, row_names=(), column_names=(), cell: int = 96, gap: int = 4, margin: int = 84
) -> np.ndarray:
    """A labelled table of pictures as one uint8 picture.

    rows: list of lists of uint8 (h, w, 3) pictures or None (left white); each is fitted to
    `cell` pixels of height and the widest cell of its column. row_names, column_names: text
    beside and above; `margin` px for row names.
    """
    rows = [[None if p is None else fit(p, cell) for p in row] for row in rows]
    columns = max(len(row) for row in rows)
    widths = [
        max(row[c].shape[1] for row in rows if c < len(row) and row[c] is not None)
        for c in range(columns)
    ]
    left, head = (margin if row_names else 0), (34 if column_names else 0)
    out = np.full(
        (head + len(rows) * (cell + gap), left + sum(widths) + gap * columns, 3), 255, np.uint8
    )
    starts = left + np.cumsum([0, *[w + gap for w in widths]])
    for c, name in enumerate(column_names):
        out[:head, starts[c] : starts[c] + widths[c]] = label(name, widths[c], head)
    for r, row in enumerate(rows):
        y = head + r * (cell + gap)
        if row_names:
            out[y : y + cell, :left] = label(row_names[r], left, cell, anchor="right")
        for c, picture in enumerate(row):
            if picture is not None:
                out[y : y + cell, starts[c] : starts[c] + picture.shape[1]] = picture
    return out


def pixels(figure) -> np.ndarray:
    """A figure as a picture, uint8 (H, W, 3); it is closed, so none is shown twice."""
    figure.canvas.draw()
    drawn = np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
    plt.close(figure)
    return drawn


def numbers(
    axis, values, *, title: str = "", marks=(), cmap: str = SIGNED, digits: int = 0, top=None
) -> None:
    """Draw a small map (h, w), a number in every cell; `marks`: (row, col) to frame."""
    values = as_array(values)
    top = float(np.abs(values).max()) or 1.0 if top is None else top
    axis.imshow(values, cmap=cmap, vmin=-1.6 * top, vmax=1.6 * top)
    for (row, col), value in np.ndenumerate(values):
        text = f"{value:.{digits}f}"
        axis.text(
            col,
            row,
            text,
            ha="center",
            va="center",
            color="0.65" if value == 0 else "black",
            fontsize=9,
        )
    for row, col in marks:
        axis.add_patch(
            plt.Rectangle((col - 0.46, row - 0.46), 0.92, 0.92, fill=False, ec=COLOURS[1], lw=2)
        )
    axis.set(title=title, xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_visible(False)
