"""Order and outcome of the whole run: quick tests first, then notebooks, chapters, browser; speed only when asked."""

import os
import re

import pytest

os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")
os.environ.setdefault("JUPYTER_PLATFORM_DIRS", "1")

PLACES = ("tests/test_", "notebooks/", "tests/chapters/", "tests/browser/", "tests/bench/")
ASKED = ("bench", "nightly")  # markers whose tests run only where `-m` names the marker


def place(item) -> int:
    """Where in the run an item belongs: index of its folder in PLACES."""
    return next((n for n, start in enumerate(PLACES) if item.nodeid.startswith(start)), 0)


def together(nodeid: str) -> str:
    """What runs in one process, one after another: a file's tests, a notebook's cells, the browser.

    Tests of a chapter, "[02]", share one run of it; the others of tests/chapters go alone.
    """
    file = nodeid.split("::")[0]
    if not file.startswith("tests/chapters/"):
        return "browser" if "browser" in file else file
    chapter = re.search(r"\[\d\d\]$", nodeid)
    return file + chapter[0] if chapter else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """The work of `pytest -n 2` by `together`."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return together(nodeid)

    return Scheduling(config, log)


def pytest_collection_modifyitems(config, items):
    """Fast first; speed measurements and nightly runs only where `-m` names them."""
    items.sort(key=place)
    left_out = [marker for marker in ASKED if marker not in config.option.markexpr]
    kept = [item for item in items if not any(item.get_closest_marker(marker) for marker in left_out)]
    if len(kept) < len(items):
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept
