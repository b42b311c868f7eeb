"""Is everything there that the chapters need? A line a check, and what to do if it fails."""

import os
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..files import cache_dir, data_root, read_json, repo_root, weights_folder

PACKAGES = ("torch", "torchvision", "scipy", "ipywidgets", "jupyterlab", "papermill", "sphinx")


def doctor() -> list[tuple[bool, str]]:
    """What was checked: right or wrong, and a line; what to do stands behind "; do "."""
    python = sys.version_info >= (3, 11)
    lines = [(python, f"python {sys.version.split()[0]}; do install Python 3.11 or newer")]
    checks = (kernel, widgets, vision, space, data, cache, weights)
    return lines + [package(name) for name in PACKAGES] + [check() for check in checks]


def package(name: str) -> tuple[bool, str]:
    """Is a package installed?"""
    try:
        return True, f"{name} {version(name)}"
    except PackageNotFoundError:
        return False, f"{name} is missing; do `make install`"


def kernel() -> tuple[bool, str]:
    """Does the kernel python3 start this very interpreter?"""
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    try:
        program = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except NoSuchKernel:
        return False, "kernel python3 is missing; do `make install`"
    folder, ours = Path(program).parent, Path(sys.executable).parent
    here = Path(program).name == program or folder.is_dir() and os.path.samefile(folder, ours)
    remedy = "set JUPYTER_PREFER_ENV_PATH=1 or remove the stray kernel"
    return here, f"kernel python3 is {program}; do {remedy}"


def widgets() -> tuple[bool, str]:
    """Is the part of ipywidgets there that JupyterLab loads?"""
    folder = "share/jupyter/labextensions/@jupyter-widgets/jupyterlab-manager"
    remedy = "`pip install jupyterlab_widgets` in this environment"
    return (Path(sys.prefix) / folder).is_dir(), f"widgets in JupyterLab; do {remedy}"


def vision() -> tuple[bool, str]:
    """Do torch and torchvision belong together, and is there a GPU?"""
    try:
        import torch
        import torchvision  # noqa: F401 (its import fails where the two builds differ)
    except (ImportError, RuntimeError) as error:
        said = str(error).splitlines()[0]
        return False, f"torch with torchvision: {said}; do install builds that belong together"
    if not torch.cuda.is_available():
        return True, "device: no GPU, chapters run on the CPU"
    return True, f"device: {torch.cuda.get_device_name()}"


def space() -> tuple[bool, str]:
    """Is there room for caches and a site?"""
    free = shutil.disk_usage(repo_root()).free / 2**30
    return free > 2, f"disk: {free:.0f} GiB free; do make room, 2 GiB are needed"


def data() -> tuple[bool, str]:
    """Which photographs are at hand?"""
    root = data_root()
    if root is None:
        return True, "data: no ZFKIT_DATA, chapters use the drawings"
    if not root.is_dir():
        remedy = "set it to where the real sets lie, or unset it"
        return False, f"data: ZFKIT_DATA, {root}, is no folder; do {remedy}"
    return True, f"data: {', '.join(sorted(path.name for path in root.iterdir())) or 'none'}"


def cache() -> tuple[bool, str]:
    """Can things be kept that take time to make?"""
    folder = cache_dir()
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        return False, f"cache: cannot write to {folder}; do set ZFKIT_CACHE to where you may"
    drawn = any(folder.glob("*menagerie*")) if folder.is_dir() else False
    name = folder.relative_to(repo_root()) if folder.is_relative_to(repo_root()) else folder
    return True, f"cache: {name}, drawings {'kept' if drawn else 'made when first asked for'}"


def weights() -> tuple[bool, str]:
    """Are the shipped weights there, each with its sidecar?"""
    paths = sorted(weights_folder().glob("*.safetensors"))
    names = [path.stem for path in paths if described(path)]
    remedy = "`git checkout data/weights` or `train`"
    return bool(names), f"weights: {', '.join(names) or 'none'}; do {remedy}"


def described(path: Path) -> bool:
    """Is there a readable sidecar beside a weight file?"""
    try:
        return bool(read_json(path.with_suffix(".json")))
    except ValueError:
        return False
