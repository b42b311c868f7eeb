"""Many projections at once, each computed only in the window of the image that its unit sees.

`project`, the plain way, takes whole images; the pictures are the same.
"""

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from .deconvnet import project
from .descent import IMAGES, chain_to
from .fields import receptive_field
from .files import kept_file, read_tensors, write_tensors
from .forward import evaluating
from .geometry import resolve
from .search import Strongest, clipped

WAYS = ("auto", "crops", "kept", "project")


def projections(
    net: nn.Module, images, layer: str, units: Strongest, channel=None, *, normalize=None,
    overlap="sum", lrn="skip", way="auto", folder=None, progress=False,
) -> tuple[list[Tensor], np.ndarray]:  # fmt: skip
    """What each unit projects to, [(3, h, w), ...], signed, and its box, int64 (units, 4).

    Source: ZF 2013, sec. 2.1.    images: uint8 (N, H, W, 3) with `normalize`, or float (N, 3,
    H, W), of any sides.
    units: all of a layer, as `strongest` gives them, fields (k, C); or any others, with the
    `channel` of each or of
    all: `best.of(7), 7`. A unit starts from its `value`.
    A box is (top, left, bottom, right), half-open, clipped at the border, as that of `crops`.
    overlap, lrn: as in `project`, whose pictures these are, to rounding, cut to the boxes.
    way: "crops" (forward pass on each unit's window), "kept" (one on each image, its switches
    kept) or "project" (no windows: the one way for networks that are no plain chain); "auto"
    takes the quickest that applies.
    folder: where the result is kept, as by `strongest`, one file for each call; pictures are
    then rounded to float16 (after division by their maximum).    progress: show a bar.
    Raises ValueError for an unknown layer, channel, image, unit or option, and for a way that
    does not apply.

    >>> import torch, zfkit
    >>> net, images = zfkit.zfnet(10, size=80, fc=(16, 16)), torch.rand(3, 3, 80, 80)
    >>> best = zfkit.strongest(net, images, ["conv2"], k=2)["conv2"]
    >>> pictures, boxes = projections(net, images, "conv2", best.of(7), 7)
    >>> len(pictures), boxes.shape, pictures[0].shape[1:] == tuple(boxes[0, 2:] - boxes[0, :2])
    (2, (2, 4), True)
    """
    if way not in WAYS:
        raise ValueError(f"unknown way {way!r}; valid: {', '.join(WAYS)}")
    name, options = resolve(net, layer), dict(overlap=overlap, lrn=lrn)
    channel, places = _flat(units, channel, len(images))
    if folder is not None:
        key = [name, overlap, lrn, *(part.tolist() for part in (channel, *places))]
        file = kept_file(folder, f"projections-{layer}", net, images, normalize, key)
        if (found := _read(file)) is not None:
            return found

    def load(numbers: Tensor) -> Tensor:
        some = images[numbers if isinstance(images, Tensor) else numbers.numpy()]
        return normalize(some) if normalize else some

    with tqdm(total=len(channel), disable=not progress, unit="unit") as bar:
        found = _projected(net, load, layer, name, channel, places, way, options, bar)
    if folder is None:
        return found
    _write(file, *found)
    return _read(file)


def _projected(
    net, load, layer, name, channel, places, way, options, bar
) -> tuple[list, np.ndarray]:
    """Pictures and boxes by the way asked for, or the quickest that applies."""
    windowed = way != "project" and options == dict(overlap="sum", lrn="skip")
    chain = chain_to(net, load(torch.tensor([0])), name) if windowed else None
    if chain is None and way in ("crops", "kept"):
        needs = f"a chain of plain layers below {layer!r}, overlap 'sum' and lrn 'skip'"
        raise ValueError(f"way {way!r} needs {needs}")
    if chain is None or (way == "auto" and chain.excess() > 2):
        return _whole(net, load, layer, channel, places, options, bar)
    _inside(layer, chain.layers[-1].above, channel, places)
    with evaluating(net), torch.no_grad():
        return chain.project_all(load, channel, places, way, bar)


def _flat(units: Strongest, channel, count: int) -> tuple[Tensor, Strongest]:
    """Channels and units as flat tensors."""
    shape = units.value.shape
    if not shape.numel():
        raise ValueError(f"no units: their fields are {tuple(shape)}")
    if channel is None and len(shape) != 2:
        raise ValueError(
            "channel is None: units that are not a whole layer, fields (k, C), need one for all"
            " or each"
        )
    channel = torch.arange(shape[1]) if channel is None else torch.as_tensor(channel)
    try:
        channel = channel.expand(shape).flatten()
    except RuntimeError:
        raise ValueError(
            f"channel {tuple(channel.shape)} does not go with units {tuple(shape)}"
        ) from None
    units = Strongest(*(torch.as_tensor(part).flatten() for part in units))
    for image in units.image[(units.image < 0) | (units.image >= count)].tolist():
        raise ValueError(f"no image {image}; valid: 0 to {count - 1}")
    return channel, units


def _inside(layer: str, size, channel: Tensor, units: Strongest):
    for what, number, count in zip(
        ("channel", "row", "column"), (channel, units.row, units.col), size[1:]
    ):
        for wrong in number[(number < 0) | (number >= count)].tolist():
            raise ValueError(f"no {what} of {layer!r} is {wrong}; valid: 0 to {count - 1}")


# --- the plain way, and what is kept in a folder ----------------------------------------------


def _whole(net, load, layer, channel, units, options, bar) -> tuple[list, np.ndarray]:
    """The same by whole images, cut to the receptive field where it is known."""
    try:
        field = receptive_field(net, layer)
    except ValueError:
        field = None
    pictures, boxes = [], []
    for some in torch.arange(len(channel)).split(IMAGES):
        place = torch.stack([units.row[some], units.col[some]], 1)
        signal = project(
            net,
            load(units.image[some]),
            layer,
            channel[some],
            place,
            start=units.value[some],
            **options,
        )
        for picture, (row, col) in zip(signal, place.tolist()):
            whole = (0, 0, *picture.shape[1:])
            boxes.append(clipped(field.box(row, col), whole[2:]) if field else whole)
            top, left, bottom, right = boxes[-1]
            pictures.append(picture[:, top:bottom, left:right])
        bar.update(len(some))
    return pictures, np.array(boxes, np.int64).reshape(-1, 4)


def _write(file, pictures: list[Tensor], boxes: np.ndarray):
    peak = torch.stack([picture.abs().max() for picture in pictures]).clamp(min=1e-30).cpu()
    flat = torch.cat(
        [(picture.cpu() / top).half().flatten() for picture, top in zip(pictures, peak)]
    )
    write_tensors(
        file,
        {"flat": flat, "peak": peak, "boxes": torch.from_numpy(boxes)},
        {"file": file.name},
    )


def _read(file) -> tuple[list[Tensor], np.ndarray] | None:
    """Pictures and boxes as kept; None if the file is missing or damaged."""
    try:
        tensors, about = read_tensors(file)
    except ValueError:
        return None
    if about.get("file") != file.name:
        return None
    sides = (boxes := tensors["boxes"].numpy())[:, 2:] - boxes[:, :2]
    colours = len(tensors["flat"]) // sides.prod(1).sum()
    parts = tensors["flat"].to(tensors["peak"].dtype).split((sides.prod(1) * colours).tolist())
    pictures = [
        part.view(-1, *side).mul_(top)
        for part, side, top in zip(parts, sides.tolist(), tensors["peak"])
    ]
    return pictures, boxes
