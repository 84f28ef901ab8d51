"""JupyterLab and Debian's chromium for tests: notebooks open, run and are played with as a person would."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import nbformat
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

SECONDS = 1000.0  # playwright counts milliseconds
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Lab(NamedTuple):
    """Where JupyterLab is, and the token that it asks for."""

    address: str
    token: str


@contextmanager
def jupyterlab(home: Path, notebooks: list[nbformat.NotebookNode], names: list[str]) -> Iterator[Lab]:
    """JupyterLab on copies of the notebooks without their outputs, so that what is seen is new."""
    for notebook, name in zip(notebooks, names, strict=True):
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        notebook.metadata.pop("widgets", None)
        nbformat.write(notebook, home / name)
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
    # whoever else is on this machine can reach the port; a token on the command line could be read there
    token = environment["JUPYTER_TOKEN"] = secrets.token_hex(16)
    environment.pop("WSSS_NB_HEADLESS", None)
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        "--ip=127.0.0.1",
        f"--port={port}",
        "--ServerApp.port_retries=0",
        f"--ServerApp.root_dir={home}",
        f"--LabApp.app_settings_dir={settings}",
    ]
    with open(home / "server.log", "w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=home)
        try:
            address = f"http://127.0.0.1:{port}"
            _wait_for(f"{address}/api", server, home / "server.log")
            yield Lab(address, token)
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


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def run_all(browser: Browser, lab: Lab, name: str) -> Page:
    """Open a notebook in a page of its own and have all its cells run."""
    page = browser.new_page(viewport={"width": 1500, "height": 1100})
    page.goto(f"{lab.address}/lab/workspaces/{Path(name).stem}/tree/{name}?reset&token={lab.token}")
    page.locator(".jp-Notebook").wait_for(timeout=60 * SECONDS)
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=60 * SECONDS)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    return page


def wait_for_the_end(page: Page, verdicts: int) -> None:
    """Until the explorer shows a picture and the solutions, which are the last cells, have their ``verdicts`` (✓)."""
    page.locator(".wsss-explorer img").wait_for(timeout=240 * SECONDS)
    solved = page.locator(".jp-OutputArea-output", has_text="✓")
    expect(solved).to_have_count(verdicts, timeout=240 * SECONDS)


class Play:
    """The explorer of a page: what it shows, what it says, and hands on its controls."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.box = page.locator(".wsss-explorer")
        self.image = self.box.locator("img")

    def picture(self) -> str:
        """Address of the picture, another one for every picture."""
        return self.image.get_attribute("src") or ""

    def words(self) -> str:
        """The line below the picture."""
        return self.box.locator("[role=status]").inner_text()

    def settled(self) -> tuple[str, str]:
        """Picture and words once the kernel rests and nothing has changed for a while."""
        kernel = self.page.locator(".jp-Notebook-ExecutionIndicator").first
        seen = self.picture(), self.words()
        for _ in range(100):
            self.page.wait_for_timeout(0.35 * SECONDS)
            seen, before = (self.picture(), self.words()), seen
            if seen == before and "…" not in seen[1] and kernel.get_attribute("data-status") == "idle":
                return seen
        raise AssertionError(f"the explorer does not come to rest: {seen[1]}")

    def expect_another_picture(self, before: str) -> str:
        """Wait for a picture that is not ``before``, whole and in the same place; the words that go with it."""
        expect(self.image).not_to_have_attribute("src", before, timeout=30 * SECONDS)
        words = self.settled()[1]
        assert self.image.evaluate("image => image.decode().then(() => image.naturalWidth)") > 500
        assert self.image.count() == 1, "one picture, updated in place"
        return words

    @contextmanager
    def record(self) -> Iterator[SimpleNamespace]:
        """What is shown and said meanwhile: every new picture, and every sentence, however short it stands there."""
        self.box.evaluate(
            """box => {
                const said = () => box.querySelector("[role=status]")?.innerText;
                const seen = window.seen = { pictures: [], words: [said()] };
                seen.observer = new MutationObserver(changes => {
                    for (const change of changes) {
                        if (change.attributeName == "src") seen.pictures.push(change.target.src);
                        else if (said() && said() != seen.words.at(-1)) seen.words.push(said());
                    }
                });
                const what = { subtree: true, childList: true, characterData: true, attributeFilter: ["src"] };
                seen.observer.observe(box, what);
            }"""
        )
        seen = SimpleNamespace(pictures=[], words=[])
        yield seen
        found = self.page.evaluate("({ pictures: seen.pictures, words: seen.words.slice(1) })")
        self.page.evaluate("seen.observer.disconnect()")
        seen.pictures, seen.words = found["pictures"], found["words"]

    def _row(self, name: str) -> Locator:
        return self.box.locator(".widget-slider", has_text=name)

    def slider(self, name: str) -> Locator:
        """The handle of a slider."""
        handle = self._row(name).locator(".noUi-handle")
        handle.scroll_into_view_if_needed()
        return handle

    def readout(self, name: str) -> str:
        """The number beside a slider."""
        return self._row(name).locator(".widget-readout").inner_text()

    def press(self, name: str, key: str = "ArrowRight", times: int = 3) -> str:
        """Step a slider by the keyboard; the words that follow."""
        before, _ = self.settled()
        self.slider(name).focus()
        for _ in range(times):
            self.page.keyboard.press(key)
        return self.expect_another_picture(before)

    def move(self, name: str, pixels: int) -> None:
        """Drag a slider with the mouse, in small moves, and let it go."""
        place = self.slider(name).bounding_box()
        assert place is not None
        x, y = place["x"] + place["width"] / 2, place["y"] + place["height"] / 2
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        for step in range(1, 11):
            self.page.mouse.move(x + pixels * step / 10, y)
            self.page.wait_for_timeout(60)
        self.page.mouse.up()

    def drag(self, name: str, pixels: int) -> str:
        """Drag a slider with the mouse; the words that follow."""
        before, _ = self.settled()
        self.move(name, pixels)
        return self.expect_another_picture(before)

    def menu(self, name: str) -> Locator:
        """A menu."""
        return self.box.locator(".widget-dropdown", has_text=name).locator("select")

    def choose(self, name: str, option: str) -> str:
        """Choose the first option of a menu that begins like this; the words that follow."""
        before, _ = self.settled()
        texts = [_plain(text) for text in self.menu(name).locator("option").all_text_contents()]
        place = next(place for place, text in enumerate(texts) if text.startswith(option))
        self.menu(name).select_option(index=place)
        return self.expect_another_picture(before)

    def chosen(self, name: str) -> str:
        """The option that a menu shows."""
        return _plain(self.menu(name).evaluate("menu => menu.selectedOptions[0].textContent"))

    def upload(self, name: str, path: Path) -> None:
        """Choose a file in the dialogue that a button opens."""
        with self.page.expect_file_chooser() as opened:
            self.box.get_by_role("button", name=name).click()
        opened.value.set_files(path)

    def click(self, name: str) -> str:
        """Press a button or tick a box; the words that follow."""
        before, _ = self.settled()
        button = self.box.get_by_role("button", name=name)
        (button if button.count() else self.box.locator(".widget-checkbox", has_text=name).locator("input")).click()
        return self.expect_another_picture(before)


def _plain(text: str) -> str:
    """ipywidgets writes menus with spaces that do not break."""
    return text.replace("\N{NO-BREAK SPACE}", " ").strip()
