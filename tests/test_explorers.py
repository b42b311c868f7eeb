"""Slider boxes: the picture follows, the still stands, ranges follow, errors show."""

import asyncio
import base64
import io

import numpy as np
import pytest
from ipywidgets import Dropdown, IntSlider
from PIL import Image

from zfkit import explorers
from zfkit.explorers import Picture, encode, live


def draw(layer, channel):
    picture = np.zeros((20, 30, 3), np.uint8)
    picture[:, : 3 * channel + 1] = 255 if layer == "a" else 100
    return picture


def say(layer, channel):
    return f"{layer}, channel {channel}"


@pytest.fixture
def box():
    layer, channel = Dropdown(options=["a", "b"]), IntSlider(5, 0, 9)
    return live(
        draw, say, limits=lambda layer, **_: {"channel": 9 if layer == "a" else 3}, layer=layer, channel=channel
    )


def shown(box):
    return box.children[-1].value


def bytes_in(page):
    return base64.b64decode(page.split("base64,")[1].split('"')[0])


def test_a_moved_slider_redraws_by_the_same_function(box):
    for value in (0, 7):
        box.controls["channel"].value = value
        assert bytes_in(shown(box)) == encode(draw("a", value))
        assert f'alt="a, channel {value}"' in shown(box)


def test_the_range_follows_the_other_control(box):
    box.controls["channel"].value = 8
    box.controls["layer"].value = "b"
    assert (box.controls["channel"].max, box.controls["channel"].value) == (3, 3)
    assert bytes_in(shown(box)) == encode(draw("b", 3))
    box.controls["layer"].value = "a"
    assert box.controls["channel"].max == 9


def test_the_still_is_what_the_sliders_say(box):
    box.controls["channel"].value = 2
    bundle = box._repr_mimebundle_()
    assert bundle["text/plain"] == "a, channel 2"
    assert bundle["image/jpeg"] == encode(draw("a", 2))
    assert "application/vnd.jupyter.widget-view+json" in bundle


def test_boxes_are_kept_by_name(box):
    assert explorers.BOXES["draw"] is box


def test_an_error_is_shown_and_raised():
    def refuse(channel):
        if channel:
            raise ValueError("no <channel> 1")
        return draw("a", 0)

    box = live(refuse, lambda channel: "", channel=IntSlider(0, 0, 1))
    with pytest.raises(ValueError):
        box.controls["channel"].value = 1
    assert "no &lt;channel&gt; 1" in shown(box)


def test_a_picture_carries_its_description():
    data, about = Picture(draw("a", 3), "ten white columns")._repr_mimebundle_()
    assert data["text/plain"] == "ten white columns"
    assert Image.open(io.BytesIO(data["image/jpeg"])).size == (30, 20)
    assert about["image/jpeg"]["width"] == 30


@pytest.mark.parametrize("wrong", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)])
def test_only_colour_pictures_are_encoded(wrong):
    with pytest.raises(ValueError, match="uint8"):
        encode(wrong)


# --- a coarse picture first ---------------------------------------------------------------------------------


class Slow:
    """A drawing function whose picture takes four steps of work; until then it says that it is coarse."""

    def __init__(self, broken=False):
        self.broken, self.steps = broken, dict.fromkeys(range(10), 0)

    def draw(self, channel):
        return draw("a" if self.steps[channel] == 4 else "b", channel)

    def say(self, channel):
        return f"channel {channel}, {'fine' if self.steps[channel] == 4 else 'coarse'}"

    def refine(self, channel):
        while self.steps[channel] < 4:
            self.steps[channel] += 1
            if self.broken:
                raise MemoryError("no room")
            yield

    def box(self):
        return live(self.draw, self.say, refine=self.refine, channel=IntSlider(5, 0, 9))


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr(explorers, "REST", 0.001)
    monkeypatch.setattr(explorers, "GAP", 0.001)


def test_a_coarse_picture_stands_first_and_is_refined_in_its_place(hasty):
    slow, seen = Slow(), []

    async def read():
        box = slow.box()
        seen.append(shown(box))
        await box.task
        seen.append(shown(box))
        box.children[-1].observe(lambda change: seen.append("again"), "value")
        box.controls["channel"].value = 5  # no move
        await box.task

    asyncio.run(read())
    assert ["channel 5, coarse" in seen[0], "channel 5, fine" in seen[1]] == [True, True]
    assert bytes_in(seen[1]) == encode(draw("a", 5)) and len(seen) == 2


def test_a_move_stops_the_refinement_which_goes_on_where_it_was(hasty, monkeypatch):
    monkeypatch.setattr(explorers, "GAP", 0.02)
    slow = Slow()

    async def move():
        box = slow.box()
        while slow.steps[5] < 2:
            await asyncio.sleep(0.001)
        box.controls["channel"].value = 6
        assert "channel 6, coarse" in shown(box)  # at once
        await box.task
        assert slow.steps[5] == 2 and "channel 6, fine" in shown(box)
        box.controls["channel"].value = 5
        await box.task
        assert slow.steps[5] == 4 and "channel 5, fine" in shown(box)

    asyncio.run(move())


def test_an_error_of_the_refinement_is_shown(hasty):
    async def fail():
        box = Slow(broken=True).box()
        with pytest.raises(MemoryError):
            await box.task
        return box

    assert "MemoryError: no room" in shown(asyncio.run(fail()))


def test_without_a_kernel_the_coarse_picture_stays():
    slow = Slow()
    assert "coarse" in shown(slow.box()) and not slow.steps[5]
