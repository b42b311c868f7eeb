"""What the strongest pass costs beside the bare forward pass to the same layer: one thread, CPU seconds.

The first batches cost most, as all their images enter the table: the sets have 256 and 1920 images.
"""

import statistics
import time
from importlib import import_module

import pytest
import torch

from zfkit.forward import run_to
from zfkit.networks import zfnet

pytestmark = pytest.mark.bench
module = import_module("zfkit.search")
LAYERS = [f"conv{n}" for n in range(1, 6)]
SMALL = dict(size=64, channels=(48, 128, 192, 192, 128), strides=(2, 1, 1, 1, 1), padding=(3, 2, 1, 1, 1))


class BareFirst:
    """Images that run the bare forward pass on each batch before they hand it out: paired to a tenth of a second."""

    def __init__(self, net, images):
        self.net, self.images, self.seconds = net, images, 0.0

    def __len__(self):
        return len(self.images)

    def __getitem__(self, which):
        start = time.process_time()
        batch = self.images[which]
        if len(batch) > 1:
            run_to(self.net, batch, {"relu5"})
        self.seconds += time.process_time() - start
        return batch


@pytest.mark.parametrize(
    "net, size, count, bar",
    [(dict(), 224, 256, 0.05), (SMALL | dict(norm="batch"), 64, 1920, 0.10), (SMALL, 64, 1920, 0.10)],
    ids=["224 px, LRN", "64 px, batch norm", "64 px, LRN"],
)
def test_overhead_over_the_bare_forward_pass(net, size, count, bar):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = zfnet(**{"fc": (9, 9)} | net).eval()
    for weight in (parameter for parameter in net.parameters() if parameter.dim() > 1):
        torch.nn.init.normal_(weight, std=0.05)
    net = net.to(memory_format=torch.channels_last)
    images = torch.randn(count, 3, size, size).to(memory_format=torch.channels_last)

    rounds = []
    for _ in range(4):
        paired, start = BareFirst(net, images), time.process_time()
        module.strongest(net, paired, LAYERS)
        rounds.append((time.process_time() - start - paired.seconds, paired.seconds))
    more = statistics.median(ours / bare - 1 for ours, bare in rounds[1:])
    bare = statistics.median(bare for _, bare in rounds[1:]) / count
    print(f"\n{size} px: bare {bare * 1e3:.2f} ms an image, strongest {more:+.1%}")
    assert more <= bar
