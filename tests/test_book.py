"""book and the command line, tried on chapters of a few lines in a folder of their own."""

import base64
import io
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from zfkit import __main__ as command
from zfkit import book
from zfkit.book import pages, run
from zfkit.book.doctor import doctor

PARAMETERS = 'QUICK: bool = True\nSEED: int = 0\nSHARE: float = 0.5\nNETWORK: str = "zfnet"\nOUT: str = ""'
RECORD = """from zfkit.verdicts import record, start
print(SEED, QUICK, NETWORK)
start(CHAPTER, dict(QUICK=QUICK, SEED=SEED, SHARE=SHARE, NETWORK=NETWORK), OUT or RESULTS)
print(record(9, 0.12, (0.10, 0.15)))"""
PIXELS = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
PICTURE = f"""from IPython.display import display
display({{"image/png": "{PIXELS}", "text/plain": "a grey dot"}}, raw=True)"""


def chapter(folder, name, *sources, parameters=PARAMETERS):
    """Write a chapter of these code cells; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    cells = [new_markdown_cell(f"# {name}\n\nWords with $x^2$."), new_code_cell(parameters)]
    cells[1].metadata["tags"] = ["parameters"]
    book.write(book.clean(new_notebook(cells=cells + [new_code_cell(s) for s in sources])), folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A folder that stands for the repository's notebooks and results; its docs are the real ones."""
    (tmp_path / "docs").symlink_to(book.ROOT / "docs")
    monkeypatch.setattr(pages, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setattr(run, "RESULTS", tmp_path / "build" / "results")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    return tmp_path


def record(number):
    return f'CHAPTER = "{number}"\nRESULTS = "../build/results"\n' + RECORD


def test_a_chapter_is_found_by_number_and_by_name(house):
    paths = [chapter(house / "notebooks", name) for name in ("02_two", "00_start", "11_eleven")]
    assert book.chapters() == sorted(paths)
    assert book.chapters("2") == book.chapters("02") == book.chapters("02_two") == [paths[0]]
    assert book.chapters("11,00") == [paths[1], paths[2]]
    with pytest.raises(ValueError, match=r"^no chapter '7'; there are: 00, 02, 11$"):
        book.chapters("02,7")
    with pytest.raises(ValueError, match="no chapter named"):
        book.chapters(",")


def test_parameters_are_read_with_type_and_default(house):
    path = chapter(house / "notebooks", "02_two")
    assert book.parameters(path) == {
        "QUICK": ("bool", True),
        "SEED": ("int", 0),
        "SHARE": ("float", 0.5),
        "NETWORK": ("str", "zfnet"),
        "OUT": ("str", ""),
    }


@pytest.mark.parametrize("source", ["SEED = 0", "SEED: int = f()", "import os", "x: list[int] = []"])
def test_a_parameters_cell_that_holds_anything_else_is_refused(house, source):
    path = chapter(house / "notebooks", "02_two", parameters=source)
    with pytest.raises(ValueError, match="02_two.ipynb: not a typed parameter"):
        book.parameters(path)


def test_settings_take_the_annotated_type(house):
    path = chapter(house / "notebooks", "02_two")
    pairs = ["QUICK=false", "SEED=7", "SHARE=1", "NETWORK=3", "OUT=a=b"]
    assert book.settings([path], pairs)[path] == dict(
        QUICK=False, SEED=7, SHARE=1.0, NETWORK="3", OUT=str(Path("a=b").absolute())
    )


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ("SEDE=1", "unknown parameter 'SEDE'; known: QUICK, SEED, SHARE, NETWORK, OUT"),
        ("SEED=two", "SEED must be int, got 'two'"),
        ("SEED=1.5", "SEED must be int, got '1.5'"),
        ("QUICK=yes", "QUICK must be bool, got 'yes'"),
        ("SHARE=half", "SHARE must be float, got 'half'"),
        ("SEED", "'SEED' is not NAME=VALUE"),
    ],
)
def test_a_bad_setting_is_one_line_before_anything_runs(house, capsys, pair, said):
    chapter(house / "notebooks", "02_two")
    assert command.main(["book", "--set", pair, "--out", str(house / "build")]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (house / "build").exists()


@pytest.mark.parametrize(("given", "found"), [(None, "PASSIVE 2"), ("ACTIVE", "ACTIVE 2")])
def test_threads_of_a_chapter_sleep_while_they_wait_unless_told_otherwise(house, monkeypatch, given, found):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if given:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    said = 'import os; print(os.environ["OMP_WAIT_POLICY"], os.environ["OMP_NUM_THREADS"])'
    path = chapter(house / "notebooks", "00_fine", said)
    done = book.run_chapter(path, house / "build" / path.name, {}, threads=2)
    assert not done.error
    assert book.read(done.target).cells[-1].outputs[0].text == found + "\n"


def said(done) -> str:
    """What the last cell of a run printed."""
    assert not done.error, done.error
    return book.read(done.target).cells[-1].outputs[0].text


TRAVELLERS = {  # what a shell gives -> what Python must find, in a parameter of this type
    "TEXT": ["\U0001f98a", "on", "yes", "007", "1e-05", "null", "a: b # c", "'\"\\\\", "{{x}}", "nan", " "],
    "SHARE": ["1e-05", "nan", "-inf", "3"],
    "COUNT": ["007", "-4", "1000000000000000000000"],
    "FLAG": ["0", "TRUE"],
}


def test_values_arrive_as_they_are_typed(house):
    """All of them in one run, each in a parameter of its own."""
    kinds = dict(TEXT="str", SHARE="float", COUNT="int", FLAG="bool")
    texts = {f"{name}_{k}": text for name, given in TRAVELLERS.items() for k, text in enumerate(given)}
    default = dict(str="", float=0.5, int=1, bool=True)
    kind = {name: kinds[name.split("_")[0]] for name in texts}
    cell = "\n".join(f"{name}: {kind[name]} = {default[kind[name]]!r}" for name in texts)
    path = chapter(house / "notebooks", "90_types", f"print([{', '.join(texts)}])", parameters=cell)
    values = book.settings([path], [f"{name}={text}" for name, text in texts.items()])[path]
    typed = dict(str=str, float=float, int=int, bool=lambda text: text == "TRUE")
    wanted = [typed[kind[name]](text) for name, text in texts.items()]
    assert said(book.run_chapter(path, house / "build" / path.name, values)) == f"{wanted}\n"


def test_relative_paths_are_read_where_the_command_was_given(house, monkeypatch):
    cell = 'DATASET: str = "menagerie"\nMY_IMAGE: str = ""\nOUT: str = ""'
    path = chapter(house / "notebooks", "90_paths", "print(DATASET, MY_IMAGE, OUT, sep=chr(10))", parameters=cell)
    (house / "shots" / "cat").mkdir(parents=True)
    (house / "cat.png").write_bytes(b"")
    monkeypatch.chdir(house)
    values = book.settings([path], ["DATASET=folder:shots", "MY_IMAGE=cat.png", "OUT=made"])[path]
    wanted = [f"folder:{house}/shots", f"{house}/cat.png", f"{house}/made"]
    assert said(book.run_chapter(path, house / "build" / path.name, values)).splitlines() == wanted
    monkeypatch.setenv("HOME", str(house))
    assert book.settings([path], ["DATASET=folder:~/shots"])[path]["DATASET"] == wanted[0]


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ("DATASET=folder:none", "DATASET=folder:none: there is no folder {house}/none"),
        ("MY_IMAGE=none.png", "MY_IMAGE=none.png: there is no file {house}/none.png"),
        ("SEED=-1", "SEED must be 0 to 4294967295, got -1"),
        ("SEED=4294967296", "SEED must be 0 to 4294967295"),
        ("DEVICE=gpu", "DEVICE must be cpu, cuda, cuda:N or mps, got 'gpu'"),
    ],
)
def test_values_with_which_no_chapter_can_start_are_refused_before_the_run(house, monkeypatch, pair, words):
    cell = 'DATASET: str = "menagerie"\nMY_IMAGE: str = ""\nSEED: int = 0\nDEVICE: str = "cpu"'
    path = chapter(house / "notebooks", "90_values", parameters=cell)
    monkeypatch.chdir(house)
    with pytest.raises(ValueError) as caught:
        book.settings([path], [pair])
    assert str(caught.value).startswith("90_values: " + words.format(house=house)) and "\n" not in str(caught.value)


def test_a_backend_in_the_shell_takes_no_figures_away(house, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    path = chapter(house / "notebooks", "90_figure", "from matplotlib import pyplot as plt\nplt.plot([1, 2]);")
    done = book.run_chapter(path, house / "build" / path.name, {})
    assert not done.error and any("image/png" in o.get("data", {}) for o in book.read(done.target).cells[-1].outputs)


@pytest.mark.parametrize("name", ["ZFKIT_DATA", "ZFKIT_CACHE"])
def test_folders_named_by_the_shell_are_found_by_a_chapter(house, monkeypatch, name):
    monkeypatch.chdir(house)
    monkeypatch.setenv(name, "sets")
    path = chapter(house / "notebooks", "90_env", f"import os\nprint(os.environ[{name!r}])")
    assert said(book.run_chapter(path, house / "build" / path.name, {})) == f"{house}/sets\n"


def test_a_cell_that_runs_out_of_time_is_named(house):
    path = chapter(house / "notebooks", "90_slow", "1", "import time\ntime.sleep(60)")
    done = book.run_chapter(path, house / "build" / path.name, dict(SEED=1), timeout=2)
    assert done.error == "cell 4: over 2 s; raise --timeout"


def test_ticks_are_the_cells_and_prints_of_a_cell_are_one_output(house):
    """However late the second print comes: a rewritten notebook does not differ by how busy the machine was."""
    prints = "import time\nprint(1, flush=True)\ntime.sleep(0.5)\nprint(2)"
    path, ticks = chapter(house / "notebooks", "90_ticks", "1", prints), []
    done = book.run_chapter(path, house / "build" / path.name, dict(SEED=1), tick=lambda: ticks.append(1))
    assert len(ticks) == 4
    assert [output.text for output in book.read(done.target).cells[-1].outputs] == ["1\n2\n"]


def test_a_run_finds_its_own_results_alone(house):
    """Not those of another run in the same folder, nor what an earlier one with the same values left."""
    path = chapter(house / "notebooks", "90_fine", record("90"))
    broken = chapter(house / "notebooks" / "later", "90_fine", "raise ValueError")
    values = dict(OUT=str(house / "made"))
    first = book.run_chapter(path, house / "build" / "a.ipynb", values)
    other = book.run_chapter(path, house / "build" / "b.ipynb", values | dict(SHARE=0.25))
    assert len({*first.results, *other.results}) == 2 and len(list((house / "made").glob("*"))) == 2
    assert first.verdicts == other.verdicts == {9: "holds"}
    (mine,) = book.results(path, values | dict(SHARE=0.25), 0)
    assert mine["path"] == other.results[0] and mine["parameters"]["SHARE"] == 0.25
    time.sleep(1.1)
    again = book.run_chapter(broken, house / "build" / "c.ipynb", values)
    assert again.error.startswith("cell 3: ValueError") and not again.results and not again.verdicts


def test_one_failing_chapter_does_not_stop_the_others(house, capsys):
    folder = house / "notebooks"
    chapter(folder, "90_fine", record("90"), PICTURE)
    chapter(folder, "91_broken", "raise LookupError('no such leaf\\nsecond line')", "print('never')")
    chapter(folder, "92_fatal", "import os\nos._exit(3)")
    out = house / "build"
    assert command.main(["book", "--set", "SEED=5", "--out", str(out)]) == 1
    printed = capsys.readouterr().out
    assert re.search(r"^90_fine +\d+\.\d  9 holds$", printed, re.M)
    assert "91_broken failed in cell 3: LookupError: no such leaf\n" in printed
    assert "92_fatal failed in cell 3: its kernel died" in printed and "second line" not in printed
    (path,) = (out / "results").glob("90-*.json")
    kept = json.loads(path.read_text())
    assert kept["parameters"] == dict(QUICK=True, SEED=5, SHARE=0.5, NETWORK="zfnet")
    pages = {path.name for path in (out / "site").glob("*.html")}
    assert "90_fine.html" in pages and not {"91_broken.html", "92_fatal.html"} & pages
    first = (out / "site" / "index.html").read_text()
    assert "91_broken" in first and "no such leaf" in first  # its absence is said
    page = (out / "site" / "90_fine.html").read_text()
    assert 'alt="a grey dot"' in page and "5 True zfnet" in page
    assert 'class="math' in page and (out / "site" / "searchindex.js").exists()
    assert not outside_requests(out / "site")


def outside_requests(site) -> list[str]:
    """What the pages' own HTML, CSS and scripts of the theme would load from another machine."""
    found = []
    loads = r"""<(?:script|img|iframe|source|video|audio|embed)[^>]+src=["']?(?:https?:)?//[^"'>\s]+"""
    links = r"""<link(?![^>]*rel=["']?canonical)[^>]+href=["']?(?:https?:)?//[^"'>\s]+"""
    styles = r"""(?:@import|url\()\s*["']?(?:https?:)?//[^"')\s]+"""
    scripts = r"""(?:import|importScripts|fetch)\s*\(\s*["'](?:https?:)?//[^"']+"""
    for path in site.rglob("*"):
        wanted = {".html": (loads, links, styles, scripts), ".css": (styles,), ".js": (scripts,)}.get(path.suffix)
        if wanted and "mathjax" not in path.parts:
            text = path.read_text(errors="replace")
            found += [f"{path.name}: {hit[0]}" for pattern in wanted for hit in re.finditer(pattern, text)]
        elif path.suffix == ".js" and path.name.startswith("tex-"):
            found += [f"{path.name}: {hit[0]}" for hit in re.finditer(scripts, path.read_text(errors="replace"))]
    return found


def test_outside_requests_are_seen(tmp_path):
    lines = (
        '<script async src="https://a.b/c.js"></script>',
        '<link rel="stylesheet" href="//a.b/c.css">',
        "<style>@import 'https://a.b'</style>",
        '<a href="https://a.b">a link loads nothing</a>',
    )
    (tmp_path / "page.html").write_text("\n".join(lines))
    assert len(outside_requests(tmp_path)) == 3


def test_site_says_which_chapters_did_not_run_now(house):
    ran = chapter(house / "notebooks", "00_ran", "1 + 1")
    kept = chapter(house / "notebooks", "01_kept", "2 + 2")
    chapter(house / "notebooks", "02_unrun", "3 + 3")
    for path in (ran, kept):
        notebook = book.read(path)
        for number, cell in enumerate((c for c in notebook.cells if c.cell_type == "code"), 1):
            cell.execution_count = number
        book.write(notebook, path)
    page, notes = book.site([book.Run(ran, ran)], house / "build")
    assert notes == ["01_kept: as committed, not run now", "02_unrun: left out, never executed"]
    assert all(note in page.read_text() for note in notes)
    assert {"00_ran.html", "01_kept.html"} <= {p.name for p in page.parent.iterdir()}
    assert not (page.parent / "02_unrun.html").exists()


def test_chapters_command_writes_cleaned_notebooks_and_results(house, monkeypatch, capsys):
    good = chapter(house / "notebooks", "90_good", record("90"))
    warns = chapter(house / "notebooks", "91_warns", "import warnings\nwarnings.warn('old')")
    before = warns.read_bytes()
    ids = [cell.id for cell in book.read(good).cells]
    monkeypatch.setattr(command, "repo_root", lambda: house)
    monkeypatch.setattr(command, "results_folder", lambda: house / "data" / "results")
    assert command.main(["chapters"]) == 1
    assert "91_warns.ipynb not written: cell 3: stderr: " in capsys.readouterr().out
    assert warns.read_bytes() == before
    notebook = book.read(good)
    assert notebook.cells[2].outputs[0].text == "0 True zfnet\nclaim 9 holds: 0.12 [0.10, 0.15], bound 0\n"
    assert [cell.id for cell in notebook.cells] == ids
    assert book.faults(good) == [] and len(list((house / "data" / "results").glob("90--zfnet-s0-quick-*.json"))) == 1
    assert not list(house.rglob("*.part"))


def test_a_tagged_picture_becomes_the_thumbnail(tmp_path):
    picture, file = np.zeros((40, 20, 3), np.uint8), io.BytesIO()
    picture[:10] = 255  # the top, that a tall picture keeps
    Image.fromarray(picture).save(file, "PNG")
    output = new_output("display_data", {"image/png": base64.b64encode(file.getvalue()).decode()})
    cells = [new_code_cell("1", outputs=[]), new_code_cell("2", outputs=[output])]
    path = tmp_path / "01_x.ipynb"
    book.write(new_notebook(cells=cells), path)
    assert book.thumbnail(path) is None
    cells[1].metadata["tags"] = ["thumbnail"]
    book.write(new_notebook(cells=cells), path)
    shown = np.asarray(Image.open(io.BytesIO(book.thumbnail(path, 40, 30))))
    assert shown.shape == (30, 40, 3) and shown[:18].min() > 200 and shown[22:].max() < 60


def slider_cell(with_picture):
    data = {book.VIEW: {"model_id": "0"}, "text/plain": "a grey dot"} | ({"image/png": PIXELS} if with_picture else {})
    output = new_output("display_data", data=data, metadata={book.VIEW: {}})
    return new_code_cell("live()", execution_count=1, outputs=[output])


def test_clean_drops_the_view_and_keeps_the_still():
    notebook = new_notebook(cells=[slider_cell(True), slider_cell(False)], metadata={"widgets": {}, "papermill": {}})
    notebook.cells[0].metadata = nbformat.from_dict({"papermill": {}, "execution": {}, "tags": ["a"]})
    book.clean(notebook)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec == dict(display_name="Python 3", language="python", name="python3")
    assert notebook.cells[0].outputs[0].data == {"text/plain": "a grey dot", "image/png": PIXELS}
    assert not notebook.cells[0].outputs[0].metadata and notebook.cells[0].metadata == {"tags": ["a"]}
    assert notebook.cells[1].outputs == []


def broken(kind):
    """A notebook with one fault of this kind."""
    cell = new_code_cell("1", execution_count=1)
    notebook = book.clean(new_notebook(cells=[cell]))
    outputs = {
        "widget view": slider_cell(True).outputs[0],
        "error output": new_output("error", ename="ValueError", evalue="x", traceback=[]),
        "stderr": new_output("stream", name="stderr", text="careful"),
        "path of a machine": new_output("stream", text="see /home/ada/x.py"),
        "warning": new_output("stream", text="UserWarning: old"),
        "more than 1536": new_output("stream", text="x" * 1_600_000),
    }
    if kind in outputs:
        cell.outputs = [outputs[kind]]
    elif kind == "not executed":
        cell.execution_count = None
    elif kind == "execution metadata":
        cell.metadata["execution"] = {}
    elif kind == "kernelspec":
        notebook.metadata.kernelspec.display_name = "zf"
    else:
        notebook.metadata[kind.split()[0]] = {}
    return notebook


KINDS = (
    "widget view|error output|stderr|path of a machine|warning|more than 1536|not executed|execution metadata|"
    "kernelspec|widgets metadata|papermill metadata"
).split("|")


@pytest.mark.parametrize("kind", KINDS)
def test_check_names_the_file_and_what_is_unclean(tmp_path, capsys, kind):
    path = tmp_path / "00_x.ipynb"
    nbformat.write(broken(kind), path)
    before = path.read_bytes()
    assert command.main(["clean", "--check", str(path)]) == 1
    printed = capsys.readouterr().out
    assert str(path) in printed and kind in printed and printed.count("\n") == 1
    assert path.read_bytes() == before


def test_an_error_that_a_tag_expects_is_clean(tmp_path):
    notebook = broken("error output")
    notebook.cells[0].metadata["tags"] = ["raises-exception"]
    nbformat.write(notebook, tmp_path / "a.ipynb")
    assert book.faults(tmp_path / "a.ipynb") == []


def test_base64_of_a_picture_is_no_path(tmp_path):
    notebook = broken("none")
    notebook.metadata.pop("none")
    notebook.cells[0].outputs = [
        new_output("display_data", data={"image/png": "a=/home/abc", "text/html": '<img src="data:image/png;,/tmp/x">'})
    ]
    nbformat.write(notebook, tmp_path / "a.ipynb")
    assert book.faults(tmp_path / "a.ipynb") == []


def test_clean_of_no_notebook_is_one_line(tmp_path, capsys):
    assert command.main(["clean", str(tmp_path / "none.ipynb")]) == 2
    (tmp_path / "a.ipynb").write_text("no json")
    assert command.main(["clean", str(tmp_path / "a.ipynb")]) == 2
    error = capsys.readouterr().err
    assert "none.ipynb" in error and "not a notebook" in error and error.count("\n") == 2
    assert (tmp_path / "a.ipynb").read_text() == "no json"


def test_writing_leaves_the_old_file_where_it_fails(tmp_path):
    path = chapter(tmp_path, "00_x")
    before = path.read_bytes()
    notebook = book.read(path)
    notebook.cells[1].outputs = [{"output_type": "stream", "text": object()}]
    with pytest.raises((TypeError, AttributeError, nbformat.ValidationError)):
        book.write(notebook, path)
    assert path.read_bytes() == before


def test_doctor_says_what_is_wrong_and_what_to_do(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("ZFKIT_DATA", str(tmp_path / "gone"))
    assert command.main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith(("ok ", "wrong: ")) for line in lines)
    wrong = [line for line in lines if line.startswith("wrong") and "gone" in line]
    assert len(wrong) == 1 and "; do " in wrong[0]
    assert any(line.startswith("ok    torch ") for line in lines)


def test_unknown_subcommand_and_argument_exit_with_2():
    for words in (["nonsense"], ["doctor", "--loud"]):
        done = subprocess.run([sys.executable, "-m", "zfkit", *words], capture_output=True, text=True, cwd=book.ROOT)
        assert done.returncode == 2 and "Traceback" not in done.stderr


def test_doctor_reads_the_environment_as_the_chapters_do(monkeypatch, tmp_path):
    (tmp_path / "pics" / "holiday").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ZFKIT_DATA", "~/pics")
    monkeypatch.setenv("ZFKIT_CACHE", "")
    monkeypatch.chdir(tmp_path)
    lines = {line.split(":")[0]: (good, line) for good, line in doctor()}
    assert lines["data"] == (True, "data: holiday")
    assert lines["cache"][0] and lines["cache"][1].startswith("cache: data/cache, drawings ")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ZFKIT_CACHE", str(tmp_path / "file" / "inside"))
    good, line = {line.split(":")[0]: (good, line) for good, line in doctor()}["cache"]
    assert not good and "; do set ZFKIT_CACHE" in line


@pytest.mark.parametrize("option", ["--jobs", "--timeout"])
def test_numbers_of_jobs_and_seconds_are_checked(house, capsys, option):
    chapter(house / "notebooks", "90_x")
    assert command.main(["book", option, "0"]) == 2
    assert f"{option} must be 1 or more, got 0" in capsys.readouterr().err
