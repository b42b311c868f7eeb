"""Sphinx's settings for the site: executed chapters in, pages out that ask no other machine for anything."""

import json
import re

project = "Visualizing and understanding, by doing"
extensions = ["myst_nb", "sphinx-mathjax-offline"]
exclude_patterns = ["build.md"]
html_theme = "furo"
html_title = project
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_show_sourcelink = False
nb_execution_mode = "off"
nb_ipywidgets_js = {}  # the default loads two scripts from elsewhere
nb_merge_streams = True
nb_render_markdown_format = "gfm"  # tables that a cell gives as Markdown
myst_enable_extensions = ["dollarmath", "amsmath", "html_image"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header", "myst.xref_missing"]  # chapters also link to files beside the site


def sentence(text: str) -> str:
    """The first sentence of a Markdown cell as plain words, at most 250 characters."""
    lines = [line.lstrip("> ") for line in text.splitlines() if not line.lstrip().startswith(("#", "|", "```", "<"))]
    words = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(lines))
    words = re.sub(r"[*_`$]", "", words).strip()
    return re.split(r"(?<=[.!?])\s", words)[0][:250]


def described(output) -> str:
    """What an output says of its picture in words, empty where that is only a `<Figure size ...>`."""
    words = "".join(output.get("data", {}).get("text/plain", "")).strip().strip("'\"")
    return "" if words.startswith("<") else words


def give_alt_text(app, docname, source) -> None:
    """Every picture of a notebook gets alt text: its own words, else the first sentence after (or before) it."""
    if not source[0].lstrip().startswith("{"):
        return
    notebook = json.loads(source[0])
    cells = notebook["cells"]
    for index, cell in enumerate(cells):
        pictures = [o for o in cell.get("outputs", []) if any(k.startswith("image/") for k in o.get("data", {}))]
        if not pictures:
            continue
        beside = [
            c["source"] for c in cells[index + 1 : index + 2] + cells[:index][::-1] if c["cell_type"] == "markdown"
        ]
        texts = [*map(described, pictures), *(sentence("".join(text)) for text in beside)]
        words = next(filter(None, texts), "")
        if words:
            cell["metadata"].setdefault("mystnb", {}).setdefault("image", {}).setdefault("alt", words)
    source[0] = json.dumps(notebook)


def setup(app) -> None:
    """Sphinx calls this once: hang in what gives pictures their words."""
    app.connect("source-read", give_alt_text)
