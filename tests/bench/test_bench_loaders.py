"""Images per CPU second of the loader beside torchvision's DataLoader with v2 transforms (no worker processes)."""

import statistics
import time

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from zfkit.loaders import Loader

pytestmark = pytest.mark.bench
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Pictures(Dataset):
    def __init__(self, images, crop):
        self.images = torch.from_numpy(images).permute(0, 3, 1, 2)
        self.transform = v2.Compose(
            [
                v2.RandomCrop(crop),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(MEAN, STD),
            ]
        )

    def __len__(self):
        return len(self.images)

    def __getitem__(self, number):
        return self.transform(self.images[number]), number


def images_per_cpu_second(batches, count):
    start = time.process_time()
    for normalized, _ in batches:
        assert normalized.dtype == torch.float32
    return count / (time.process_time() - start)


@pytest.mark.parametrize("side, crop, count, batch_size, bar", [(72, 64, 2048, 128, 4.0), (256, 224, 192, 32, 1.5)])
def test_loader_beside_dataloader(side, crop, count, batch_size, bar):
    torch.set_num_threads(1)
    images = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    ours = Loader(images, np.arange(count), batch_size, mean=MEAN, std=STD, crop=crop, flip=True)
    theirs = DataLoader(Pictures(images, crop), batch_size, shuffle=True)
    rates = [(images_per_cpu_second(ours, count), images_per_cpu_second(theirs, count)) for _ in range(6)][1:]
    ratio = statistics.median(a / b for a, b in rates)
    mine, other = (statistics.median(rate) for rate in zip(*rates, strict=True))
    print(f"\n{side} -> {crop} px: zfkit {mine:.0f}, DataLoader + v2 {other:.0f} images/CPU s, ratio {ratio:.2f}")
    assert ratio >= bar
