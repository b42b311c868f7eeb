"""One pass over a data set: the k strongest images of every channel, and where in them."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .deconvnet import feature_maps
from .geometry import resolve

BATCH = 32


class Strongest(NamedTuple):
    """Per channel of a layer its strongest units, one per image; each field (k, C), strongest first."""

    value: Tensor  # activation
    image: Tensor  # index into the data set
    row: Tensor
    col: Tensor


def strongest(net: nn.Module, images, layers, k=9, normalize=None) -> dict[str, Strongest]:
    """For each layer the k images with the largest activation of every channel, and its place.

    images: uint8 (N, H, W, 3) with `normalize` (such as a card's) to make them float (N, 3, H, W), or already
    so; any sequence that slices. Taken in batches, so N may be large.
    An image counts once per channel, by its strongest unit (of equals the first in reading order); of equal
    images the earlier comes first. Source: ZF 2013, sec. 4, Fig. 2.
    Raises ValueError for an unknown layer, k above N and an empty set.
    """
    for layer in layers:
        resolve(net, layer)
    if not 1 <= k <= len(images):
        raise ValueError(f"k is {k!r}; valid: 1 to {len(images)}, the number of images")
    best = {}
    for first in range(0, len(images), BATCH):
        batch = images[first : first + BATCH]
        maps = feature_maps(net, normalize(batch) if normalize else batch, layers)
        for layer in layers:
            found = _peaks(maps[layer], first)
            best[layer] = _merge(best[layer], found, k) if first else _merge(found, None, k)
    return best


def _peaks(maps: Tensor, first: int) -> Strongest:
    """The strongest unit of each image and channel; fields (images, C)."""
    maps = maps.reshape(*maps.shape[:2], -1, maps.shape[-1] if maps.dim() == 4 else 1)
    values = maps.flatten(2)
    places = values.argmax(2, keepdim=True)  # of equals the first
    value, place = values.gather(2, places)[..., 0].cpu(), places[..., 0].cpu()
    image = torch.arange(first, first + len(value)).unsqueeze(1).expand_as(place)
    return Strongest(value, image, place // maps.shape[-1], place % maps.shape[-1])


def _merge(best: Strongest, found: Strongest | None, k: int) -> Strongest:
    """The k strongest of both; a stable sort keeps the earlier image ahead of its equals."""
    both = best if found is None else Strongest(*map(torch.cat, zip(best, found, strict=True)))
    order = both.value.sort(dim=0, descending=True, stable=True).indices[:k]
    return Strongest(*(field.gather(0, order) for field in both))
