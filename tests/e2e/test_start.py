"""The first screen in a real browser: within a few moves a network forgets everything, and is brought back."""

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.e2e.conftest import PATIENCE

pytestmark = pytest.mark.e2e


def changed(page: Page) -> int:
    return page.locator("li.changed").count()


def test_cut_refit_and_draw(address: str, browser: Browser) -> None:
    page = browser.new_page(viewport={"width": 1440, "height": 1200})
    page.goto(address)
    expect(page.get_by_text("The whole network is right on 94 of 100")).to_be_visible()
    expect(page.locator("li:has-text('% sure')")).to_have_count(8, timeout=3 * PATIENCE)  # once the engine is imported
    assert changed(page) == 0

    # By keyboard alone: the slider to an eighth, the switch to refitted.
    slider = page.get_by_role("slider", name="Weights kept")
    slider.focus()
    for _ in range(3):
        slider.press("ArrowRight")
    expect(page.get_by_text("With 1 of 8 weights left, just cut")).to_be_visible()
    expect(page.locator("li.changed em").first).to_contain_text("was ")
    expect(page.locator(".live-chart").get_by_text("10.2 %")).to_be_visible()
    assert changed(page) >= 5
    page.get_by_role("radio", name="Cut and refit").press("Enter")
    expect(page.get_by_text("With 1 of 8 weights left and refitted, it is right on 92 of 100")).to_be_visible()
    page.wait_for_function("location.search.includes('values=refitted')")
    assert changed(page) <= 2

    # The state is in the address: a reload and a link show the same.
    page.reload()
    expect(page.get_by_text("With 1 of 8 weights left and refitted, it is right on 92 of 100")).to_be_visible()

    # A stroke on the pad is a picture, and the network says what it takes it for.
    page.get_by_role("button", name="Draw one").click()
    pad = page.locator("canvas[aria-label^='A pad to draw on']")
    box = pad.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 60, box["y"] + 60)
    page.mouse.down()
    for x, y in ((60, 170), (160, 170), (160, 60), (60, 60)):
        page.mouse.move(box["x"] + x, box["y"] + y, steps=4)
    page.mouse.up()
    own = page.locator("li").filter(has=page.get_by_alt_text("Your drawing"))
    expect(own.locator("span")).to_contain_text("% sure")
    page.get_by_role("button", name="Wipe").click()
    expect(page.get_by_alt_text("Your drawing")).to_have_count(0)
