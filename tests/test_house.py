"""The house itself: layout, sizes, locks, who may import whom, what no file may hold."""

import ast
import graphlib
import json
import re
import shutil
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import nbformat
import pytest
import yaml

from zfkit import book, menagerie

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CHAPTERS = book.chapters()
# Arrows go one way. Module -> what it may import of zfkit, whatever the depth; a package is one module.
MAY_IMPORT = {
    # ground: files, shapes, numbers; the claims are data
    "files": set(),
    "geometry": set(),
    "normalization": set(),
    "switches": set(),
    "claims": set(),
    "intervals": set(),
    "machine": set(),
    # nets: what is built, what flows through it, what lies below a layer
    "networks": {"geometry", "normalization"},
    "forward": {"geometry"},
    "gradient": {"forward", "normalization", "switches"},
    "chain": {"forward", "normalization", "switches"},
    "fields": {"chain", "geometry"},
    # look
    "deconvnet": {"chain", "forward", "geometry", "gradient", "switches"},
    "search": {"chain", "fields", "files", "forward", "geometry"},
    "descent": {"chain", "deconvnet", "forward", "geometry", "search", "switches"},
    "projections": {"deconvnet", "descent", "fields", "files", "forward", "geometry", "search"},
    "windows": {"chain", "geometry"},
    "places": set(),
    "occlusion": {"chain", "forward", "geometry", "places", "windows"},
    "controls": {"forward", "geometry"},
    "probes": {"files", "forward", "geometry"},
    # sets
    "menagerie": {"files"},
    "layouts": {"files"},
    "pictures": {"files", "layouts"},
    "datasets": {"files", "layouts", "menagerie", "pictures"},
    "loaders": set(),
    # learn
    "recipes": {"networks"},
    "training": {"datasets", "files", "loaders", "machine", "networks", "recipes"},
    "cards": {"files", "loaders", "training"},
    "weights": {"cards", "datasets", "files", "networks", "recipes", "training"},
    "series": {"cards", "files", "networks", "recipes", "training", "weights"},
    # tell: the book knows notebooks and their verdicts, never the science in them
    "verdicts": {"claims", "files", "intervals"},
    "plots": set(),
    "explorers": set(),
    "book": {"files", "verdicts"},
    # door
    "__main__": {"book", "datasets", "files", "recipes", "training", "weights"},
    "__init__": set(),
}
FORBIDDEN = (
    "/wor" + "k/",
    "/tm" + "p/",
    "/ro" + "ot/",
    "pypi" + ".org/simple",
    "files.pythonhosted" + ".org",
    "/opt/" + "pypi",
)


def tracked() -> list[Path]:
    """The files that git holds or would hold."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs git and a clone")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def modules() -> dict[str, list[Path]]:
    """Top-level name of each zfkit module -> its files."""
    found = {}
    for path in sorted((ROOT / "zfkit").rglob("*.py")):
        found.setdefault(path.relative_to(ROOT / "zfkit").parts[0].removesuffix(".py"), []).append(path)
    return found


def imported(path: Path) -> set[str]:
    """Top-level names of the zfkit modules that a file imports anywhere in it."""
    depth = len(path.relative_to(ROOT / "zfkit").parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level == depth:  # `from .x import` in the package's own files, `from ..x` one folder down
                found |= {module.split(".")[0]} if module else {alias.name for alias in node.names}
            elif module.split(".")[0] == "zfkit" and node.level == 0:
                inside = module.split(".")[1:2]
                found |= set(inside) if inside else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("zfkit.")}
    return found


def test_the_layout_stands():
    wanted = "README.md CONTRIBUTING.md LICENSE CITATION.cff environment.yml pyproject.toml Makefile .ci/run"
    missing = [name for name in wanted.split() if not (ROOT / name).is_file()]
    folders = "notebooks zfkit zfkit/menagerie data docs tests/chapters tests/browser tests/bench"
    missing += [name for name in folders.split() if not (ROOT / name).is_dir()]
    assert not missing


def test_no_module_beyond_the_design():
    assert set(modules()) <= set(MAY_IMPORT), "a further module needs two chapters that call it; name its arrows here"


@pytest.mark.parametrize("module", sorted(modules()))
def test_arrows_go_one_way(module):
    known = set(modules())
    found = set().union(*map(imported, modules()[module])) & known - {module}
    wrong = sorted(found - MAY_IMPORT[module])
    assert not wrong, f"{module} imports {wrong}"


def test_no_arrow_leads_back():
    graphlib.TopologicalSorter(MAY_IMPORT).prepare()  # CycleError names the circle
    assert set().union(*MAY_IMPORT.values()) <= set(MAY_IMPORT)


def test_imports_are_seen_in_every_form(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    forms = "from . import a\nfrom .b import x\nimport zfkit.c\nfrom zfkit import d\nif 1:\n  from zfkit.e.g import x"
    (tmp_path / "zfkit" / "inside").mkdir(parents=True)
    (tmp_path / "zfkit" / "top.py").write_text(forms)
    (tmp_path / "zfkit" / "inside" / "low.py").write_text("from ..a import x\nfrom .b import y\nfrom .. import c")
    assert imported(tmp_path / "zfkit" / "top.py") == set("abcde")
    assert imported(tmp_path / "zfkit" / "inside" / "low.py") == set("ac")


ROOM, FUNCTION, COLUMNS = 300, 25, 96  # lines of a module; of a function without its docstring; of zfkit
# A slider box is one closure; a drawing is read stroke by stroke, from the top.
LONGER_FUNCTIONS = {
    "explorers": {"live"},
    "animals": {"face", "fish", "owl", "smile"},
    "backdrops": {"foreground", "stray"},
    "scene": {"colours", "render"},
    "things": {"bicycle"},
}
ROOMS = list(chain.from_iterable(modules().values()))


@pytest.mark.parametrize("path", ROOMS, ids=lambda path: path.stem)
def test_a_room_is_read_in_one_go(path):
    lines = len(path.read_text().splitlines())
    assert lines <= ROOM, f"{path.name} has {lines} lines: divide it"


def functions(path: Path):
    """Name and lines without docstring of every function in a file, those in classes and functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node):
                lines -= node.body[0].end_lineno - node.body[0].lineno + 1
            yield node.name, lines


@pytest.mark.parametrize("path", ROOMS, ids=lambda path: path.stem)
def test_a_function_is_seen_at_once(path):
    long = {name for name, lines in functions(path) if lines > FUNCTION}
    assert long <= LONGER_FUNCTIONS.get(path.stem, set()), f"more than {FUNCTION} lines: divide"


def test_the_lines_of_zfkit_are_counted(record_property):
    """Reported, not bounded: a chapter's reader need not open the module at all."""
    lines = {path.stem: len(path.read_text().splitlines()) for path in ROOMS}
    record_property("lines", lines)
    print(sum(lines.values()), "lines in", len(lines), "rooms")


def test_lines_are_as_wide_as_a_page():
    """Ruff holds zfkit at 96 columns and cells that are open to the reader at 88; both say so in their ruff.toml."""
    for folder, columns in (("zfkit", COLUMNS), ("notebooks", 88)):
        settings = tomllib.loads((ROOT / folder / "ruff.toml").read_text())
        assert settings["line-length"] == settings["lint"]["pycodestyle"]["max-line-length"] == columns


def public_functions():
    """What a reader may call: of the menagerie, whose files are full of brushes, only what it exports."""
    offered = set(menagerie.__all__)
    for path in chain.from_iterable(modules().values()):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                if path.parent.name != "menagerie" or node.name in offered:
                    yield f"{path.relative_to(ROOT)}: {node.name}", node


def test_public_functions_say_what_comes_back():
    bare = [where for where, node in public_functions() if not ast.get_docstring(node)]
    assert not bare


def test_modules_say_what_they_are():
    bare = [
        str(p)
        for p in chain.from_iterable(modules().values())
        if p.stat().st_size and not ast.get_docstring(ast.parse(p.read_text()))
    ]
    assert not bare


def test_folders_keep_their_sizes():
    sizes = {path: path.stat().st_size for path in tracked()}
    weights = ROOT / "data" / "weights"
    assert not [path for path, size in sizes.items() if size > 6e6 and weights not in path.parents]
    for folder, most in (("data/weights", 70e6), ("data/runs", 20e6), (".", 150e6)):
        total = sum(size for path, size in sizes.items() if (ROOT / folder) in path.parents)
        assert total <= most, f"{folder} holds {total / 1e6:.1f} MB, more than {most / 1e6:.0f}"


def test_results_are_verdicts_and_nothing_else():
    folder = ROOT / "data" / "results"
    strays = [path.name for path in tracked() if folder in path.parents and not is_record(path)]
    assert not strays


def is_record(path: Path) -> bool:
    """Is it a file that `verdicts.record` writes, in the first layout or in the present one?"""
    if not re.fullmatch(r"\d\d-[\w.-]+-s\d+-(quick|long)(-[0-9a-f]{6})?\.json", path.name):
        return False
    kept = json.loads(path.read_text())
    return {"chapter", "claims"} <= set(kept) and ("parameters" in kept or "dataset" in kept)


def test_no_file_names_a_machine():
    found = []
    for path in tracked():
        if path.suffix in {".safetensors", ".png", ".jpg", ".npz"} or path.name.startswith("requirements"):
            continue
        text = path.read_text(errors="replace")
        if path.suffix == ".ipynb":
            text = re.sub(r'"[A-Za-z0-9+/=\\n]{200,}"', "", text)
        found += [f"{path.relative_to(ROOT)}: {word}" for word in FORBIDDEN if word in text]
        beside = "../sha" + "red"
        if beside in text and path != ROOT / ".ci" / "run":
            found.append(f"{path.relative_to(ROOT)}: {beside}")
    allowed = {
        "zfkit/book/pages.py",
        "tests/test_book.py",
        "tests/test_house.py",
    }  # they hold the pattern that looks for them
    assert not [line for line in found if line.split(":")[0] not in allowed]


def test_make_has_its_targets():
    text = (ROOT / "Makefile").read_text()
    for target in "help install book quick test test-all lint lab chapters bench lock clean".split():
        assert re.search(rf"^{target}:", text, re.M), target
    recipes = {name: text.split(f"\n{name}: ")[-1].split("\n\n")[0] for name in ("lint", "quick", "test", "test-all")}
    for step in ("ruff check", "ruff format --check", "zfkit clean --check"):
        assert step in recipes["lint"], step
    for name in ("quick", "test", "test-all"):
        assert recipes[name].startswith("lint ") and "pytest" in recipes[name], name
    assert (
        "not slow" in recipes["quick"]
        and '"not nightly"' in recipes["test"]
        and "nightly or not" in recipes["test-all"]
    )


def test_a_public_host_runs_the_checks():
    text = (ROOT / ".github" / "workflows" / "check.yml").read_text()
    steps = [step.get("run") for step in yaml.safe_load(text)["jobs"]["check"]["steps"]]
    assert "make quick" in steps and ".ci/run" in steps
    assert "make test " in (ROOT / ".ci" / "run").read_text()


def test_notebooks_are_part_of_the_one_pytest_run(pytestconfig):
    assert pytestconfig.getini("testpaths") == ["tests", "notebooks"]
    for option in ("--nbval ", "--nbval-current-env", "--nbval-cell-timeout=300"):
        assert option in " ".join(pytestconfig.getini("addopts")) + " "


def requirements() -> list[str]:
    return PROJECT["dependencies"] + sum(PROJECT["optional-dependencies"].values(), [])


def name_of(requirement: str) -> str:
    return re.match(r"[A-Za-z0-9_.-]+", requirement)[0].lower().replace("_", "-")


def locked(path: str) -> dict[str, tuple[str, int]]:
    """Package -> its locked version and the number of hashes; fails on an entry without any."""
    found = {}
    for entry in re.split(r"\n(?=[A-Za-z0-9])", (ROOT / path).read_text()):
        if match := re.match(r"([A-Za-z0-9_.-]+)==([^\s;\\]+)", entry):
            found.setdefault(match[1].lower(), (match[2], entry.count("--hash=sha256:")))
    return found


def test_the_lock_holds_every_dependency_with_hashes():
    lock = locked("requirements.lock")
    assert not [name for name, (_, hashes) in (lock | locked("requirements-uv.lock")).items() if not hashes]
    for requirement in requirements():
        assert name_of(requirement) in lock, requirement
        low = re.search(r">=([\d.]+)", requirement)[1]
        assert version(lock[name_of(requirement)][0]) >= version(low), requirement
    assert lock["torch"][0].startswith("2.15") and lock["torchvision"][0].startswith("0.29")


def test_the_lock_names_no_registry():
    for name in ("requirements.lock", "requirements-uv.lock"):
        text = (ROOT / name).read_text()
        assert not re.search(r"://|--(extra-)?index|--find-links|\.(org|com|net|io)\b", text), name
        strange = [line for line in text.splitlines() if not re.match(r"[a-z0-9]|    (--hash=sha256:|# )", line)]
        assert not strange, name


def test_what_is_imported_is_declared():
    """Packages that zfkit and the chapters import, at the top of a file or not; the rest of Python's own."""
    declared = {name_of(requirement) for requirement in PROJECT["dependencies"]}
    as_installed = {"PIL": "pillow", "sklearn": "scikit-learn", "skimage": "scikit-image", "IPython": "ipython"}
    found = set()
    for path in ROOMS:
        found |= packages_of(path.read_text())
    for path in CHAPTERS:
        for cell in nbformat.read(path, as_version=4).cells:
            found |= packages_of(cell.source) if cell.cell_type == "code" else set()
    third = found - set(sys.stdlib_module_names) - {"zfkit"}
    names = {as_installed.get(name, name).replace("_", "-").lower() for name in third}
    assert names <= declared | {"matplotlib-inline"}, sorted(names - declared)


def packages_of(source: str) -> set[str]:
    """Top-level names of what Python source imports from elsewhere than its own package."""
    names = set()
    for node in ast.walk(ast.parse(re.sub(r"^[%!].*", "", source, flags=re.M))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text.split("+")[0]))


def test_conda_gets_what_pip_gets():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert set(environment) <= {"name", "channels", "dependencies", "variables"}
    pip = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    lines = [entry for entry in environment["dependencies"] if isinstance(entry, str)] + pip
    there = {name_of(line): line for line in lines if not line.startswith("-")}
    assert "-e ." in pip and there["python"] == "python=3.11" and "pip" in there
    renamed = {"torch": "pytorch", "matplotlib": "matplotlib-base"}
    for requirement in PROJECT["dependencies"]:
        name = renamed.get(name_of(requirement), name_of(requirement))
        assert there.get(name, "").split(">=")[-1] == requirement.split(">=")[-1], requirement


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_keeps_the_house_rules(path):
    assert book.faults(path) == []
    known = book.parameters(path)
    for name, kind in dict(DATASET="str", NETWORK="str", QUICK="bool", SEED="int", DEVICE="str", OUT="str").items():
        assert known[name][0] == kind, name
    assert len(known) <= 9 and known["QUICK"][1] is True and known["OUT"][1] == ""
    cells = nbformat.read(path, as_version=4).cells
    first = next(
        cell
        for cell in cells
        if cell.cell_type == "code" and "nbval-ignore-output" not in cell.metadata.get("tags", [])
    )
    assert "parameters" in first.metadata["tags"], "imports and seeding come after the parameters"
    assert cells[0].source.startswith("# ") and "pip install" not in path.read_text()


def test_there_are_chapters():
    numbers = [int(path.stem[:2]) for path in CHAPTERS]  # a chapter may be written before the one ahead of it
    assert numbers[0] == 0 and numbers == sorted(set(numbers)) and numbers[-1] <= 14
    assert len(CHAPTERS) >= 3


def test_readme_shows_every_chapter_and_its_thumbnail():
    readme = (ROOT / "README.md").read_text()
    for path in CHAPTERS:
        assert f"notebooks/{path.name}" in readme, f"README's map lacks {path.name}"
        kept = book.THUMBNAILS / f"{path.stem[:2]}.jpg"
        if book.thumbnail(path):
            assert kept.is_file() and f"docs/thumbnails/{kept.name}" in readme, (
                f"README lacks the picture of {path.name}"
            )
