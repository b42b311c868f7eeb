"""Places of the occluder on an image: all that fit, chosen ones, coarse before fine."""

from collections.abc import Callable, Iterator
from functools import cached_property
from operator import index
from typing import NamedTuple

import torch
from torch import Tensor


def grid(shape, size, stride) -> Tensor:
    """The places of the occluder that fit, int64 (N, 2): its first row and column, row by row.

    shape: of the image, (H, W) or one side.    size, stride: of the occluder, a number or
    (rows, columns).
    Raises ValueError for an occluder larger than the image and for numbers below 1.

    >>> grid(6, size=2, stride=4).tolist()
    [[0, 0], [0, 4], [4, 0], [4, 4]]
    """
    sides = pair_of("shape", shape)
    axes = list(zip(sides, pair_of("size", size), pair_of("stride", stride), strict=True))
    if any(side < length or min(length, step) < 1 for side, length, step in axes):
        raise ValueError(
            f"no occluder of {size!r} px at stride {stride!r} on an image of {sides} px"
        )
    return torch.cartesian_prod(
        *(torch.arange(0, side - length + 1, step) for side, length, step in axes)
    )


class Occluded(NamedTuple):
    """What the network says with the occluder at each of N places."""

    probabilities: Tensor  # (N, classes)
    activity: Tensor | None  # (N,), sum over the chosen feature map
    method: str  # as in OcclusionMaps


class CoarseToFine:
    """A sweep, coarse at once, fine in steps, for a slider that must not wait: live(refine=).

    look: a function of places, as `occluder` gives it.    coarse, fine: places (N, 2).
    batch: of them in a step. `fine` is what `look` says at the fine places, `Occluded`; None
    until the last step.
    """

    def __init__(self, look: Callable[..., Occluded], coarse: Tensor, fine: Tensor, batch: int):
        self.look, self.places, self.batches, self.parts, self.fine = (
            look,
            coarse,
            fine.split(batch),
            [],
            None,
        )

    @cached_property
    def coarse(self) -> Occluded:
        """What `look` says at the coarse places, asked once."""
        return self.look(self.places)

    def steps(self) -> Iterator[None]:
        """Does what is left for `fine`; one broken off between two steps is gone on with."""
        for places in self.batches[len(self.parts) :]:
            self.parts.append(self.look(places))
            if len(self.parts) == len(self.batches):
                said, sums, methods = zip(*self.parts, strict=True)
                self.fine = Occluded(
                    torch.cat(said), None if sums[0] is None else torch.cat(sums), methods[0]
                )
            yield


def tiles_of(rows: int, cols: int, side: int) -> list[Tensor]:
    """Numbers of a grid's places, a tile of side x side neighbours at a time, like windows."""
    grid = torch.arange(rows * cols).view(rows, cols)
    return [tile.flatten() for band in grid.split(side) for tile in band.split(side, dim=1)]


def pair_of(what, value) -> tuple[int, int]:
    """(rows, columns) of a number or a pair; ValueError that names `what` it is."""
    try:
        rows, cols = value if isinstance(value, (tuple, list)) else (value, value)
        return index(rows), index(cols)
    except (TypeError, ValueError):
        raise ValueError(
            f"{what} must be a whole number or a pair (rows, columns), not {value!r}"
        ) from None


def checked_places(places, last) -> Tensor:
    """The places as a tensor (N, 2); ValueError for one outside [0, 0] to `last`."""
    places = torch.as_tensor(places)
    if (
        places.dim() != 2
        or not len(places)
        or places.shape[1] != 2
        or places.is_floating_point()
    ):
        raise ValueError(
            f"places must be integers (N, 2), N > 0, not {tuple(places.shape)} {places.dtype}"
        )
    if len(wrong := places[((places < 0) | (places > last)).any(1)]):
        raise ValueError(
            f"no place for the occluder at {wrong[0].tolist()};"
            f" valid: [0, 0] to {last.tolist()}"
        )
    return places
