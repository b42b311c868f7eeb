"""The names that users rely on: functions, before and after the modules that hold them are imported."""

from pathlib import Path

import zfkit


def test_no_module_hides_a_name():
    """A module named like its function would take its place in the package once it is imported."""
    assert not set(zfkit.__all__) & {path.stem for path in Path(zfkit.__file__).parent.iterdir()}


def test_every_name_is_there_and_can_be_called():
    assert all(callable(getattr(zfkit, name)) for name in zfkit.__all__)
    assert set(zfkit.__all__) <= set(dir(zfkit))
