"""The worked examples in the docstrings of the rooms that look into a network give what they say."""

import doctest
from importlib import import_module

import pytest

ROOMS = "chain controls deconvnet fields forward geometry normalization occlusion projections search switches".split()


@pytest.mark.parametrize("room", ROOMS)
def test_examples(room):
    failed, tried = doctest.testmod(import_module(f"zfkit.{room}"))
    assert tried and not failed
