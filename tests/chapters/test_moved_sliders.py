"""What tests/chapters asks of sliders, tried on boxes of a few lines: right ones pass, each fault is seen."""

import asyncio

import numpy as np
import pytest
from ipywidgets import Dropdown, IntSlider
from moved_sliders import box_moved
from test_chapters import check_moves

from zfkit.explorers import live


def bars(layer, channel):
    """A picture that depends on both values."""
    return np.full((8, 8 + channel, 3), 60 if layer == "conv1" else 180, np.uint8)


def words(layer, channel):
    return f"{layer}, channel {channel}"


def box(render=bars, alt=words, **options):
    return live(render, alt, layer=Dropdown(options=["conv1", "conv2"]), channel=IntSlider(2, 0, 9), **options)


def test_a_right_box_passes_with_first_last_and_middle_values():
    seen = asyncio.run(box_moved(box()))
    assert seen["layer"]["values"] == ["conv1", "conv2"] and seen["channel"]["values"] == [0, 9, 4]
    check_moves("bars", seen)


def test_a_range_that_hangs_on_another_control_is_kept():
    seen = asyncio.run(box_moved(box(limits=lambda layer, channel: {"channel": 5 if layer == "conv2" else 9})))
    assert max(seen["channel"]["values"]) == 5


def exchanged():
    """A box whose drawing function became another one behind its back."""
    shown = box()
    shown.render = lambda layer, channel: bars(layer, 3)
    return shown


@pytest.mark.parametrize(
    "make, fault",
    [
        (lambda: box(alt=lambda layer, channel: layer), "channel"),
        (lambda: box(alt=lambda layer, channel: f"{layer}, {'abc'[channel % 3]}{channel // 9}"), "channel"),
        (lambda: box(render=lambda layer, channel: bars(layer, 0)), "the picture stays"),
        (exchanged, "another picture"),
    ],
)
def test_each_fault_is_seen(make, fault):
    with pytest.raises(AssertionError, match=fault):
        check_moves("bars", asyncio.run(box_moved(make())))
