"""The names that users rely on: functions, before and after the modules that hold them are imported."""

import subprocess
import sys

import pytest

import zfkit


@pytest.mark.parametrize("first", ["pass", "zfkit.strongest", "import zfkit.strongest", "from zfkit import strongest"])
def test_a_name_is_its_function_also_where_its_module_has_the_same_name(first):
    code = f"import zfkit; {first}; assert zfkit.strongest is zfkit.strongest; print(zfkit.strongest.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "strongest", done.stderr


def test_every_name_is_there_and_can_be_called():
    assert all(callable(getattr(zfkit, name)) for name in zfkit.__all__)
    assert set(zfkit.__all__) <= set(dir(zfkit))
