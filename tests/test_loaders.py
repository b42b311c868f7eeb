"""The loader against a picture-by-picture reference written with torchvision's functions and plain indexing."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from zfkit import loaders
from zfkit.loaders import Loader, normalize

MEAN, STD = (0.48, 0.45, 0.41), (0.21, 0.22, 0.23)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")


def pictures(count=21, height=20, width=24):
    return np.random.default_rng(3).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def loader(images, batch_size=8, **options):
    return Loader(images, np.arange(len(images)) % 5, batch_size, mean=MEAN, std=STD, **options)


def by_torchvision(picture):
    return tv.normalize(tv.to_dtype(tv.to_image(picture), torch.float32, scale=True), MEAN, STD)


def window(picture, top, left, mirror, size, shift):
    """The same window by padding the whole picture first."""
    padded = np.pad(picture, ((shift, shift), (shift, shift), (0, 0)), mode="reflect")
    cut = padded[top + shift : top + shift + size[0], left + shift : left + shift + size[1]]
    return np.ascontiguousarray(cut[:, ::-1] if mirror else cut)


def test_normalize_is_torchvisions_to_rounding_and_channels_last():
    images = pictures()
    normalized = normalize(images, MEAN, STD)
    assert normalized.shape == (21, 3, 20, 24) and normalized.dtype == torch.float32
    assert normalized.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(normalized, torch.stack([by_torchvision(p) for p in images]), rtol=0, atol=2e-6)


@pytest.mark.parametrize("options", [{}, {"crop": 16}, {"shift": 5}, {"crop": 13, "shift": 7, "flip": True}])
def test_batches_are_the_windows_of_the_plan(options):
    images = pictures()
    feed = loader(images, seed=4, **options)
    plan, size = feed.plan(), feed.size
    if "flip" in options:
        assert 0 < plan[3].sum() < len(images)  # both kinds occur
    if "shift" in options:
        assert plan[1].min() < 0 and plan[1].max() > 20 - size[0]  # over both borders
    normalized, labels = (torch.cat(parts) for parts in zip(*feed, strict=True))
    expected = [window(images[n], *rest, size, feed.shift) for n, *rest in plan.T.tolist()]
    torch.testing.assert_close(normalized, torch.stack([by_torchvision(p) for p in expected]), rtol=0, atol=2e-6)
    assert labels.tolist() == (plan[0] % 5).tolist() and labels.dtype == torch.int64
    assert sorted(plan[0]) == list(range(21)) and list(plan[0]) != list(range(21))


@pytest.mark.parametrize("options", [{"crop": 16, "flip": True}, {"shift": 5, "flip": True}, {"shuffle": False}])
def test_gather_and_stream_give_the_bits_of_the_slices(options):
    images = pictures()
    by_slices = list(loader(images, **options))
    for other in [loader(images, resident=True, **options), streaming(images, **options)]:
        for (normalized, labels), (again, labels_again) in zip(by_slices, other, strict=True):
            assert torch.equal(normalized, again) and torch.equal(labels, labels_again)
            assert again.is_contiguous(memory_format=torch.channels_last)


def streaming(images, **options):
    """The batches as a GPU gets them whose memory is too small, here on the CPU."""
    feed = loader(images, **options)
    steps = [feed.plan()[:, k : k + 8] for k in range(0, len(images), 8)]
    for step, pixels in zip(steps, loaders._streamed(images, [s[0] for s in steps], feed.device), strict=True):
        yield loaders._windows(pixels, step[1:], feed.size, *feed.vectors), feed.labels[step[0]]


def test_streamed_batches_outlive_their_buffers():
    images = pictures(40)
    kept = list(loaders._streamed(images, list(np.arange(40).reshape(10, 4)), torch.device("cpu")))
    assert len(kept) == 10
    assert np.array_equal(torch.cat(kept).numpy(), images)  # two buffers, ten batches: none overwritten


def test_order_and_windows_depend_on_seed_and_epoch_alone():
    options = dict(crop=16, shift=2, flip=True)
    feed, twin = loader(pictures(), **options), loader(pictures(), 5, **options)
    first = feed.plan()
    torch.manual_seed(1), np.random.seed(1)
    list(feed)
    assert np.array_equal(feed.plan(), first) and np.array_equal(twin.plan(), first)
    feed.set_epoch(1)
    assert not np.array_equal(feed.plan(), first)
    assert not np.array_equal(loader(pictures(), seed=1, **options).plan(), first)
    feed.set_epoch(0)
    assert np.array_equal(feed.plan(), first)


def test_a_later_start_gives_the_rest_of_the_epoch():
    feed = loader(pictures(), crop=16, flip=True)
    whole, rest = list(feed), list(feed.batches(start=2))
    assert len(whole) == len(feed) == 3 and len(rest) == 1 and len(rest[0][0]) == 5
    assert torch.equal(whole[2][0], rest[0][0])


def test_measuring_takes_the_centre_in_the_given_order():
    images = pictures()
    feed = loader(images, crop=16, shift=3, flip=True, shuffle=False)
    normalized, labels = (torch.cat(parts) for parts in zip(*feed, strict=True))
    assert torch.equal(normalized, normalize(images[:, 2:18, 4:20], MEAN, STD))
    assert labels.tolist() == [k % 5 for k in range(21)]


def test_memory_mapped_read_only_images(tmp_path):
    np.save(tmp_path / "images.npy", pictures())
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    for (a, _), (b, _) in zip(loader(mapped, flip=True), loader(pictures(), flip=True), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(normalize(mapped, MEAN, STD), normalize(pictures(), MEAN, STD))


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(batch_size=0), "batch_size 0"),
        (dict(crop=21), "crop 21: valid for these images is 1 to 20"),
        (dict(crop=0), "crop 0"),
        (dict(shift=20), "shift 20"),
        (dict(shift=-1), "shift -1"),
        (dict(device="cuda:77"), "'cuda:77' is not there; valid: cpu"),
        (dict(device="gpu"), "'gpu' is not there"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(options, words):
    with pytest.raises(ValueError, match=words) as caught:
        loader(pictures(), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("images", [pictures().astype(np.float32), pictures()[..., :2], pictures()[:0], pictures()[0]])
def test_images_of_another_kind_are_refused(images):
    with pytest.raises(ValueError, match="needed are uint8"):
        normalize(images, MEAN, STD)


def test_labels_and_scale_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="number of labels 20"):
        Loader(pictures(), np.zeros(20), 8, mean=MEAN, std=STD)
    with pytest.raises(ValueError, match="std above 0"):
        normalize(pictures(), MEAN, (0.2, 0.0, 0.2))
    with pytest.raises(ValueError, match="three numbers"):
        normalize(pictures(), (0.5,), (0.2,))


@needs_gpu
@pytest.mark.parametrize("resident", [True, False])
def test_a_gpu_gives_the_bits_of_the_cpu(resident):
    options = dict(crop=48, shift=3, flip=True, seed=2)
    images = pictures(150, 64, 64)
    gpu = loader(images, device="cuda", resident=resident, **options)
    torch.cuda.current_stream().synchronize()
    kept = list(gpu)  # no synchronisation between batches: a buffer filled too early would show
    for (a, labels), (b, labels_gpu) in zip(loader(images, **options), kept, strict=True):
        assert b.device.type == "cuda" and b.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(a, b.cpu()) and torch.equal(labels, labels_gpu.cpu())


@needs_gpu
def test_images_lie_on_the_gpu_if_they_fit():
    assert loader(pictures(), device="cuda").pixels.device.type == "cuda"
    assert torch.equal(normalize(pictures(), MEAN, STD, "cuda").cpu(), normalize(pictures(), MEAN, STD))
