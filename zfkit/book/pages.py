"""Notebooks as files: read, cleaned, judged before they are committed, and made into a site."""

import base64
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat

from ..files import replacing, repo_root, write_bytes

NOTEBOOKS = repo_root() / "notebooks"
DOCS = repo_root() / "docs"
THUMBNAILS = DOCS / "thumbnails"  # of README's map of the chapters
VIEW = "application/vnd.jupyter.widget-view+json"
LARGEST_KIB = 1536
KERNELSPEC = {"display_name": "Python 3", "language": "python", "name": "python3"}
TRACES = ("execution", "papermill", "collapsed", "scrolled", "trusted")  # metadata of a run
MACHINE_PATH = re.compile(
    r"(?<![\w.])/(?:home|root|work|tmp|Users|mnt|opt)/[\w.-]+|[A-Z]:\\+Users\\+"
)
WARNING = re.compile(r"\b[A-Z]\w*Warning: ")


def chapters(names: str | None = None, folder: Path | None = None) -> list[Path]:
    """The notebooks of `folder` (notebooks/) in order; "02,03" picks by number or name.

    ValueError that names an unknown chapter and the ones there are.
    """
    found = {
        path.stem: path for path in sorted((folder or NOTEBOOKS).glob("[0-9][0-9]_*.ipynb"))
    }
    if names is None:
        return list(found.values())
    picked = []
    for name in filter(None, names.replace(" ", "").split(",")):
        stem = name.removesuffix(".ipynb")
        hits = [known for known in found if known == stem or known.startswith(f"{name:0>2}_")]
        if not hits:
            known = ", ".join(stem[:2] for stem in found) or "none"
            raise ValueError(f"no chapter {name!r}; there are: {known}")
        picked += hits
    if not picked:
        raise ValueError(f"no chapter named in {names!r}")
    return sorted({found[stem] for stem in picked})


def read(path: Path):
    """The notebook in a file; ValueError that names the file if it is none."""
    try:
        return nbformat.read(path, as_version=4)
    except (
        nbformat.reader.NotJSONError,
        nbformat.ValidationError,
        UnicodeDecodeError,
    ) as error:
        raise ValueError(f"{path}: not a notebook: {str(error).splitlines()[0]}") from None


def write(notebook, path: Path) -> None:
    """Write a notebook by atomic rename: a reader sees the old file or the new one whole."""
    with replacing(path) as part:
        nbformat.write(notebook, part)


def clean(notebook):
    """The notebook without widget views and state, papermill's traces and made metadata.

    Ids are kept. A slider box keeps its PNG or JPEG still; an output that was a view and
    nothing else is dropped.
    """
    kept = {"kernelspec": KERNELSPEC, "language_info": {"name": "python"}}
    notebook.metadata = nbformat.from_dict(kept)
    for cell in notebook.cells:
        for key in TRACES:
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
    """What keeps a notebook from being committed, a line each; empty if clean and executed."""
    notebook = read(path)
    found = [f"{key} metadata" for key in ("widgets", "papermill") if key in notebook.metadata]
    if (
        notebook.metadata.get("kernelspec", {}).get("display_name")
        != KERNELSPEC["display_name"]
    ):
        found.append("kernelspec is not python3, Python 3")
    if path.stat().st_size > LARGEST_KIB * 1024:
        found.append(f"{path.stat().st_size // 1024} KiB, more than {LARGEST_KIB}")
    for number, cell in enumerate(notebook.cells, 1):
        found += [f"cell {number}: {fault}" for fault in _cell_faults(cell)]
    return found


def _cell_faults(cell) -> list[str]:
    found = [f"{key} metadata" for key in ("execution", "papermill") if key in cell.metadata]
    found += ["no id"] if "id" not in cell else []
    if cell.cell_type == "code":
        if cell.source.strip() and cell.execution_count is None:
            found.append("not executed")
        expected = "raises-exception" in cell.metadata.get("tags", [])
        for output in cell.outputs:
            found += _output_faults(output, expected)
    return found + _text_faults(cell.source)


def _output_faults(output, expected: bool) -> list[str]:
    found = []
    if output.output_type == "error" and not expected:
        found.append(f"error output {output.ename}")
    if output.get("name") == "stderr":
        found.append(f"stderr: {output.text.strip()[:80]}")
    if VIEW in output.get("data", {}):
        found.append("widget view")
    return found + _text_faults(_words(output))


def _words(output) -> str:
    """All text of an output, without its pictures."""
    data = output.get("data", {})
    parts = [output.get("text", ""), *output.get("traceback", [])]
    shown = {kind: text for kind, text in data.items() if not kind.startswith("image/")}
    parts += map(str, [*shown.values(), data.get("image/svg+xml", "")])
    return re.sub(r"data:image/[^\"')]*", "", "\n".join(parts))


def _text_faults(text: str) -> list[str]:
    path, warning = MACHINE_PATH.search(text), WARNING.search(text)
    found = [f"path of a machine: {path[0]}"] if path else []
    return found + (
        [f"warning: {text[warning.start() :].splitlines()[0][:80]}"] if warning else []
    )


def thumbnail(path: Path, width: int = 240, height: int = 150) -> bytes | None:
    """A JPEG of the picture in a notebook's cell tagged `thumbnail`; None where no cell is.

    The picture is scaled to the width; of a taller one the top is shown.
    """
    from PIL import Image

    tagged = [c for c in read(path).cells if "thumbnail" in c.metadata.get("tags", [])]
    for output in (output for cell in tagged for output in cell.get("outputs", [])):
        data = output.get("data", {})
        if text := data.get("image/jpeg") or data.get("image/png"):
            picture = Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")
            tall = round(picture.height * width / picture.width)
            picture = picture.resize((width, tall), Image.Resampling.LANCZOS)
            file, top = io.BytesIO(), (0, 0, width, min(height, tall))
            picture.crop(top).save(file, "JPEG", quality=82, optimize=True)
            return file.getvalue()
    return None


def site(runs: list, out: Path) -> tuple[Path, list[str]]:
    """The site's first page under `out`/site, and a line for each chapter not fresh in it.

    runs: of `run_chapter`; those chapters are shown as they ran, the other ones as
    committed; one that failed or holds cells never executed is left out; the page says so of
    each. The old site stays until the new one stands. RuntimeError where sphinx fails.
    """
    source, fresh = out / "site-src", {run.source: run for run in runs}
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(DOCS, source, ignore=shutil.ignore_patterns("__pycache__"))
    notes = []
    for path in chapters():
        shown, note = _shown(path, fresh.get(path))
        notes += [f"{path.stem}: {note}"] if note else []
        if shown:
            write(clean(read(shown)), source / path.name)
    lines = ["- " + re.sub(r"([\\`*_<>$\[\]{}&])", r"\\\1", note) for note in notes]
    said = "\n".join(lines or ["All chapters were run for these pages."]) + "\n"
    write_bytes(source / "build.md", said.encode())
    return out / "site" / "index.html", notes + _render(source, out / "site")


def _shown(path: Path, run) -> tuple[Path | None, str]:
    """Which file stands for a chapter in the site, if any, and what is to be said of that."""
    if run is None:
        if any(fault.endswith("not executed") for fault in faults(path)):
            return None, "left out, never executed"
        return path, "as committed, not run now"
    return (None, f"left out, it failed in {run.error}") if run.error else (run.target, "")


def _render(source: Path, site: Path) -> list[str]:
    """What sphinx complains of; the new pages take the place of `site` once they stand."""
    part = site.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    command = [sys.executable, "-m", "sphinx", "-q", "-b", "html", source, part]
    done = subprocess.run(command, capture_output=True, text=True)
    said = done.stderr.strip().splitlines()
    if done.returncode:
        raise RuntimeError(f"the site was not built: {(said or ['no message'])[-1]}")
    shutil.rmtree(site, ignore_errors=True)
    os.replace(part, site)
    return said
