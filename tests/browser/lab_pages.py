"""A JupyterLab on the loopback with a token, a Chromium that opens it, and notebooks to open. One of each a run."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from zfkit import book

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
SETTINGS = {
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},  # every cell stays in the page
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
DRAWN = """import numpy as np
from ipywidgets import Dropdown, IntSlider
from zfkit.explorers import live

def draw_stripes(layer, channel):
    rows = np.arange(96) * (channel + 1) // 24 % 2
    grey = np.repeat(rows[:, None], 128, axis=1) * (200 if layer == "conv1" else 120)
    return np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)

def describe_stripes(layer, channel):
    return f"stripes of {layer}, channel {channel}"

live(draw_stripes, describe_stripes, layer=Dropdown(options=["conv1", "conv2"]), channel=IntSlider(2, 0, 9))"""

REFINED = """import time
import numpy as np
from ipywidgets import IntSlider
from zfkit.explorers import live

worked = {}

def draw_slowly(number):
    return np.full((60, 90, 3), 80 * number + 9 * (worked.get(number) == 100), np.uint8)

def describe(number):
    return f"{number}, {'fine' if worked.get(number) == 100 else 'coarse'}"

def refine(number):
    while worked.setdefault(number, 0) < 100:
        time.sleep(0.03)
        worked[number] += 1
        yield

live(draw_slowly, describe, refine=refine, number=IntSlider(0, 0, 2))"""


@pytest.fixture(scope="session")
def browser():
    """Chromium, driven by playwright; without it the tests are skipped, or fail where it must be there."""
    if CHROMIUM is None:
        reason = "no chromium on this machine: sliders were not tried in a browser (apt-get install chromium)"
        pytest.fail(reason) if os.environ.get("ZFKIT_REQUIRE_BROWSER") == "1" else pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """Address with %s for a notebook's name, and the folder, of a JupyterLab on copies of the chapters."""
    home = tmp_path_factory.mktemp("lab")
    folder = home / "notebooks"
    folder.mkdir()
    for path in book.chapters():
        shutil.copy(path, folder)
    for name, code in (("toy", DRAWN), ("refined", REFINED)):
        toy = new_notebook(cells=[new_markdown_cell("# A toy slider"), new_code_cell(code)])
        nbformat.write(book.clean(toy), folder / f"{name}.ipynb")
    for name, values in SETTINGS.items():
        (home / "settings" / f"{name}.jupyterlab-settings").parent.mkdir(parents=True, exist_ok=True)
        (home / "settings" / f"{name}.jupyterlab-settings").write_text(json.dumps(values))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex(16)
    own = ("CONFIG_DIR", "RUNTIME_DIR", "DATA_DIR")
    env = os.environ | {f"JUPYTER_{name}": str(home / name) for name in own}
    env |= {"JUPYTERLAB_SETTINGS_DIR": str(home / "settings"), "IPYTHONDIR": str(home / "ipython")}
    env |= {"JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"), "JUPYTER_PREFER_ENV_PATH": "1"}
    command = f"-m jupyterlab --no-browser --allow-root --ip=127.0.0.1 --port={port} --ServerApp.port_retries=0"
    options = [f"--IdentityProvider.token={token}", "--LabApp.expose_app_in_browser=True"]
    options += ["--LabApp.extension_manager=readonly", f"--ServerApp.root_dir={folder}"]
    with (home / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, *command.split(), *options], env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/api/status?token={token}", server, home / "log")
        yield f"http://127.0.0.1:{port}/lab/tree/%s?token={token}&reset", folder
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()


def wait_for(address, server, log, seconds=90):
    """Return once the server answers; fail with its log if it ended or stays silent."""
    end = time.time() + seconds
    while time.time() < end and server.poll() is None:
        try:
            return urllib.request.urlopen(address, timeout=5).read()
        except OSError:
            time.sleep(0.3)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")


STATE = """(() => {
  const cells = [...jupyterapp.shell.currentWidget.content.model.cells].filter(c => c.type === 'code');
  return {left: cells.filter(c => c.executionCount === null).length,
          broken: cells.some(c => c.outputs.toJSON().some(o => o.output_type === 'error')),
          status: jupyterapp.shell.currentWidget.sessionContext.session.kernel.status};
})()"""
ASK = """async ([code, patience]) => {
  const kernel = jupyterapp.shell.currentWidget.sessionContext.session.kernel;
  const asked = kernel.requestExecute(
    {code, silent: false, store_history: false, user_expressions: {answer: '_answer'}}).done;
  const late = new Promise(done => setTimeout(() => done(null), patience));
  return (await Promise.race([asked, late]))?.content;
}"""


class Opened:
    """A notebook open in the browser: runs it, asks its kernel, and counts what went wrong on the page."""

    def __init__(self, page):
        self.page, self.errors = page, []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)

    def run_all(self, seconds=600):
        """Run every cell; the error and stderr outputs that the notebook then holds.

        A request that is lost on the way, as happens on a crowded machine, is made again.
        """
        self.page.set_default_timeout(60_000)
        self.page.evaluate("void jupyterapp.commands.execute('notebook:clear-all-cell-outputs')")
        end, quiet, before = time.monotonic() + seconds, 0.0, None
        while (state := self.page.evaluate(STATE))["left"] and not state["broken"]:
            assert time.monotonic() < end, f"not run within {seconds} s: {state}"
            if time.monotonic() > quiet and (before is None or (state == before and state["status"] == "idle")):
                self.page.evaluate("void jupyterapp.commands.execute('notebook:run-all-cells')")
            if state != before:
                before, quiet = state, time.monotonic() + 30
            self.page.wait_for_timeout(300)
        self.idle(seconds)
        return self.page.evaluate(
            """[...jupyterapp.shell.currentWidget.content.model.cells].filter(c => c.type === 'code')
            .flatMap(c => c.outputs.toJSON()).filter(o => o.output_type === 'error' || o.name === 'stderr')"""
        )

    def idle(self, seconds=60):
        """Wait until the kernel has nothing more to do."""
        self.ask("None", seconds)
        self.page.wait_for_function(
            "jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'idle'",
            timeout=seconds * 1000,
            polling=100,
        )

    def ask(self, expression, seconds=60):
        """What an expression is in the notebook's kernel, by way of JSON; asked again if no answer comes."""
        code = f"import json as _json; import zfkit.explorers as _e; _answer = _json.dumps({expression})"
        for _ in range(3):
            reply = self.page.evaluate(ASK, [code, seconds * 1000])
            if reply:
                break
        assert reply and reply["status"] == "ok", reply
        return json.loads(eval(reply["user_expressions"]["answer"]["data"]["text/plain"]))


@pytest.fixture(scope="session")
def opened(browser, lab):
    """opened(name): a context with that notebook open, its kernel started and, at the end, shut down."""
    address, _ = lab

    @contextmanager
    def opener(name):
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        notebook = Opened(page)
        page.goto(address % name)
        page.wait_for_function(
            "globalThis.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'",
            timeout=90_000,
        )
        try:
            yield notebook
        finally:
            page.evaluate("jupyterapp.shell.currentWidget.sessionContext.shutdown()")
            page.close()

    return opener
