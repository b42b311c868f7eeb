"""Order and outcome of the whole run: quick tests first, then notebooks, chapters, browser; speed only when asked."""

import os

import pytest

os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")
os.environ.setdefault("JUPYTER_PLATFORM_DIRS", "1")

PLACES = ("tests/test_", "notebooks/", "tests/chapters/", "tests/browser/", "tests/bench/")


def place(item) -> int:
    """Where in the run an item belongs: index of its folder in PLACES."""
    return next((n for n, start in enumerate(PLACES) if item.nodeid.startswith(start)), 0)


def together(nodeid: str) -> str:
    """What runs in one process, one after another: a file's tests, a notebook's cells, the browser; a chapter alone."""
    file = nodeid.split("::")[0]
    return nodeid if file.startswith("tests/chapters/") else "browser" if "browser" in file else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """The work of `pytest -n 2` by `together`."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return together(nodeid)

    return Scheduling(config, log)


def pytest_collection_modifyitems(config, items):
    """Fast first; speed measurements only where `-m` names them."""
    items.sort(key=place)
    if "bench" in config.option.markexpr:
        return
    kept = [item for item in items if item.get_closest_marker("bench") is None]
    if len(kept) < len(items):
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept
