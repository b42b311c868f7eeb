"""Order and outcome of the whole run: quick tests first, then notebooks, chapters, browser; speed only when asked."""

import os
import re
import resource
from collections import Counter

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


def pytest_addoption(parser):
    parser.addoption("--cpu", action="store_true", help="print the CPU seconds of each test file, its kernels' with it")


def cpu_seconds() -> float:
    """CPU seconds of this process and of its ended children so far."""
    spent = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in spent)


_counted = [0.0]  # what earlier tests of this process used


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Each phase of a test says what it used: a kernel counts where it ends, at its notebook's last cell."""
    report, now = (yield).get_result(), cpu_seconds()
    report.user_properties.append(("cpu", now - _counted[0]))
    _counted[0] = now


def pytest_terminal_summary(terminalreporter, config):
    """With --cpu, the CPU seconds by file (chapter by chapter in tests/chapters), most first."""
    spent = Counter()
    for report in sum(terminalreporter.stats.values(), []):
        for name, seconds in getattr(report, "user_properties", ()):
            spent[together(report.nodeid)] += seconds if name == "cpu" else 0
    if config.option.cpu and spent:
        terminalreporter.write_line(f"CPU seconds by file, {sum(spent.values()):.0f} in all")
        for file, seconds in spent.most_common():
            terminalreporter.write_line(f"{seconds:8.1f} {file}")
