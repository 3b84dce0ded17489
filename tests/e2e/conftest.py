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


@contextmanager
def serve(runs: Path, log_path: Path, port: int | None = None) -> Iterator[str]:
    """The app, served on a free port, or on `port`, over the runs in a folder; its address."""
    if port is None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", "app/main.py", "--server.port", str(port), "--server.headless", "true"]
    with log_path.open("wb") as log:
        server = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"SNOWS_RUNS": str(runs)}, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://localhost:{port}/_stcore/health").close()
                break
            except urllib.error.URLError:
                assert server.poll() is None, log_path.read_text()
                assert time.monotonic() < deadline, "the app did not answer within a minute"
                time.sleep(0.1)
        yield f"http://localhost:{port}"
    finally:
        server.terminate()
        server.wait(20)


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
