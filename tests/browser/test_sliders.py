"""Sliders in a real browser: every one moves its picture by key and by mouse, and the picture is the right one.

Two chapters in every run, the others nightly; tests/chapters moves all of their sliders in a kernel, each time.
"""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from zfkit import book

pytestmark = [pytest.mark.browser, pytest.mark.slow]
EVERY_RUN = ("00", "02")  # one whose picture is refined while the sliders rest, one with layers and channels
CHAPTERS = [path.name for path in book.chapters() if "live(" in path.read_text()]
NAMES = [name if name[:2] in EVERY_RUN else pytest.param(name, marks=pytest.mark.nightly) for name in CHAPTERS]
BOX = ".jp-OutputArea-output .widget-vbox:has(.widget-html img)"


class Shown:
    """A slider box on the page beside its twin in the kernel, `BOXES[name]`."""

    def __init__(self, notebook, name, place):
        self.notebook, self.name = notebook, name
        self.box = notebook.page.locator(BOX).nth(place)
        self.image = self.box.locator(".widget-html img")
        self.handles = self.box.locator(".noUi-handle")

    def source(self):
        return self.image.get_attribute("src")

    def changed(self, old, seconds=20):
        """Has the picture become another one than `old`?"""
        for _ in range(seconds * 20):
            if self.source() != old:
                return True
            self.notebook.page.wait_for_timeout(50)
        return False

    def values(self):
        return self.notebook.ask(f"_e.BOXES[{self.name!r}].values()")

    def settle(self, seconds=60):
        """Wait until the kernel is idle and no finer picture is to come."""
        self.notebook.idle()
        for _ in range(seconds * 10):
            if not self.notebook.ask(f"bool((_t := _e.BOXES[{self.name!r}].task) and not _t.done())"):
                return
            self.notebook.page.wait_for_timeout(100)
        raise AssertionError(f"{self.name}: still refining after {seconds} s")

    def compare(self):
        """The picture on the page, decoded, and its alt text are what a direct call of the functions gives."""
        self.settle()
        box = f"_e.BOXES[{self.name!r}]"
        alt = self.notebook.ask(f"{box}.describe(**{box}.values())")
        direct = self.notebook.ask(
            f"__import__('base64').b64encode(_e.encode({box}.render(**{box}.values()))).decode()"
        )
        self.notebook.page.wait_for_timeout(100)
        assert self.image.get_attribute("alt") == alt
        shown = pixels(self.source().split(",", 1)[1])
        np.testing.assert_array_equal(shown, pixels(direct))
        assert self.image.evaluate("i => i.complete && [i.naturalHeight, i.naturalWidth]") == list(shown.shape[:2])
        return alt, shown


def pixels(encoded):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))


def direction(handle):
    """+1 if a slider stands in its lower half, else -1."""
    low, now, high = (float(handle.get_attribute(f"aria-value{key}")) for key in ("min", "now", "max"))
    return 1 if now < (low + high) / 2 else -1


def move_by_key(shown, handle):
    """Arrow keys, up to four: neighbours may look alike. Says whether the picture changed."""
    key = "ArrowRight" if direction(handle) > 0 else "ArrowLeft"
    for _ in range(4):
        old = shown.source()
        handle.focus()
        shown.notebook.page.keyboard.press(key)
        if shown.changed(old, 5):
            return True
    return False


def move_by_mouse(shown, handle):
    """Drag the handle a third of the track towards its far end."""
    old, mouse = shown.source(), shown.notebook.page.mouse
    handle.scroll_into_view_if_needed()
    at, track = (
        handle.bounding_box(),
        handle.locator("xpath=ancestor::*[contains(@class,'noUi-target')]").bounding_box(),
    )
    x, y = at["x"] + at["width"] / 2, at["y"] + at["height"] / 2
    mouse.move(x, y)
    mouse.down()
    mouse.move(x + direction(handle) * track["width"] / 3, y, steps=6)
    mouse.up()
    return shown.changed(old)


@pytest.mark.parametrize("name", ["toy.ipynb", *NAMES])
def test_every_slider_moves_its_picture(opened, name):
    with opened(name) as notebook:
        assert notebook.run_all() == []
        names = notebook.ask("list(_e.BOXES)")
        notebook.page.locator(BOX).first.wait_for()
        assert notebook.page.locator(BOX).count() == len(names) > 0
        for place, box in enumerate(names):
            check(Shown(notebook, box, place))
        assert notebook.errors == []


def check(shown):
    """Move each slider of a box by key and by mouse; compare picture and words at three values of each."""
    shown.compare()
    sliders = [key for key, kind in controls(shown).items() if kind in ("IntSlider", "SelectionSlider")]
    assert shown.handles.count() == len(sliders) > 0
    for number, slider in enumerate(sliders):
        handle = shown.handles.nth(number)
        where = f"{shown.name}: {slider}"
        assert move_by_key(shown, handle), f"{where}: no key changes the picture"
        shown.notebook.idle()
        assert move_by_mouse(shown, handle), f"{where}: dragging changes nothing"
        seen = {}
        for key in ("Home", "End", "PageDown"):
            handle.focus()
            shown.notebook.page.keyboard.press(key)
            shown.notebook.page.wait_for_timeout(300)
            alt, _ = shown.compare()
            values = shown.values()
            seen[values[slider]] = alt
            for control, value in values.items():
                if control in ("layer", "channel", slider):
                    assert str(value) in alt, f"{where}: alt text {alt!r} does not name {control} {value}"
        assert len(seen) == len(set(seen.values())) >= 2, f"{where}: {seen}"


def controls(shown):
    return shown.notebook.ask(f"{{k: type(c).__name__ for k, c in _e.BOXES[{shown.name!r}].controls.items()}}")


def test_a_number_field_moves_the_slider_too(opened):
    with opened("toy.ipynb") as notebook:
        assert notebook.run_all() == []
        shown = Shown(notebook, "draw_stripes", 0)
        field = shown.box.get_by_role("spinbutton", name="channel")
        old = shown.source()
        field.fill("7")
        field.press("Enter")
        assert shown.changed(old) and shown.values()["channel"] == 7
        shown.box.get_by_role("combobox", name="layer").select_option("conv2")
        notebook.page.wait_for_timeout(300)
        assert shown.compare()[0] == "stripes of conv2, channel 7"


def test_a_coarse_picture_comes_first_and_a_move_is_heard_while_it_is_refined(opened):
    """By what the page shows: each alt text in its order, from the key on."""
    with opened("refined.ipynb") as notebook:
        assert notebook.run_all() == []
        shown = Shown(notebook, "draw_slowly", 0)
        shown.compare()
        shown.box.evaluate(
            """box => { box.seen = []; new MutationObserver(() => {
              const alt = box.querySelector('.widget-html img').alt;
              if (box.seen.at(-1) !== alt) box.seen.push(alt);
            }).observe(box.querySelector('.widget-html'), {childList: true, subtree: true}) }"""
        )
        shown.handles.first.focus()
        notebook.page.keyboard.press("ArrowRight")
        notebook.page.wait_for_timeout(1000)  # amid the refinement, which takes 3 seconds
        notebook.page.keyboard.press("ArrowRight")
        notebook.page.wait_for_timeout(500)
        assert shown.box.evaluate("box => box.seen") == ["1, coarse", "2, coarse"]
        shown.compare()
        notebook.page.keyboard.press("ArrowLeft")
        shown.compare()
        assert shown.box.evaluate("box => box.seen") == ["1, coarse", "2, coarse", "2, fine", "1, coarse", "1, fine"]
        assert notebook.ask("worked") == {"0": 100, "1": 100, "2": 100}  # nothing was done twice
        assert notebook.errors == []


def test_a_wrong_picture_would_be_seen(opened):
    """The comparison itself: with a box whose drawing function was exchanged behind the page's back it must fail."""
    with opened("toy.ipynb") as notebook:
        assert notebook.run_all() == []
        shown = Shown(notebook, "draw_stripes", 0)
        shown.compare()
        notebook.ask("_e.BOXES['draw_stripes'].__setattr__('render', lambda **v: draw_stripes('conv2', 0))")
        with pytest.raises(AssertionError):
            shown.compare()


def test_the_server_wants_its_token(lab):
    import urllib.error
    import urllib.request

    address = lab[0].split("/lab/tree")[0]
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"{address}/api/contents", timeout=10)
