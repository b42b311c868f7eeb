"""uint8 batches to the network: cropped, shifted, mirrored, normalised on the device of use.

On a GPU the images lie there where they fit, else each batch is copied from pinned memory on a
side stream while the one before is in use. Order and augmentation depend on (seed, epoch)
alone; CPU and GPU give the same bits.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

CHUNK = (
    8  # pictures converted at once: a chunk, uint8 and float, stays in the processor's cache
)
RESIDENT_SHARE = (
    0.25  # of the GPU's free memory that the images may take; the rest is the training's
)


def normalize(images, mean, std, device="cpu") -> Tensor:
    """The images as a network takes them: float32 (N, 3, H, W), (image / 255 - mean) / std.

    images: uint8 (N, H, W, 3); mean, std: three numbers each (red, green, blue) in units of
    0..1. Raises ValueError for another type or shape, a std that is not positive, a device that
    is not there.
    """
    images, device = _checked(images), _checked_device(device)
    vectors, size = _row_vectors(mean, std, images.shape[2], device), images.shape[1:3]
    plan = np.zeros((4, len(images)), np.int64)
    plan[0] = np.arange(len(images))
    if device.type == "cpu":
        return _windows_on_host(images, plan, size, 0, *vectors)
    return _windows(torch.from_numpy(np.array(images)).to(device), plan[1:], size, *vectors)


class Loader:
    """Batches of an epoch: normalized float32 (B, 3, h, w) channels_last, labels int64 (B,).

    images: uint8 (N, H, W, 3), memory-mapped or not; labels (N,); mean, std: as in `normalize`.
    shuffle=True is training: random order, a square of `crop` px at a random place, moved by up
    to `shift` px each way (beyond its border the picture goes on mirrored: reflection), every
    second picture mirrored if `flip`. shuffle=False is measuring: given order, central crop, no
    shift, no mirroring. The last batch may be smaller. resident: keep the images on the GPU;
    None: if they take under a quarter of its free memory. Raises ValueError, before anything is
    copied, for arguments that do not fit the images.
    """

    def __init__(self, images, labels, batch_size, *, mean, std, crop=None, shift=0, flip=False,
                 device="cpu", seed=0, shuffle=True, resident=None):  # fmt: skip
        self.images, self.device = _checked(images), _checked_device(device)
        (count, *size), side = self.images.shape[:3], min(self.images.shape[1:3])
        self.size = tuple(size) if crop is None else (crop, crop)
        _within("number of labels", len(labels), count, count)
        _within("batch_size", batch_size, 1, 2**31)
        _within("crop", side if crop is None else crop, 1, side)
        _within("shift", shift, 0, side - 1)
        self.batch_size, self.shift, self.flip = batch_size, shift if shuffle else 0, flip
        self.seed, self.epoch, self.shuffle = seed, 0, shuffle
        self.vectors = _row_vectors(mean, std, self.size[1], self.device)
        self.labels = torch.as_tensor(np.asarray(labels), dtype=torch.int64)
        if resident is None and self.device.type == "cuda":
            resident = (
                self.images.nbytes < RESIDENT_SHARE * torch.cuda.mem_get_info(self.device)[0]
            )
        self.pixels = (
            torch.from_numpy(np.array(self.images)).to(self.device) if resident else None
        )

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.batches()

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that comes next; the same number gives the same batches."""
        self.epoch = epoch

    def plan(self) -> np.ndarray:
        """What the epoch does: int64 (4, N): image number, top, left of its window, mirror."""
        count, room = len(self.images), np.subtract(self.images.shape[1:3], self.size)[:, None]
        if not self.shuffle:
            corners = np.repeat(room // 2, count, axis=1)
            return np.stack([np.arange(count), *corners, np.zeros(count, np.int64)])
        draw = np.random.default_rng([self.seed, self.epoch])
        order, corners = draw.permutation(count), draw.integers(0, room + 1, (2, count))
        corners += draw.integers(-self.shift, self.shift + 1, (2, count))
        return np.stack([order, *corners, draw.integers(0, 2, count) * bool(self.flip)])

    def batches(self, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of the epoch from number `start` on, the same as in the whole epoch."""
        plan, count = self.plan(), self.batch_size
        steps = [plan[:, k * count : (k + 1) * count] for k in range(start, len(self))]
        pixels = self._pixels([step[0] for step in steps])
        for step in steps:
            if pixels is None:
                made = _windows_on_host(self.images, step, self.size, self.shift, *self.vectors)
            else:
                made = _windows(next(pixels), step[1:], self.size, *self.vectors)
            yield made, self.labels[step[0]].to(self.device)

    def _pixels(self, groups) -> Iterator[Tensor] | None:
        """The images of each batch on the device; None: they are there, on the CPU."""
        if self.pixels is not None:
            return (self.pixels[torch.from_numpy(group).to(self.device)] for group in groups)
        return (
            None if self.device.type == "cpu" else _streamed(self.images, groups, self.device)
        )


def _streamed(images: np.ndarray, groups: list, device: torch.device) -> Iterator[Tensor]:
    """For each group of numbers its images on the device; the next is copied meanwhile."""
    cuda = device.type == "cuda"
    shape = (max(map(len, groups), default=0), *images.shape[1:])
    buffers = [torch.empty(shape, dtype=torch.uint8, pin_memory=cuda) for _ in range(2)]
    side, left = torch.cuda.Stream(device) if cuda else None, [None, None]

    def send(k: int) -> Tensor:
        if left[k % 2] is not None:
            left[k % 2].synchronize()  # until the copy before last has left this buffer
        buffer = buffers[k % 2][: len(groups[k])]
        np.take(images, groups[k], axis=0, out=buffer.numpy(), mode="clip")  # "raise" copies
        with torch.cuda.stream(side):
            pixels = buffer.to(device, non_blocking=True, copy=True)
            left[k % 2] = side.record_event() if cuda else None
        return pixels

    ahead = [send(0)] if groups else []
    for k in range(len(groups)):
        pixels, arrived = ahead.pop(), left[k % 2]
        ahead += [send(k + 1)] if k + 1 < len(groups) else []
        if cuda:
            current = torch.cuda.current_stream(device)
            current.wait_event(arrived)
            pixels.record_stream(current)  # its memory stays taken until then
        yield pixels


def _windows(
    pixels: Tensor, windows: np.ndarray, size, scale: Tensor, offset: Tensor
) -> Tensor:
    """Cut, mirrored and normalised by one gather: pixels uint8 (B, H, W, 3) -> (B, 3, h, w)."""
    top, left, mirror = torch.from_numpy(windows.copy()).to(pixels.device)
    rows, columns = (torch.arange(side, device=pixels.device) for side in size)
    columns = torch.where(mirror[:, None] > 0, columns.flip(0), columns)
    rows = _reflect(top[:, None] + rows, pixels.shape[1])
    columns = _reflect(left[:, None] + columns, pixels.shape[2])
    batch = torch.arange(len(pixels), device=pixels.device)
    cut = pixels[batch[:, None, None], rows[:, :, None], columns[:, None, :]]
    made = cut.flatten(2).float().mul_(scale).add_(offset)  # (B, h, w * 3)
    return made.view(cut.shape).permute(0, 3, 1, 2)


def _reflect(index, side: int):
    return (side - 1) - abs((side - 1) - abs(index))  # -1 -> 1, side -> side - 2


def _windows_on_host(
    images, plan: np.ndarray, size, shift: int, scale: Tensor, offset: Tensor
) -> Tensor:
    """As `_windows`, picture by picture: on a CPU a gather for the batch costs far more."""
    (height, width), count = size, plan.shape[1]
    rows, columns = (
        _reflect(np.arange(-shift, side + shift), side) for side in images.shape[1:3]
    )
    out, buffer = (
        torch.empty(count, height, width * 3),
        np.empty((CHUNK, height, width, 3), np.uint8),
    )
    for first in range(0, count, CHUNK):
        steps = plan[:, first : first + CHUNK].T.tolist()
        for window, (number, top, left, mirror) in zip(buffer, steps, strict=False):
            if shift or mirror:  # `take` by columns is faster here than a slice with step -1
                across = columns[left + shift :][:width]
                lines = images[number][rows[top + shift :][:height]]
                np.take(
                    lines, across[::-1] if mirror else across, axis=1, out=window, mode="clip"
                )
            else:
                window[:] = images[number][top : top + height, left : left + width]
        chunk = torch.from_numpy(buffer[: len(steps)]).flatten(2)
        out[first : first + CHUNK].copy_(chunk).mul_(scale).add_(offset)
    return out.view(count, height, width, 3).permute(0, 3, 1, 2)


def _row_vectors(mean, std, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Factor and summand tiled over a row of pixels: a loop over 3 would not vectorise."""
    mean, std = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    if mean.shape != (3,) or std.shape != (3,) or not (std > 0).all():
        raise ValueError(
            f"mean {mean.tolist()}, std {std.tolist()}: three numbers each, std above 0"
        )
    scale, offset = (
        np.tile(row, width).astype(np.float32) for row in (1 / (255 * std), -mean / std)
    )
    return torch.from_numpy(scale).to(device), torch.from_numpy(offset).to(device)


def _within(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} {value}: valid for these images is {low} to {high}")


def _checked(images) -> np.ndarray:
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not images.size:
        raise ValueError(
            f"images are {images.dtype} {images.shape}: needed are uint8 (N, H, W, 3), N over 0"
        )
    return images


def _checked_device(device) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        valid = ", ".join(["cpu", *(f"cuda:{k}" for k in range(torch.cuda.device_count()))])
        raise ValueError(f"device {str(device)!r} is not there; valid: {valid}") from error
