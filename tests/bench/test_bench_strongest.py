"""What the strongest pass costs beside the bare forward pass to the same layer: one thread, CPU seconds."""

import statistics
import time
from importlib import import_module

import pytest
import torch

from zfkit.forward import evaluating, run_to
from zfkit.networks import init_weights, zfnet

pytestmark = pytest.mark.bench
module = import_module("zfkit.strongest")  # zfkit.strongest itself is the function
LAYERS = [f"conv{n}" for n in range(1, 6)]
SMALL = dict(size=64, channels=(48, 128, 192, 192, 128), strides=(2, 1, 1, 1, 1), padding=(3, 2, 1, 1, 1))


def cpu_seconds(work):
    start = time.process_time()
    work()
    return time.process_time() - start


@pytest.mark.parametrize(
    "net, size, count, bar",
    [(dict(), 224, 96, 0.05), (SMALL | dict(norm="batch"), 64, 960, 0.10), (SMALL, 64, 960, 0.10)],
    ids=["224 px, LRN", "64 px, batch norm", "64 px, LRN"],
)
def test_overhead_over_the_bare_forward_pass(net, size, count, bar):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = init_weights(zfnet(**{"fc": (9, 9)} | net), std=0.05).eval()
    net = net.to(memory_format=torch.channels_last)
    images = torch.randn(count, 3, size, size).to(memory_format=torch.channels_last)

    def bare():
        with evaluating(net), torch.no_grad():
            for batch in images.split(module.BATCH):
                run_to(net, batch, {"relu5"})

    pairs = [(cpu_seconds(bare), cpu_seconds(lambda: module.strongest(net, images, LAYERS))) for _ in range(6)][1:]
    more = statistics.median(ours / plain - 1 for plain, ours in pairs)
    plain = statistics.median(plain for plain, _ in pairs)
    print(f"\n{size} px: bare {plain / count * 1e3:.2f} ms an image, strongest {more:+.1%}")
    assert more <= bar
