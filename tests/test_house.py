"""The house itself: layout, sizes, locks, who may import whom, what no file may hold."""

import ast
import re
import shutil
import subprocess
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
# DESIGN: arrows go one way. Module -> what it may import of zfkit, whatever the depth.
MAY_IMPORT = {
    "geometry": set(),
    "normalization": set(),
    "files": set(),
    "networks": {"geometry", "normalization"},
    "forward": {"geometry"},
    "switches": set(),
    "chain": {"forward", "normalization", "switches"},
    "fields": {"chain", "geometry"},
    "gradient": {"forward", "normalization", "switches"},
    "deconvnet": {"chain", "forward", "geometry", "gradient", "switches"},
    "search": {"chain", "fields", "files", "forward", "geometry"},
    "descent": {"chain", "deconvnet", "forward", "geometry", "search", "switches"},
    "projections": {"deconvnet", "descent", "fields", "files", "forward", "geometry", "search"},
    "windows": {"chain", "geometry"},
    "places": set(),
    "occlusion": {"chain", "forward", "geometry", "places", "windows"},
    "controls": {"forward"},
    "menagerie": {"menagerie"},
    "datasets": {"files", "menagerie"},
    "recipes": {"networks"},
    "loaders": {"datasets"},
    "training": {
        "datasets",
        "files",
        "loaders",
        "networks",
        "recipes",
        "weights",
    },  # weights: its command line alone, on --publish
    "weights": {"datasets", "files", "loaders", "networks", "recipes", "training"},
    "plots": {"geometry", "networks"},
    "explorers": {"plots"},
    "claims": set(),
    "book": set(),
    "__main__": {"book", "datasets", "training", "weights"},
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
    assert found <= MAY_IMPORT[module], f"{module} imports {sorted(found - MAY_IMPORT[module])}"


def test_imports_are_seen_in_every_form(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    forms = "from . import a\nfrom .b import x\nimport zfkit.c\nfrom zfkit import d\nif 1:\n  from zfkit.e.g import x"
    (tmp_path / "zfkit" / "inside").mkdir(parents=True)
    (tmp_path / "zfkit" / "top.py").write_text(forms)
    (tmp_path / "zfkit" / "inside" / "low.py").write_text("from ..a import x\nfrom .b import y\nfrom .. import c")
    assert imported(tmp_path / "zfkit" / "top.py") == set("abcde")
    assert imported(tmp_path / "zfkit" / "inside" / "low.py") == set("ac")


ROOM, FUNCTION = 300, 25  # lines of a module; of a function without its docstring
LONGER = {"book", "datasets", "training", "weights"}  # being divided


@pytest.mark.parametrize("path", list(chain.from_iterable(modules().values())), ids=lambda path: path.stem)
def test_a_room_is_read_in_one_go(path):
    lines = len(path.read_text().splitlines())
    assert lines <= ROOM or path.stem in LONGER, f"{path.name} has {lines} lines: divide it"


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


def test_no_large_file_outside_the_weights():
    large = [p for p in tracked() if p.stat().st_size > 6e6 and ROOT / "data" / "weights" not in p.parents]
    assert not large
    assert sum(path.stat().st_size for path in tracked()) < 120e6


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
        "zfkit/book.py",
        "tests/test_book.py",
        "tests/test_house.py",
    }  # they hold the pattern that looks for them
    assert not [line for line in found if line.split(":")[0] not in allowed]


def test_make_has_its_targets():
    text = (ROOT / "Makefile").read_text()
    for target in "help install book test lab chapters bench lock clean".split():
        assert re.search(rf"^{target}:", text, re.M), target
    recipe = text.split("\ntest: install")[1].split("\n\n")[0]
    for step in ("ruff check", "ruff format --check", "zfkit clean --check", "pytest"):
        assert step in recipe, step


def test_notebooks_are_part_of_the_one_pytest_run(pytestconfig):
    assert pytestconfig.getini("testpaths") == ["tests", "notebooks"]
    for option in ("--nbval ", "--nbval-current-env", "--nbval-cell-timeout=300"):
        assert option in " ".join(pytestconfig.getini("addopts")) + " "


def requirements() -> list[str]:
    return PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]


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
    assert "://" not in re.sub(r"#.*", "", (ROOT / "requirements.lock").read_text())


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
