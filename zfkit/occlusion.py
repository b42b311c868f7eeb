"""The occlusion sweep of ZF 2013, sec. 4.2 and Fig. 7: a grey square moved over the picture."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .deconvnet import feature_maps
from .forward import evaluating, hooked
from .geometry import resolve

BATCH = 32


class OcclusionMaps(NamedTuple):
    """What the network says at each place of the occluder; each (rows, cols) of places, row-major."""

    probability: Tensor  # of the target class
    label: Tensor  # the most probable class
    activity: Tensor | None  # sum over the chosen feature map


def occlusion_maps(
    net: nn.Module, normalized: Tensor, target: int, size: int, stride: int, fill=0.0, layer=None, channel=None
) -> OcclusionMaps:
    """P(target), the most probable label and a feature map's activity for every place of the occluder.

    normalized: one image (1, 3, H, W).    target: class.    size, stride: of the square, in pixels; it starts
    at row and column 0 and stays inside the image.    fill: its value after normalisation, one or per colour.
    layer, channel: the map whose sum is the activity; channel None takes the one with the strongest unit.
    Raises ValueError for a square that does not fit, and for an unknown class, layer or channel.
    """
    if normalized.dim() != 4 or len(normalized) != 1:
        raise ValueError(f"one image (1, 3, H, W) is needed, not {tuple(normalized.shape)}")
    height, width = normalized.shape[2:]
    if not 1 <= size <= min(height, width) or stride < 1:
        raise ValueError(f"no place for a square of {size!r} at stride {stride!r} on {height}x{width} pixels")
    places = [(y, x) for y in range(0, height - size + 1, stride) for x in range(0, width - size + 1, stride)]
    name, channel = (None, None) if layer is None else _chosen(net, normalized, layer, channel)
    fill = torch.as_tensor(fill).to(normalized).reshape(-1, 1, 1)
    logits, sums = [], []
    watched = [] if name is None else [net.get_submodule(name)]
    with evaluating(net), torch.no_grad(), hooked(watched, lambda _, __, maps: sums.append(_sum(maps, channel))):
        for first in range(0, len(places), BATCH):
            logits.append(net(_covered(normalized, places[first : first + BATCH], size, fill)))
            if not 0 <= target < logits[0].shape[1]:
                raise ValueError(f"no class {target!r}; valid: 0 to {logits[0].shape[1] - 1}")
    probabilities = torch.cat(logits).softmax(1)
    rows = (height - size) // stride + 1
    fields = [probabilities[:, target], probabilities.argmax(1), torch.cat(sums) if sums else None]
    return OcclusionMaps(*(None if field is None else field.reshape(rows, -1) for field in fields))


def _covered(image: Tensor, places, size, fill) -> Tensor:
    images = image.repeat(len(places), 1, 1, 1)
    for one, (y, x) in zip(images, places, strict=True):
        one[:, y : y + size, x : x + size] = fill
    return images


def _sum(maps: Tensor, channel: int) -> Tensor:
    return maps[:, channel].reshape(len(maps), -1).sum(1)


def _chosen(net, image, layer, channel) -> tuple[str, int]:
    """The module and the channel whose activity is followed."""
    clean = feature_maps(net, image, [layer])[layer][0]
    if channel is None:
        channel = clean.reshape(len(clean), -1).amax(1).argmax().item()
    if not 0 <= channel < len(clean):
        raise ValueError(f"no channel of {layer!r} is {channel!r}; valid: 0 to {len(clean) - 1}")
    return resolve(net, layer), channel
