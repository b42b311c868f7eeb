"""Projections per CPU second beside captum's NeuronDeconvolution at its best; one thread, interleaved."""

import statistics
import time
from importlib import import_module

import pytest
import torch
from captum.attr import NeuronDeconvolution
from torch import nn

from zfkit.forward import evaluating
from zfkit.networks import zfnet

pytestmark = pytest.mark.bench
module = import_module("zfkit.projections")
# layer -> units, bar from crops, bar with kept switches, the forward pass that keeps them not counted
BARS = {
    "conv1": (512, 100, 100),
    "conv2": (512, 100, 100),
    "conv3": (128, 8, 20),
    "conv4": (90, 4.5, 10),
    "conv5": (68, 3, 6),
}


class Through(nn.Module):
    """A contrast normalisation that hands the signal on, as ours and the authors' do."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, maps, normalization):
            return normalization(maps)

        @staticmethod
        def backward(ctx, signal):
            return signal, None

    def __init__(self, normalization):
        super().__init__()
        self.normalization = normalization

    def forward(self, maps):
        return self.Function.apply(maps, self.normalization)


def network():
    torch.manual_seed(0)
    net = zfnet(None).eval()
    for part in net.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight)
            nn.init.normal_(part.bias, 0, 0.05)
    return net.to(memory_format=torch.channels_last)


def seconds(work):
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


@pytest.mark.parametrize("layer", BARS)
def test_beside_captum(layer):
    torch.set_num_threads(1)
    net, (count, *bars) = network(), BARS[layer]
    images = torch.randn(16, 3, 224, 224).to(memory_format=torch.channels_last)
    with torch.no_grad():
        chain = module.chain_to(net, images[:1], net.stages[layer])
    size = chain.layers[-1].above
    image = torch.arange(count) % 16
    channel, row, col = (torch.randint(side, (count,)) for side in size[1:])
    units = module.Strongest(torch.rand(count) + 1, image, row, col)
    cut = nn.Sequential(*(Through(m) if isinstance(m, nn.LocalResponseNorm) else m for m in net[: len(chain.layers)]))
    deconvolution = NeuronDeconvolution(cut.to(memory_format=torch.channels_last), cut[-1])

    def captum():
        some = [part[:16] for part in (channel, row, col)]
        return deconvolution.attribute(images, lambda maps: maps[(torch.arange(16), *some)])

    def crops():
        return module.projections(net, images, layer, units, channel, way="crops")[0]

    def kept():
        return chain.project_all(lambda numbers: images[numbers], channel, units, "kept", Bar)[0]

    class Bar:
        update = staticmethod(lambda count: None)

    with evaluating(net), torch.no_grad():
        switches = chain.keep(images)
        chain.keep = lambda normalized: switches
        times = [(seconds(captum), seconds(crops), seconds(kept)) for _ in range(4)][1:]
    each = [statistics.median(round[way][0] for round in times) for way in range(3)]
    each = [each[0] / 16, each[1] / count, each[2] / count]
    ratios = each[0] / each[1], each[0] / each[2]
    theirs, ours, also = (one[1] for one in times[0])
    apart = []
    for n in range(16):  # captum starts from 1
        top, left, bottom, right = module.clipped(_field(chain, units, n), (224, 224))
        whole = theirs[n, :, top:bottom, left:right] * units.value[n]
        apart += [float((picture[n] - whole).abs().max() / whole.abs().max()) for picture in (ours, also)]
    ms = [f"{one * 1e3:.3f}" for one in each]
    told = f"crops {ms[1]} (x{ratios[0]:.1f}), kept {ms[2]} (x{ratios[1]:.1f}), apart {max(apart):.1e}"
    print(f"\n{layer}: ms captum {ms[0]}, {told}")
    assert max(apart) < 1e-5
    assert ratios[0] >= bars[0] and ratios[1] >= bars[1]


def _field(chain, units, n):
    (top, bottom), (left, right) = chain.windows(units.row[n : n + 1], units.col[n : n + 1])[0]
    return [int(edge) for edge in (top, left, bottom, right)]
