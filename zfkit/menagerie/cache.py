"""Whole sets on disk, images or scenes: drawn once on all cores, then memory-mapped."""

import io
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm.auto import tqdm

from .scene import NAMES, Scene, check, render

CHUNK = 64  # pictures that a worker draws at a time
BAR_FROM = (
    2000  # images: fewer take seconds, and a bar would be another output of a chapter's cell
)
DRAWING = ("animals", "backdrops", "raster", "scene", "textures", "things")
MAPS = ("parts", "decoys", "visible", "amodal")  # of a scene, each uint8 [S, S]
KINDS = (
    ".npy",
    "-maps.npy",
    "-scenes.jsonl",
)  # files of a set: images, maps, the rest of each scene
WHOLE = set()  # marks of files that this process has drawn, or found whole


def cached(seed, n, size=64, level="standard", folder=None):
    """(images uint8 [n, S, S, 3] memory-mapped read-only, labels int64 [n]) of pictures 0..n-1.

    Equal to dataset(seed, n, size, level). Drawn at the first call and kept as one file under
    folder/menagerie (default: the cache folder), whose name holds a hash of the drawing
    sources; a larger set's first pictures serve too, and a damaged file is drawn again. Several
    processes may start at once. Raises ValueError for a bad argument, OSError in one line,
    nothing left behind, if it cannot write.
    """
    images = np.load(kept(seed, n, size, level, folder, KINDS[:1]).path(".npy"), mmap_mode="r")
    return images[:n], np.arange(n) % len(NAMES)


def cached_scenes(seed, n, size=64, level="standard", folder=None):
    """Scenes 0..n-1 of a seed, equal to those of `render`, from files as `cached` keeps images.

    Their arrays are read-only views of memory-mapped files. Errors as `cached`.
    """
    whole = kept(seed, n, size, level, folder, KINDS)
    images, maps = (np.asarray(np.load(whole.path(kind), mmap_mode="r")) for kind in KINDS[:2])
    with open(whole.path(KINDS[2]), "rb") as lines:
        return [
            scene_of(k, images[k], maps[k], line)
            for k, line in zip(range(n), lines, strict=False)
        ]


class Set(NamedTuple):
    """What is drawn, and the folder that keeps it."""

    seed: int
    n: int
    size: int
    level: str
    folder: Path

    def path(self, kind):
        """The file of one of KINDS."""
        name = f"{self.level}-{self.size}px-seed{self.seed}-{self.n}-{source_hash()}{kind}"
        return self.folder / "menagerie" / name


def kept(seed, n, size, level, folder, kinds) -> Set:
    """The smallest whole set on disk of n pictures or more; drawn if there is none."""
    from ..files import cache_dir  # here: a worker needs no torch, which files imports

    check(0, size, None, None, level, None, (), "all")
    if int(n) != n or n < 1:
        raise ValueError(f"n {n!r} is not a whole number of at least 1")
    wanted = Set(seed, int(n), int(size), level, Path(folder) if folder else cache_dir())
    beside = wanted.path(".npy").parent.glob(wanted._replace(n="*").path(".npy").name)
    counts = sorted(int(path.name.split("-")[-2]) for path in beside)
    for count in (count for count in counts if count >= n):
        if not missing(wanted._replace(n=count), kinds):
            return wanted._replace(n=count)
    write(wanted, missing(wanted, kinds))
    return wanted


@lru_cache(maxsize=1)
def source_hash():
    """Twelve digits that change with the drawing."""
    sources = [(Path(__file__).parent / f"{name}.py").read_bytes() for name in DRAWING]
    return sha256(b"".join(sources)).hexdigest()[:12]


def missing(wanted, kinds):
    """The kinds of a set that are not there, or not whole."""
    marks = {kind: mark(wanted, kind) for kind in kinds}
    good = {
        kind for kind in kinds if marks[kind] and (marks[kind] in WHOLE or intact(wanted, kind))
    }
    return tuple(kind for kind in kinds if kind not in good)


def mark(wanted, kind):
    """What tells a file from its older self: time and length; None where there is none."""
    try:
        state = os.stat(wanted.path(kind))
    except OSError:
        return None
    return wanted, kind, state.st_mtime_ns, state.st_size


def intact(wanted, kind):
    """Whether a file is whole and ends with the picture it should; noted in WHOLE."""
    start, last = head(wanted, kind), last_picture(wanted)[KINDS.index(kind)]
    try:
        with open(wanted.path(kind), "rb") as file:
            lines = wanted.n if kind != KINDS[2] else sum(1 for _ in file)
            file.seek(0)
            begins = file.read(len(start)) == start
            length = file.seek(0, os.SEEK_END)
            file.seek(max(0, length - len(last)))
            ends = file.read() == last
    except OSError:
        return False
    full = kind == KINDS[2] or length == len(start) + wanted.n * len(last)
    if begins and ends and full and lines == wanted.n:
        WHOLE.add(mark(wanted, kind))
    return mark(wanted, kind) in WHOLE


@lru_cache(maxsize=64)
def last_picture(wanted):
    """What `drawn` gives of the last picture of a set."""
    return drawn(wanted, wanted.n - 1)


def head(wanted, kind):
    """The bytes before the first picture of a file."""
    if kind == KINDS[2]:
        return b""
    shape = (
        (wanted.size, wanted.size, 3)
        if kind == KINDS[0]
        else (len(MAPS), wanted.size, wanted.size)
    )
    header, file = (
        {"descr": "|u1", "fortran_order": False, "shape": (wanted.n, *shape)},
        io.BytesIO(),
    )
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


def write(wanted, kinds):
    """Draw into files of their own, then rename them: readers see all of each or nothing."""
    from ..files import replacing

    n, title = wanted.n, f"drawing the menagerie, {wanted.size} px"
    try:
        with ExitStack() as stack:
            files = {}
            for kind in kinds:
                part = stack.enter_context(replacing(wanted.path(kind)))
                files[KINDS.index(kind)] = stack.enter_context(open(part, "wb"))
                files[KINDS.index(kind)].write(head(wanted, kind))
            bar = stack.enter_context(
                tqdm(total=n, desc=title, unit="image", disable=n < BAR_FROM)
            )
            for start, parts in zip(range(0, n, CHUNK), chunks(wanted)):
                for place, file in files.items():
                    file.write(parts[place])
                bar.update(min(CHUNK, n - start))
        WHOLE.update(mark(wanted, kind) for kind in kinds)
    except OSError as error:
        raise OSError(
            f"cannot write {wanted.path(kinds[0])}: {error.strerror or error}"
        ) from None


def chunks(wanted):
    """What `drawn` gives of each chunk in turn, on every core that this process may use."""
    starts = range(0, wanted.n, CHUNK)
    allowed = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    )
    done = 0
    if (cores := min(allowed, len(starts))) > 1 and sys.executable:
        for parts in by_workers(wanted, starts, cores):
            yield parts
            done += 1
    for start in starts[done:]:  # those that no worker drew
        yield drawn(wanted, start)


def by_workers(wanted, starts, cores):
    """The chunks from processes of their own, which import nothing of the caller's.

    Worker k draws chunks k, k + cores, ... into a pipe; ends early if one of them dies.
    """
    workers = []
    try:
        for first in range(cores):
            workers.append(started(wanted, starts[first::cores]))
        for k in range(len(starts)):
            lengths = workers[k % cores].stdout.readline().split()
            parts = [workers[k % cores].stdout.read(int(length)) for length in lengths]
            if len(parts) < len(KINDS) or [*map(len, parts)] != [*map(int, lengths)]:
                return
            yield parts
    except (OSError, ValueError):  # none starts here, or another writes to its pipe
        return
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
            worker.stdout.close()


def started(wanted, starts):
    """A process that draws the chunks at these starts into a pipe, its standard output."""
    places = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(places)}
    share = json.dumps([*wanted[:4], [*starts]], default=int)
    pipes = dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    command = [sys.executable, "-P", "-m", "zfkit.menagerie", share]
    return subprocess.Popen(command, env=env, **pipes)


def send(share, out):
    """A worker's part: each chunk of its share as a line of lengths and the bytes."""
    *what, starts = json.loads(share)
    for start in starts:
        parts = drawn(Set(*what, Path()), start, CHUNK)
        out.write(b" ".join(b"%d" % len(part) for part in parts) + b"\n" + b"".join(parts))
        out.flush()


def drawn(wanted, start, count=CHUNK):
    """The bytes of some pictures from number `start` on, as the files of KINDS hold them."""
    numbers = range(start, min(start + count, wanted.n))
    scenes = [render(wanted.seed, k, wanted.size, level=wanted.level) for k in numbers]
    maps = [
        getattr(scene, name).astype(np.uint8).tobytes() for scene in scenes for name in MAPS
    ]
    lines = [
        json.dumps([scene.keypoints, scene.pose, scene.background]) + "\n" for scene in scenes
    ]
    images = b"".join(scene.image.tobytes() for scene in scenes)
    return images, b"".join(maps), "".join(lines).encode()


def scene_of(number, image, maps, line):
    """The scene that one row of each file describes."""
    keypoints, pose, background = json.loads(line)
    keypoints = {name: tuple(point) for name, point in keypoints.items()}
    parts, decoys, visible, amodal = maps
    label, masks = number % len(NAMES), (visible.view(bool), amodal.view(bool))
    return Scene(image, label, parts, decoys, *masks, keypoints, pose, background)
