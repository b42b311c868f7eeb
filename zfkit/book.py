"""Runs chapters with papermill, cleans notebooks, renders the site. Knows notebooks, never the science in them."""

import ast
import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
THUMBNAILS = ROOT / "docs" / "thumbnails"  # of README's map of the chapters
RESULTS = ROOT / "build" / "results"  # where the chapters' verdicts are recorded
VIEW = "application/vnd.jupyter.widget-view+json"
LARGEST_KIB = 800
TYPES = {"int": int, "float": float, "bool": bool, "str": str}
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:home|root|work|tmp|Users|mnt|opt)/[\w.-]+|[A-Z]:\\+Users\\+")
WARNING = re.compile(r"\b[A-Z]\w*Warning: ")


@dataclass
class Run:
    """One execution of a chapter: where the executed notebook is, how long it took, what it found, what broke."""

    source: Path
    target: Path
    seconds: float = 0.0
    verdicts: dict[int, str] = field(default_factory=dict)
    results: list[Path] = field(default_factory=list)
    error: str = ""


def chapters(names: str | None = None, folder: Path | None = None) -> list[Path]:
    """The notebooks of `folder` (notebooks/) in order of reading; names: "02,03" picks by number or file name.

    Raises ValueError that names an unknown chapter and the ones there are.
    """
    found = {path.stem: path for path in sorted((folder or NOTEBOOKS).glob("[0-9][0-9]_*.ipynb"))}
    if names is None:
        return list(found.values())
    picked = []
    for name in filter(None, names.replace(" ", "").split(",")):
        hits = [stem for stem in found if name.removesuffix(".ipynb") == stem or stem.startswith(f"{name:0>2}_")]
        if not hits:
            known = ", ".join(stem[:2] for stem in found) or "none"
            raise ValueError(f"no chapter {name!r}; there are: {known}")
        picked += hits
    if not picked:
        raise ValueError(f"no chapter named in {names!r}")
    return sorted({found[stem] for stem in picked})


def parameters(path: Path) -> dict[str, tuple[str, object]]:
    """Name -> (type name, default) of the annotated lines in a notebook's one cell tagged `parameters`.

    Raises ValueError where the cell is missing, there twice, or holds anything but annotated constants.
    """
    notebook = read(path)
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise ValueError(f"{path.name}: {len(cells)} cells tagged parameters, not 1")
    known = {}
    for line in ast.parse(cells[0].source).body:
        try:
            known[line.target.id] = line.annotation.id, ast.literal_eval(line.value)
        except (AttributeError, ValueError):
            raise ValueError(f"{path.name}: not a typed parameter: {ast.unparse(line)}") from None
    return known


def parse_value(text: str, kind: str) -> object:
    """The value that `text` stands for in a parameter annotated int, float, bool or str; ValueError if it is none."""
    if kind == "bool":
        return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
    return TYPES.get(kind, str)(text)


def settings(sources: list[Path], pairs: list[str]) -> dict[Path, dict]:
    """Per chapter the typed values of NAME=VALUE pairs, all checked before anything runs.

    Raises ValueError in one line: no "=", a name that a chapter lacks, a value of another type than annotated.
    """
    values = {path: {} for path in sources}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ValueError(f"--set {pair!r} is not NAME=VALUE")
        for path in sources:
            known = parameters(path)
            if name not in known:
                raise ValueError(f"{path.stem}: unknown parameter {name!r}; known: {', '.join(known)}")
            kind = known[name][0]
            try:
                values[path][name] = parse_value(text, kind)
            except (ValueError, KeyError):
                raise ValueError(f"{path.stem}: {name} must be {kind}, got {text!r}") from None
    return values


def run_chapter(source: Path, target: Path, values: dict, *, threads: int = 1, timeout: int = 600, tick=None) -> Run:
    """The run of one chapter in processes of its own; a failure is in its `error`, never raised.

    values: typed parameters, already checked. timeout: seconds a cell. tick() is called after every cell.
    The executed notebook is kept at `target` also when a cell fails.
    """
    run, start = Run(source, target), time.time()
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    command = [sys.executable, "-m", "papermill", source, target, "--kernel", "python3", "--cwd", NOTEBOOKS]
    command += ["--no-progress-bar", "--log-output", "--execution-timeout", str(timeout)]
    command += ["--parameters_yaml", json.dumps(values)] if values else []
    limits = {"OMP_NUM_THREADS": str(threads), "JUPYTER_PREFER_ENV_PATH": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        list(map(str, command)),
        # threads that sleep while they wait: on a busy core, spinning ones make a chapter ten times slower
        env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ, **limits},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    last = ""
    for line in process.stderr:
        last = line.strip() or last
        if tick and line.startswith("Ending Cell"):
            tick()
    status = process.wait()
    run.seconds = time.time() - start
    if status:
        run.error = failure(target) or f"papermill ended with status {status}: {last}"
    run.results = results(source.stem[:2], start, Path(values.get("OUT") or RESULTS))
    claims = [claim for path in run.results for claim in json.loads(path.read_text())["claims"]]
    run.verdicts = {claim["claim"]: claim["verdict"] for claim in claims}
    return run


def failure(executed: Path) -> str:
    """The first error of an executed notebook in one line, with the number its cell has in the source; or empty."""
    added = {"papermill-error-cell-tag", "injected-parameters"}
    cells = read(executed).cells if executed.exists() else []
    for number, cell in enumerate((c for c in cells if added.isdisjoint(c.metadata.get("tags", []))), 1):
        for output in cell.get("outputs", []):
            if output.output_type == "error" and "raises-exception" not in cell.metadata.get("tags", []):
                said = (output.evalue.strip().splitlines() or [""])[0]
                return f"cell {number}: {output.ename}: {said}"
    return ""


def results(chapter: str, since: float, folder: Path = RESULTS) -> list[Path]:
    """The result files that chapter wrote in `folder` after the time `since`."""
    written = [path for path in sorted(folder.glob(f"{chapter}*.json")) if path.stat().st_mtime >= since - 1]
    return [path for path in written if json.loads(path.read_text()).get("chapter", "")[:2] == chapter]


def run_all(sources: list[Path], folder: Path, values: dict, *, jobs: int = 2, timeout: int = 600) -> list[Run]:
    """The runs of all chapters, `jobs` at a time under a progress bar; one that fails does not stop the others."""
    from tqdm import tqdm

    threads = max(1, cores() // max(1, min(jobs, len(sources))))
    cells = sum(len(read(path).cells) for path in sources)
    with tqdm(total=cells, unit="cell", desc=f"{len(sources)} chapters") as bar, ThreadPoolExecutor(jobs) as pool:

        def run(source):
            target = folder / source.name
            return run_chapter(source, target, values[source], threads=threads, timeout=timeout, tick=bar.update)

        return list(pool.map(run, sources))


def cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def clean(notebook):
    """The notebook without widget views, widget state, papermill's traces and machine-made metadata; ids are kept.

    A slider box keeps its PNG or JPEG still; an output that was a view and nothing else is dropped.
    """
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for cell in notebook.cells:
        for key in ("execution", "papermill", "collapsed", "scrolled", "trusted"):
            cell.metadata.pop(key, None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if _keep(output)]
    return notebook


def _keep(output) -> bool:
    """Drop the widget view from an output; False if no picture is left of a widget."""
    data = output.get("data", {})
    if data.pop(VIEW, None) is None:
        return True
    output.get("metadata", {}).pop(VIEW, None)
    return any(kind.startswith("image/") for kind in data)


def faults(path: Path) -> list[str]:
    """What keeps a notebook from being committed, one line each; empty if it is clean and executed."""
    notebook = read(path)
    found = [f"{key} metadata" for key in ("widgets", "papermill") if key in notebook.metadata]
    if notebook.metadata.get("kernelspec", {}).get("display_name") != "Python 3":
        found.append("kernelspec is not python3, Python 3")
    if path.stat().st_size > LARGEST_KIB * 1024:
        found.append(f"{path.stat().st_size // 1024} KiB, more than {LARGEST_KIB}")
    for number, cell in enumerate(notebook.cells, 1):
        found += [f"cell {number}: {fault}" for fault in _cell_faults(cell)]
    return found


def _cell_faults(cell) -> list[str]:
    found = [f"{key} metadata" for key in ("execution", "papermill") if key in cell.metadata]
    found += ["no id"] if "id" not in cell else []
    if cell.cell_type != "code":
        return found + _text_faults(cell.source)
    if cell.source.strip() and cell.execution_count is None:
        found.append("not executed")
    for output in cell.outputs:
        if output.output_type == "error" and "raises-exception" not in cell.metadata.get("tags", []):
            found.append(f"error output {output.ename}")
        if output.get("name") == "stderr":
            found.append(f"stderr: {output.text.strip()[:80]}")
        if VIEW in output.get("data", {}):
            found.append("widget view")
        found += _text_faults(_words(output))
    return found + _text_faults(cell.source)


def _words(output) -> str:
    """All text of an output, without its pictures."""
    data = output.get("data", {})
    parts = [output.get("text", ""), *output.get("traceback", [])]
    parts += [str(value) for kind, value in data.items() if not kind.startswith("image/") or "svg" in kind]
    return re.sub(r"data:image/[^\"')]*", "", "\n".join(parts))


def _text_faults(text: str) -> list[str]:
    path, warning = MACHINE_PATH.search(text), WARNING.search(text)
    found = [f"path of a machine: {path[0]}"] if path else []
    return found + ([f"warning: {text[warning.start() :].splitlines()[0][:80]}"] if warning else [])


def read(path: Path):
    """The notebook in a file; ValueError that names the file if it is none."""
    try:
        return nbformat.read(path, as_version=4)
    except (nbformat.reader.NotJSONError, nbformat.ValidationError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a notebook: {str(error).splitlines()[0]}") from None


def thumbnail(path: Path, width: int = 240, height: int = 150) -> bytes | None:
    """A JPEG of the picture in a notebook's cell tagged `thumbnail`, for README's map; None where no cell is.

    The picture is scaled to the width; of a taller one the top is shown.
    """
    from PIL import Image

    for cell in read(path).cells:
        for output in cell.get("outputs", []) if "thumbnail" in cell.metadata.get("tags", []) else []:
            data = output.get("data", {})
            if text := data.get("image/jpeg") or data.get("image/png"):
                picture = Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")
                picture = picture.resize(
                    (width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS
                )
                file = io.BytesIO()
                picture.crop((0, 0, width, min(height, picture.height))).save(file, "JPEG", quality=82, optimize=True)
                return file.getvalue()
    return None


def write(notebook, path: Path) -> None:
    """Write a notebook by atomic rename: a reader sees the old file or the new one, never half."""
    part = path.with_suffix(".ipynb.part")
    nbformat.write(notebook, part)
    os.replace(part, path)


def site(runs: list[Run], out: Path) -> tuple[Path, list[str]]:
    """The site's first page under `out`/site and a line for every chapter that is not fresh in it.

    Chapters that just ran are shown as they ran; the others as committed, and the page says so; one that failed or
    holds cells never executed is left out, and the page says so too. The old site stays until the new one stands.
    """
    source, part, fresh, notes = out / "site-src", out / "site.part", {run.source: run for run in runs}, []
    for folder in (source, part):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "docs", source, ignore=shutil.ignore_patterns("__pycache__"))
    for path in chapters():
        run = fresh.get(path)
        if run is None:
            unrun = any(fault.endswith("not executed") for fault in faults(path))
            notes.append(f"{path.stem}: " + ("left out, never executed" if unrun else "as committed, not run now"))
        elif run.error:
            notes.append(f"{path.stem}: left out, it failed in {run.error}")
        if not notes or notes[-1].split(":")[0] != path.stem or notes[-1].endswith("not run now"):
            write(clean(read(run.target if run else path)), source / path.name)
    said = ["- " + re.sub(r"([\\`*_<>$\[\]{}&])", r"\\\1", note) for note in notes] or [
        "All chapters were run for these pages."
    ]
    (source / "build.md").write_text("\n".join(said) + "\n")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-b", "html", source, part], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"the site was not built: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    shutil.rmtree(out / "site", ignore_errors=True)
    os.replace(part, out / "site")
    return out / "site" / "index.html", notes + done.stderr.strip().splitlines()
