"""Chapters found, their parameters checked, their runs started side by side and read back."""

import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from ..files import repo_root
from ..verdicts import check_seed, recorded
from ..verdicts import parameters_of as parameters
from . import pages

ROOT = repo_root()
RESULTS = ROOT / "build" / "results"  # where the chapters' verdicts are recorded
TYPES = {"int": int, "float": float, "str": str}
# set for a chapter's kernel whatever the shell says: figures in the notebook, this environment
KERNEL = {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "PYTHONPATH": str(ROOT)}
KERNEL |= {"JUPYTER_PREFER_ENV_PATH": "1"}
FOLDERS = (
    "ZFKIT_DATA",
    "ZFKIT_CACHE",
)  # which a chapter, run elsewhere, must find all the same


@dataclass
class Run:
    """One execution of a chapter: where it is, how long it took, what it found, what broke."""

    source: Path
    target: Path
    seconds: float = 0.0
    verdicts: dict[int, str] = field(default_factory=dict)
    results: list[Path] = field(default_factory=list)
    error: str = ""


def settings(sources: list[Path], pairs: list[str]) -> dict[Path, dict]:
    """Per chapter the typed values of NAME=VALUE pairs, all checked before anything runs.

    Relative paths are read from the working folder. ValueError in one line: no "=", a name that
    a chapter lacks, a value of another type, or one with which no chapter can start.
    """
    values = {path: {} for path in sources}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ValueError(f"--set {pair!r} is not NAME=VALUE")
        for path in sources:
            known = parameters(path)
            if name not in known:
                names = ", ".join(known)
                raise ValueError(f"{path.stem}: unknown parameter {name!r}; known: {names}")
            try:
                values[path][name] = checked(name, typed(name, text, known[name][0]))
            except ValueError as error:
                raise ValueError(f"{path.stem}: {error}") from None
    return values


def typed(name: str, text: str, kind: str) -> object:
    """The value that `text` stands for in a parameter annotated int, float, bool or str."""
    try:
        if kind == "bool":
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        return TYPES.get(kind, str)(text)
    except (ValueError, KeyError):
        raise ValueError(f"{name} must be {kind}, got {text!r}") from None


def checked(name: str, value):
    """A value as a chapter takes it: folders and files absolute; ValueError if it cannot be."""
    if name == "SEED":
        check_seed(value)
    if name == "DEVICE" and not re.fullmatch(r"cpu|mps|cuda(:\d+)?", value):
        raise ValueError(f"DEVICE must be cpu, cuda, cuda:N or mps, got {value!r}")
    if name == "OUT" and value:
        return str(Path(value).expanduser().absolute())
    if name == "MY_IMAGE" and value:
        path = Path(value).expanduser().absolute()
        if not path.is_file():
            raise ValueError(f"MY_IMAGE={value}: there is no file {path}")
        return str(path)
    if isinstance(value, str) and value.startswith("folder:"):
        path = Path(value.removeprefix("folder:")).expanduser().absolute()
        if not path.is_dir():
            raise ValueError(f"{name}={value}: there is no folder {path}")
        return f"folder:{path}"
    return value


def run_chapter(
    source: Path, target: Path, values: dict, *, threads: int = 1, timeout: int = 600, tick=None
) -> Run:
    """The run of one chapter in processes of its own; a failure is in its `error`.

    values: typed parameters, already checked. timeout: seconds a cell. tick() is called for
    every cell. The executed notebook is kept at `target` also when a cell fails.
    """
    run, start = Run(source, target), time.time()
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    job = dict(source=str(source), target=str(target), values=values, timeout=timeout)
    process = _started(job, environment(threads))
    for line in process.stdout:
        if line.startswith("@error "):
            run.error = line.removeprefix("@error ").strip()
        elif tick and line.startswith("@cell"):
            tick()
    if process.wait() and not run.error:
        run.error = f"its process, which ended with status {process.returncode}"
    run.seconds = time.time() - start
    for found in results(source, values, start):
        run.results.append(found["path"])
        run.verdicts |= {number: row["verdict"] for number, row in found["claims"].items()}
    return run


def _started(job: dict, environment: dict) -> subprocess.Popen:
    """The process that executes a job; its stdout says how it goes."""
    program = [sys.executable, "-P", str(Path(__file__).with_name("execute.py"))]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    process = subprocess.Popen(program, **pipes, text=True, errors="replace", env=environment)
    process.stdin.write(json.dumps(job | {"cwd": str(pages.NOTEBOOKS)}))
    process.stdin.close()
    return process


def environment(threads: int) -> dict[str, str]:
    """The environment of a chapter's kernel.

    Threads sleep while they wait, unless the shell says otherwise: on a busy core, spinning
    ones make a chapter ten times slower.
    """
    named = {name: os.environ[name] for name in FOLDERS if os.environ.get(name)}
    folders = {name: str(Path(path).expanduser().absolute()) for name, path in named.items()}
    given = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    return {**given, **KERNEL, **folders, "OMP_NUM_THREADS": str(threads)}


def results(source: Path, values: dict, since: float) -> list[dict]:
    """What a run of a chapter with these values recorded after the time `since`.

    Never what another run did, with another value of any parameter. Keys as of `recorded`.
    """
    wanted = {name: default for name, (_, default) in parameters(source).items()} | values
    folder = Path(wanted.pop("OUT", "") or RESULTS)
    if not folder.is_dir():
        return []
    runs = [run for run in recorded(source.stem[:2], folder) if run["parameters"] == wanted]
    return [run for run in runs if run["path"].stat().st_mtime >= since - 1]


def run_all(
    sources: list[Path], folder: Path, values: dict, *, jobs: int = 2, timeout: int = 600
) -> list[Run]:
    """The runs of all chapters, `jobs` at a time under a bar; one that fails stops no other."""
    from tqdm import tqdm

    threads = max(1, cores() // max(1, min(jobs, len(sources))))
    cells = sum(len(pages.read(path).cells) for path in sources)
    title = f"{len(sources)} chapters"
    with tqdm(total=cells, unit="cell", desc=title) as bar, ThreadPoolExecutor(jobs) as pool:

        def run(source):
            limits = dict(threads=threads, timeout=timeout, tick=bar.update)
            return run_chapter(source, folder / source.name, values[source], **limits)

        return list(pool.map(run, sources))


def cores() -> int:
    """How many processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
