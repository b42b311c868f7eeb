"""Contrast normalisation beside torch's layer: the layer alone, and the training of a small network with it."""

import statistics
import time

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from zfkit.networks import zfnet
from zfkit.normalization import ContrastNormalization

pytestmark = pytest.mark.bench
OURS, THEIRS = ContrastNormalization(), nn.LocalResponseNorm(5, 1e-4, 0.75, 2.0)
SMALL = dict(
    size=64,
    channels=(48, 128, 192, 192, 128),
    filters=(7, 5, 3, 3, 3),
    strides=(2, 1, 1, 1, 1),
    padding=(3, 2, 1, 1, 1),
    fc=(512, 512),
)


def compared(ours, theirs, rounds):
    """CPU and wall seconds of both, medians of interleaved runs, and the median ratio of CPU seconds."""
    torch.set_num_threads(1)
    taken = []
    for _ in range(rounds + 1):  # the first warms up
        for run in (ours, theirs):
            start = time.process_time(), time.perf_counter()
            run()
            taken.append((time.process_time() - start[0], time.perf_counter() - start[1]))
    pairs = list(zip(taken[2::2], taken[3::2], strict=True))
    ratio = statistics.median(their[0] / our[0] for our, their in pairs)
    return [[statistics.median(run[n] for run in runs) for n in (0, 1)] for runs in zip(*pairs, strict=True)], ratio


def forward(layer, maps):
    with torch.no_grad():
        layer(maps)


def forward_and_backward(layer, maps):
    below = maps.detach().requires_grad_()
    layer(below).backward(maps)


@pytest.mark.parametrize("run, bar", [(forward, 2.0), (forward_and_backward, 3.0)])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_layer_at_96_maps_of_55_by_55(run, bar, layout):
    maps = torch.randn(16, 96, 55, 55).contiguous(memory_format=layout)
    (ours, theirs), ratio = compared(lambda: run(OURS, maps), lambda: run(THEIRS, maps), 5)
    shown = [f"{1e3 * seconds / len(maps):.2f}" for seconds in (*ours, *theirs)]
    print(f"\n{run.__name__}, {layout}: ms an image, CPU and wall: ours {shown[:2]}, torch {shown[2:]}: x{ratio:.2f}")
    assert ratio >= bar


@pytest.mark.parametrize("bfloat16, bar", [(False, 1.1), (True, 1.5)])
def test_training_of_a_small_network(bfloat16, bar):
    images = torch.randn(128, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 16, (128,))

    def step(layer):
        net = zfnet(16, **SMALL).to(memory_format=torch.channels_last)
        net.norm1 = net.norm2 = layer
        sgd = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)

        def run():
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                loss = F.cross_entropy(net(images), labels)
            sgd.zero_grad()
            loss.backward()
            sgd.step()

        return run

    (ours, theirs), ratio = compared(step(OURS), step(THEIRS), 5)
    rates = [f"{len(images) / seconds:.0f}" for seconds in (*ours, *theirs)]
    name = "bfloat16" if bfloat16 else "float32"
    print(f"\n{name}: images a second, CPU and wall: ours {rates[:2]}, torch {rates[2:]}: x{ratio:.2f}")
    assert ratio >= bar
