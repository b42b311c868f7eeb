"""The same on every processor: without oneDNN, with narrower vectors, with one thread and two.

Chapters print one to three digits, so what is apart by less than a thousandth of the largest value shows in none of
them. Run as a script, the file computes what is compared and writes it to the file named.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from zfkit import feature_maps, load_images, load_network, occlusion_maps, project, strongest
from zfkit.files import read_tensors, write_tensors

NETWORKS = {
    "zfnet-menagerie": ["conv1", "conv3", "conv5", "fc8"],
    "vgg-menagerie": ["conv1_2", "conv3_2", "conv5_2", "fc7"],
}
IMAGES, UNITS, SEEN = 4, 4, 1e-3
SWEPT = ("probability", "label", "activity")
NARROW = dict(ATEN_CPU_CAPABILITY="avx2", ONEDNN_MAX_CPU_ISA="AVX2")


def computed(threads: int, onednn: bool) -> dict[str, torch.Tensor]:
    """Maps, strongest units, their projections and a sweep of the square, of two trained networks on drawings."""
    found = {}
    for network, layers in NETWORKS.items():
        seen = of_one(*load_network(network), layers, threads, onednn)
        found |= {f"{name} {network}": values for name, values in seen.items()}
    return found


def of_one(net, card, layers, threads, onednn) -> dict[str, torch.Tensor]:
    images, labels, _ = load_images("menagerie", size=card.size, limit=IMAGES)
    layer, normalized, before = layers[-2], card.normalize(images), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.backends.mkldnn.flags(enabled=onednn):
            found = feature_maps(net, normalized, layers)
            best = strongest(net, images, [layer], 3, card.normalize)[layer].of(range(UNITS))
            found |= {f"strongest {field}": values for field, values in best._asdict().items()}
            unit = torch.arange(UNITS), torch.stack([best.row[0], best.col[0]], 1)
            for route in ("mirror", "gradient"):
                found[f"projections {route}"] = project(net, normalized[best.image[0]], layer, *unit, route=route)
            maps = occlusion_maps(net, normalized[:1], int(labels[0]), 24, 28, layer=layer, channel=5)
            found |= {f"square {field}": values for field, values in maps._asdict().items() if field in SWEPT}
    finally:
        torch.set_num_threads(before)
    return found


@pytest.fixture(scope="module")
def here():
    return computed(1, True)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """The same, from a process whose vectors are no wider than AVX2's."""
    folder = tmp_path_factory.mktemp("processors")
    env = os.environ | NARROW | dict(PYTHONPATH=str(Path(__file__).parents[1]))
    subprocess.run([sys.executable, __file__, folder], env=env, check=True, timeout=300)
    return folder


def same(one: dict, other: dict):
    for name, values in one.items():
        if not values.is_floating_point():
            assert torch.equal(values, other[name]), name
            continue
        rows = (values - other[name]).abs().flatten(1).amax(1)
        each = values.abs().flatten(1).amax(1) if name.startswith("projections") else values.abs().max()
        assert (rows <= SEEN * each).all(), (name, (rows / each).max())


@pytest.mark.parametrize("threads, onednn", [(1, False), (2, True)])
def test_threads_and_libraries_change_nothing_seen(here, threads, onednn):
    same(here, computed(threads, onednn))


@pytest.mark.parametrize("run", ["1-True", "2-False"])
def test_narrower_vectors_change_nothing_seen(here, narrow, run):
    tensors, about = read_tensors(narrow / f"{run}.safetensors")
    assert "AVX512" not in about["capability"]
    same(here, tensors)


if __name__ == "__main__":
    for run in (1, True), (2, False):
        file = Path(sys.argv[1]) / f"{run[0]}-{run[1]}.safetensors"
        tensors = {name: values.contiguous() for name, values in computed(*run).items()}
        write_tensors(file, tensors, dict(capability=torch.backends.cpu.get_cpu_capability()))
