"""The app in a real browser: a server over an empty store, and Chromium."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from snows.runs.store import RunStore

ROOT = Path(__file__).parent.parent.parent
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# What comes at once on an idle machine may take minutes on one that does other things as well; a wait ends when it is met.
PATIENCE = 120_000  # milliseconds
expect.set_options(timeout=PATIENCE)
CHROMIUM = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def answering(
    command: list[str], folder: Path, environment: dict[str, str], log_path: Path, port: int, seconds: float = 60
) -> Iterator[str]:
    """An app's process, started in a folder, once it answers on `port`, within `seconds`; its address."""
    with log_path.open("wb") as log:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + seconds
        while True:
            try:
                urllib.request.urlopen(f"http://localhost:{port}/_stcore/health").close()
                break
            except urllib.error.URLError:
                assert server.poll() is None, log_path.read_text()
                assert time.monotonic() < deadline, f"the app did not answer within {seconds} s: {log_path.read_text()}"
                time.sleep(0.1)
        yield f"http://localhost:{port}"
    finally:
        server.terminate()
        server.wait(20)


@contextmanager
def serve(runs: Path, log_path: Path, port: int | None = None) -> Iterator[str]:
    """The app, served on a free port, or on `port`, over the runs in a folder; its address."""
    port = port or free_port()
    command = [sys.executable, "-m", "streamlit", "run", "app/main.py", "--server.port", str(port), "--server.headless", "true"]
    with answering(command, ROOT, os.environ | {"SNOWS_RUNS": str(runs)}, log_path, port) as address:
        yield address


@pytest.fixture
def address(store: RunStore, tmp_path: Path) -> Iterator[str]:
    """The app, served over an empty store."""
    with serve(store.root, tmp_path / "server.log") as address:
        yield address


@pytest.fixture
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("needs Chromium or Chrome on the path")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        browser.on("context", lambda context: context.set_default_timeout(PATIENCE))
        try:
            yield browser
        finally:
            browser.close()
