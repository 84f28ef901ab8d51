"""A real browser on a real JupyterLab: notebook 03 runs, and its explorer answers to every slider."""

# ruff: noqa: RUF001 -- the sliders are called σ and μ

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import Page, expect, sync_playwright

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOK = "03_feature_similarity_loss.ipynb"
SECONDS = 1000.0  # playwright counts milliseconds


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab on a copy of the notebook; its address."""
    home = tmp_path_factory.mktemp("lab")
    notebook = nbformat.read(FOLDER / NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None  # what is seen later is new
    notebook.metadata.pop("widgets", None)
    nbformat.write(notebook, home / NOTEBOOK)
    settings = home / "settings"
    settings.mkdir()
    # every cell is laid out at once, so that the page can be searched as a whole
    overrides = {
        "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
        "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    }
    (settings / "overrides.json").write_text(json.dumps(overrides))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    places = {f"JUPYTER_{kind}_DIR": str(home / kind.lower()) for kind in ("CONFIG", "RUNTIME", "DATA")}
    environment = {**os.environ, **places, "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces")}
    environment["JUPYTER_PREFER_ENV_PATH"] = "1"
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
        "--ServerApp.port_retries=0", "--IdentityProvider.token=", "--ServerApp.disable_check_xsrf=True",
        f"--ServerApp.root_dir={home}", f"--LabApp.app_settings_dir={settings}",
    ]  # fmt: skip
    with open(home / "server.log", "w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=home)
        try:
            address = f"http://127.0.0.1:{port}"
            _wait_for(f"{address}/api", server, home / "server.log")
            yield address
        finally:
            server.terminate()
            server.wait(timeout=30)


def _wait_for(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()[-2000:]
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.3)
    raise AssertionError(f"JupyterLab did not answer in 90 s: {log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def page(lab):
    """The notebook in Debian's chromium, all cells run."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert chromium, "the browser tests need chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1500, "height": 1100})
        page.goto(f"{lab}/lab/tree/{NOTEBOOK}?reset")
        page.locator(".jp-Notebook").wait_for(timeout=60 * SECONDS)
        page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=60 * SECONDS)
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        # the solutions of the exercises are the last cells
        solved = page.locator(".jp-OutputArea-output", has_text="✓")
        expect(solved).to_have_count(_exercises(), timeout=180 * SECONDS)
        yield page
        browser.close()


def _exercises() -> int:
    cells = nbformat.read(FOLDER / NOTEBOOK, as_version=4).cells
    return sum("solution" in cell.metadata.get("tags", []) for cell in cells)


def _picture(page: Page) -> str:
    return page.locator(".wsss-explorer img").get_attribute("src")


def _settled(page: Page) -> tuple[str, str]:
    """Picture and words once nothing has changed for half a second."""
    seen = _picture(page), _words(page)
    for _ in range(40):
        page.wait_for_timeout(0.5 * SECONDS)
        seen, before = (_picture(page), _words(page)), seen
        if seen == before:
            return seen
    raise AssertionError("the explorer does not come to rest")


def _expect_another_picture(page: Page, before: str) -> None:
    image = page.locator(".wsss-explorer img")
    expect(image).not_to_have_attribute("src", before, timeout=20 * SECONDS)
    assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") > 500, "a whole picture"


def _words(page: Page) -> str:
    return page.locator(".wsss-explorer [role=status]").inner_text()


def test_run_all_leaves_no_error(page):
    assert page.locator(".jp-Notebook [data-mime-type='application/vnd.jupyter.stderr']").count() == 0
    assert page.locator(".jp-Notebook [data-mime-type='application/vnd.jupyter.error']").count() == 0
    expect(page.locator(".wsss-explorer img")).to_be_visible()


@pytest.mark.parametrize("name", ["μ", "σ (map pixels)", "row of i", "column of i"])
def test_every_slider_changes_the_picture(page, name):
    slider = page.locator(".wsss-explorer .widget-slider", has_text=name)
    handle = slider.locator(".noUi-handle")
    handle.scroll_into_view_if_needed()
    before, words = _settled(page)
    handle.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    _expect_another_picture(page, before)
    assert _settled(page)[1] != words, "the description follows the picture"
    assert page.locator(".wsss-explorer img").count() == 1, "one picture, updated in place"


def test_descending_lowers_the_loss_it_shows(page):
    before, words = _settled(page)
    page.get_by_role("button", name="descend 10 steps").click()
    _expect_another_picture(page, before)
    assert _loss(_settled(page)[1]) < _loss(words)


def _loss(words: str) -> float:
    return float(words.rsplit("loss ", 1)[1].rstrip("."))


def test_another_image_can_be_chosen(page):
    before, _ = _settled(page)
    page.locator(".wsss-explorer select").select_option(label="Synthetic fish")
    _expect_another_picture(page, before)
