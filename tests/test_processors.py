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

LAYER, UNITS, SEEN = "conv5", 12, 1e-3
SWEPT = ("probability", "label", "activity")
NARROW = dict(ATEN_CPU_CAPABILITY="avx2", ONEDNN_MAX_CPU_ISA="AVX2")


def computed(threads: int, onednn: bool) -> dict[str, torch.Tensor]:
    """Maps, strongest units, their projections and sweeps of the square, of a trained network on drawings."""
    net, card = load_network("zfnet-menagerie")
    images, labels, _ = load_images("menagerie", limit=16)
    normalized, before = card.normalize(images), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.backends.mkldnn.flags(enabled=onednn):
            found = feature_maps(net, normalized, ["conv1", "conv3", LAYER, "fc8"])
            best = strongest(net, images, [LAYER], 3, card.normalize)[LAYER].of(range(UNITS))
            found |= {f"strongest {field}": values for field, values in best._asdict().items()}
            unit = torch.arange(UNITS), torch.stack([best.row[0], best.col[0]], 1)
            for route in ("mirror", "gradient"):
                found[f"projections {route}"] = project(net, normalized[best.image[0]], LAYER, *unit, route=route)
            for number in (0, 1):
                image, label = normalized[number : number + 1], int(labels[number])
                maps = occlusion_maps(net, image, label, 24, 28, layer=LAYER, channel=5)
                found |= {
                    f"square {number} {field}": values for field, values in maps._asdict().items() if field in SWEPT
                }
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
    subprocess.run([sys.executable, __file__, folder], env=env, check=True, timeout=120)
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
