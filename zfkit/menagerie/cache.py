"""Whole sets on disk: drawn once on all cores, then memory-mapped."""

import hashlib
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from .scene import NAMES, check, dataset, render

HERE, CHUNK = Path(__file__).parent, 64
BAR_FROM = 2000  # images: fewer are drawn in seconds, and a bar would be another output of a chapter's cell
DRAWING = ("animals", "backdrops", "raster", "scene", "textures", "things")


def cached(seed, n, size=64, level="standard", folder=None):
    """(images uint8 [n, S, S, 3] memory-mapped read-only, labels int64 [n]), equal to dataset(seed, n, size, level).

    Drawn at the first call and kept as one file under folder/menagerie (default: ZFKIT_CACHE, else data/cache of the
    repository), whose name holds a hash of the drawing sources; a damaged file is drawn again. Several processes may
    start at once. Raises ValueError for a bad argument, OSError in one line, nothing left behind, if it cannot write.
    """
    check(0, size, None, None, level, None, (), "all")
    if int(n) != n or n < 1:
        raise ValueError(f"n {n!r} is not a whole number of at least 1")
    root = Path(folder or os.environ.get("ZFKIT_CACHE") or HERE.parents[1] / "data" / "cache")
    path = root / "menagerie" / f"{level}-{size}px-seed{seed}-{n}-{source_hash()}.npy"
    if not intact(path, seed, n, size, level):
        write(path, seed, n, size, level)
    return np.load(path, mmap_mode="r"), np.arange(n) % len(NAMES)


def source_hash():
    return hashlib.sha256(b"".join((HERE / f"{name}.py").read_bytes() for name in DRAWING)).hexdigest()[:12]


def intact(path, seed, n, size, level):
    """Whether the file is there, whole, and ends with the picture it should."""
    try:
        images = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return False
    if images.shape != (n, size, size, 3) or images.dtype != np.uint8:
        return False
    return bool((images[-1] == render(seed, n - 1, size, level=level).image).all())


def write(path, seed, n, size, level):
    """Draw into a file of its own, then rename it: readers see all of it or nothing."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            temporary = Path(file.name)
            header = {"descr": "|u1", "fortran_order": False, "shape": (n, size, size, 3)}
            np.lib.format.write_array_header_1_0(file, header)
            with tqdm(total=n, desc=f"drawing the menagerie, {size} px", unit="image", disable=n < BAR_FROM) as bar:
                for images in chunks(seed, n, size, level):
                    file.write(images.tobytes())
                    bar.update(len(images))
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        if temporary:
            temporary.unlink(missing_ok=True)


def draw(job):
    return dataset(*job)[0]


def chunks(seed, n, size, level):
    """Images of consecutive chunks, drawn on every core that this process may use."""
    jobs = [(seed, min(CHUNK, n - start), size, level, start) for start in range(0, n, CHUNK)]
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    done, cores = 0, min(allowed, len(jobs))
    if cores > 1:
        pool = ProcessPoolExecutor(cores, mp_context=get_context("spawn"))  # fork is unsafe beside torch's threads
        try:
            for images in pool.map(draw, jobs):
                yield images
                done += 1
        except BrokenProcessPool:  # e.g. a script without a __main__ guard: go on alone
            pass
        finally:
            pool.shutdown(cancel_futures=True)
    for job in jobs[done:]:
        yield draw(job)
