"""The sweep by windows beside captum's Occlusion at its fastest setting: ZFNet at 224 px, float32, one thread."""

import statistics
import time

import pytest
import torch
from captum.attr import Occlusion
from torch import nn

from zfkit.networks import zfnet
from zfkit.occlusion import occluded, occlusion_maps

pytestmark = pytest.mark.bench
PER_EVALUATION = (1, 16, 64)  # captum's choices
WINDOW, SPACING, PLACES = 32, 24, 82  # of captum: 81 and the clean image; its time for one depends on neither


def network(fast: bool):
    """ZFNet with random weights and our contrast normalisation, or torch's."""
    net = zfnet(dropout=0)
    generator = torch.Generator().manual_seed(0)
    for name, module in list(net.named_children()):
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, generator=generator)
        elif isinstance(module, nn.LocalResponseNorm) and not fast:
            setattr(net, name, nn.LocalResponseNorm(module.size, module.alpha, module.beta, module.k))
    return net.eval().to(memory_format=torch.channels_last)


def seconds(run):
    start = time.process_time(), time.perf_counter()
    run()
    return time.process_time() - start[0], time.perf_counter() - start[1]


def captum_sweep(net, image, count):
    """P(target) at each place, `count` places in a forward pass."""
    with torch.no_grad():
        window, stride = (3, WINDOW, WINDOW), (3, SPACING, SPACING)
        Occlusion(net).attribute(image, window, stride, 0, target=3, perturbations_per_eval=count)


def measured(fast, size, stride, rounds):
    """The median ratio of CPU seconds a place, captum's best to ours; runs interleaved."""
    torch.set_num_threads(1)
    net, image = network(fast), torch.randn(1, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    places = ((224 - size) // stride + 1) ** 2
    runs = [(lambda: occlusion_maps(net, image, 3, size, stride, layer="conv5"), places)]
    runs += [(lambda n=n: captum_sweep(net, image, n), PLACES) for n in PER_EVALUATION]
    table = [[[1e3 * t / count for t in seconds(run)] for run, count in runs] for _ in range(rounds)]
    ours, *theirs = [[statistics.median(row[n][k] for row in table) for k in (0, 1)] for n in range(len(runs))]
    ratios = [statistics.median(min(run[k] for run in row[1:]) / row[0][k] for row in table) for k in (0, 1)]
    print(
        f"\n{'our' if fast else 'torch'} LRN, {size} px at stride {stride}; ms a place, CPU and wall: windows", end=" "
    )
    shown = [f"{cpu:.1f} {wall:.1f}" for cpu, wall in (ours, *theirs)]
    print(
        f"{shown[0]}, captum (1, 16, 64) {', '.join(shown[1:])}: x{ratios[0]:.2f} CPU, x{ratios[1]:.2f} wall", end="; "
    )
    print(f"largest difference in P {differences(net, image, size, places, stride):.1e}")
    return ratios[0]


def differences(net, image, size, places, stride, count=24):
    """The largest from plain forward passes over the whole vector, the last layer scaled so that P is large."""
    net.fc8.weight.data *= 2 / net(image).std().item() * 1.5
    chosen = torch.linspace(0, places - 1, count).long()
    across = (224 - size) // stride + 1
    chosen = torch.stack([chosen // across, chosen % across], 1) * stride
    windows, plain = (occluded(net, image, chosen, size, method=m).probabilities for m in ("windows", "plain"))
    assert torch.equal(windows.argmax(1), plain.argmax(1))
    return (windows - plain).abs().max().item()


@pytest.mark.parametrize("fast, bar", [(False, 5.0), (True, 4.0)])
def test_32_pixels_at_stride_8(fast, bar):
    assert measured(fast, 32, 8, 3) >= bar


@pytest.mark.parametrize("size, stride", [(16, 16), (32, 16), (50, 16), (75, 16), (16, 8), (50, 8), (75, 8), (50, 6)])
def test_other_sizes_and_strides(size, stride):
    assert measured(False, size, stride, 1) >= 2.5
