"""What a picture must be compared with before it proves anything.

Networks that learnt nothing, an edge map that knows no network, and random directions of a
layer.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .forward import feature_maps, hooked, run_to
from .geometry import resolve


def edges(normalized: Tensor) -> Tensor:
    """Strength of the brightness step at each pixel, (N, 1, H, W): a map that knows no network.

    >>> edges(torch.tensor([[[[0.0, 0.0, 1.0, 1.0]]]]))
    tensor([[[[0., 1., 1., 0.]]]])
    """
    grey = F.pad(normalized.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    across = grey[..., 1:-1, 2:] - grey[..., 1:-1, :-2]
    down = grey[..., 2:, 1:-1] - grey[..., :-2, 1:-1]
    return (across.square() + down.square()).sqrt()


def filtering(net: nn.Module, normalized: Tensor, layer: str) -> list[str]:
    """Names of the modules with filters that `layer` rests on, in the forward pass's order.

    >>> import zfkit
    >>> filtering(zfkit.zfnet(10, size=80, fc=(16, 16)), torch.zeros(1, 3, 80, 80), "conv3")
    ['conv1', 'conv2', 'conv3']
    """
    found = {
        name: module
        for name, module in net.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    }
    names, ran = {module: name for name, module in found.items()}, []
    with hooked(found.values(), lambda module, *_: ran.append(names[module])):
        feature_maps(net, normalized[:1], [layer])
    return ran


def randomized(net: nn.Module, names, normalized: Tensor, seed=0) -> nn.Module:
    """A copy of the network in eval mode, the named modules with random weights of like spread.

    Batch normalisations then take their statistics anew from the images (N, 3, H, W), or most
    units would be dead.
    Source: the sanity checks of Adebayo et al. 2018, for the control "untrained".

    >>> import zfkit
    >>> net, images = zfkit.zfnet(10, size=80, fc=(16, 16)), torch.zeros(2, 3, 80, 80)
    >>> other = randomized(net, filtering(net, images, "conv2"), images)
    >>> modules = [n.get_submodule(m) for m in ("conv2", "conv3") for n in (net, other)]
    >>> [torch.equal(a.weight, b.weight) for a, b in (modules[:2], modules[2:])]
    [False, True]
    """
    other, generator = copy.deepcopy(net), torch.Generator().manual_seed(seed)
    for name in names:
        weight = other.get_submodule(name).weight.data
        weight.copy_(torch.randn(weight.shape, generator=generator).to(weight) * weight.std())
    norms = (
        [module for module in other.modules() if isinstance(module, nn.BatchNorm2d)]
        if names
        else []
    )
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
        norm.momentum = None  # the plain mean of what it sees
    with torch.no_grad():
        other(normalized)
    return other.eval()


class Directions(nn.Module):
    """A network with more units: weighted sums of a layer's maps, as 1x1 filters would give.

    net: any network; it is shared, not copied.    vectors: {layer: (directions, channels)},
    float: a weight for each channel of the layer.    Its layers are those of `net` and, for
    each of the vectors, "LAYER directions", maps (N, directions, h, w), which `strongest`,
    `project` and `projections` take as any other. With the directions of one layer it is a
    chain where `net` is one.    ValueError for an unknown layer.    Source: Szegedy et al.
    2013, sec. 3: random directions of a layer as control for its single channels.

    >>> import zfkit
    >>> net, images = zfkit.zfnet(10, size=80, fc=(16, 16)), torch.rand(2, 3, 80, 80)
    >>> other = Directions(net, {"conv4": torch.randn(5, 384)})
    >>> zfkit.project(other, images, "conv4 directions", 4).shape
    torch.Size([2, 3, 80, 80])
    """

    def __init__(self, net: nn.Module, vectors: dict[str, Tensor]):
        super().__init__()
        self.net, self.below = net, {layer: resolve(net, layer) for layer in vectors}
        self.sums = nn.ModuleList(_pointwise(rows) for rows in vectors.values())
        self.stages = {
            layer: f"net.{resolve(net, layer)}"
            for layer in {**vars(net).get("stages", {}), **vectors}
        }
        self.stages |= {f"{layer} directions": f"sums.{k}" for k, layer in enumerate(vectors)}

    def forward(self, normalized: Tensor) -> list[Tensor]:
        """The maps of the directions, one tensor for each layer."""
        maps = run_to(self.net, normalized, set(self.below.values()))
        return [
            weigh(maps[name])
            for weigh, name in zip(self.sums, self.below.values(), strict=True)
        ]


def _pointwise(rows: Tensor) -> nn.Conv2d:
    """The 1x1 convolution, without bias, whose filters are the rows (directions, channels)."""
    filters = nn.Conv2d(rows.shape[1], len(rows), 1, bias=False)
    filters.weight = nn.Parameter(rows[:, :, None, None].clone(), requires_grad=False)
    return filters
