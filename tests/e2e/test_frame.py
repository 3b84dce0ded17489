"""The frame around every page in a browser: its menu by mouse and keyboard, the way back, and a server that was restarted."""

from contextlib import ExitStack
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from snows.events import Queued
from snows.runs.store import RunStore
from tests.app import helpers
from tests.e2e.conftest import serve

pytestmark = pytest.mark.e2e


def menu(page: Page) -> list[str]:
    """The menu's words from left to right."""
    parts = page.get_by_test_id("stTopNav").locator("a, button")
    expect(parts.nth(5)).to_be_visible()
    places = [(part.bounding_box() or {"x": 0})["x"] for part in parts.all()]
    words = [text.split("\n")[-1].strip() for text in parts.all_inner_texts()]
    return [word for _, word in sorted(zip(places, words, strict=True))]


def test_menu_pill_and_the_way_back(address: str, browser: Browser, store: RunStore) -> None:
    helpers.write_run(store, "finished")
    with ExitStack() as hold:
        run = helpers.write_run(store, "running", hold)
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.goto(f"{address}/runs")
        expect(page.get_by_text("Tick the box")).to_be_visible()
        assert menu(page) == ["Start", "Prune", "Inspect", "Compare", "Lessons", "Runs"]

        # By keyboard in the order that is seen.
        page.get_by_test_id("stTopNav").get_by_role("link", name="Prune").focus()
        passed = []
        for _ in range(4):
            page.keyboard.press("Tab")
            passed.append(page.evaluate("document.activeElement.innerText.trim().split('\\n').pop()"))
        assert passed == ["Inspect", "Compare", "Lessons", "Runs"]

        # The pill stands right of it and leads to the run.
        pill = page.locator(".st-key-pill a")
        expect(pill).to_contain_text("layer 8 of 21 · 33 %")
        page.get_by_role("button", name="Inspect").click()
        page.get_by_role("menuitem", name="Layers").click()
        page.wait_for_url("**/layers?run=*")
        page.get_by_text("Absolute", exact=True).click()
        page.wait_for_url("**error=Absolute*")
        page.get_by_text("Relative", exact=True).click()
        page.wait_for_url(lambda url: "error" not in url)
        pill.click()
        page.wait_for_url(f"**/prune?run={run.id}")
        expect(page.get_by_role("button", name="Cancel")).to_be_visible()

        # Back is to the page before, whatever was chosen there.
        page.go_back()
        page.wait_for_url("**/layers?run=*")
        page.go_back()
        page.wait_for_url("**/runs")
        expect(page.get_by_text("Tick the box")).to_be_visible()

        # Narrow, it leaves logo and menu their room.
        page.set_viewport_size({"width": 400, "height": 850})
        expect(pill).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
    expect(pill).to_have_count(0)  # nobody works on it any more


def test_the_first_click_on_resume_after_a_restart_works(browser: Browser, store: RunStore, tmp_path: Path) -> None:
    run = helpers.write_run(store, "interrupted")
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    with serve(store.root, tmp_path / "first.log") as address:
        page.goto(f"{address}/prune?run={run.id}")
        expect(page.get_by_role("button", name="Resume")).to_be_visible()
    port = address.rpartition(":")[2]
    with serve(store.root, tmp_path / "second.log", int(port)):
        page.get_by_role("button", name="Resume").click()
        expect(page.get_by_role("button", name="Resume")).to_have_count(0)
        assert len([event for event in run.events()[0] if isinstance(event, Queued)]) == 2
