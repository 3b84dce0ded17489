"""The form in a real browser: find a network by any words, by keyboard alone; see at the bottom what Start would do; reload."""

import pytest
from playwright.sync_api import Browser, Page, expect

pytestmark = pytest.mark.e2e


def in_view(page: Page, name: str) -> bool:
    box = page.get_by_role("button", name=name).bounding_box()
    assert box is not None
    assert page.viewport_size is not None
    return box["y"] >= 0 and box["y"] + box["height"] <= page.viewport_size["height"]


def test_find_see_what_it_takes_and_come_back(address: str, browser: Browser) -> None:
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.goto(f"{address}/prune")
    start = page.get_by_role("button", name="Start")
    expect(start).to_be_enabled()
    expect(page.get_by_text("keep 2 of 4 weights (2:4) · 20 layers · SNOWS, K = 3 · about")).to_be_visible()
    assert in_view(page, "Start")
    for card in ("how many", "single layers", "mask refinement"):  # all of the form is on one screen
        box = page.get_by_text(f"More: {card}").bounding_box()
        assert box is not None
        assert box["y"] < 760

    # The help's own example; nothing is chosen by typing alone.
    network = page.get_by_role("combobox", name="Network")
    network.focus()
    page.keyboard.press("ArrowDown")
    expect(page.get_by_role("option").first).to_contain_text("ResNet-20, trained on Fashion-MNIST")
    page.keyboard.type("vit base 224")
    expect(page.get_by_role("option", name="timm:vit_base_patch16_224", exact=True)).to_be_visible()
    page.keyboard.press("Escape")
    expect(network).to_have_value("ResNet-20, trained on Fashion-MNIST")
    network.fill("no such network")
    expect(page.get_by_text("No network has all of these words")).to_be_visible()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(network).to_have_value("ResNet-20, trained on Fashion-MNIST")

    # By its label, by keyboard alone, faster than the answer.
    network.focus()
    page.keyboard.type("fashion transformer")
    page.keyboard.press("Enter")
    page.wait_for_function("location.search == '?model=vit-fashion'")
    expect(network).to_have_value("Vision transformer, trained on Fashion-MNIST")
    expect(start).to_be_enabled()
    page.get_by_label("K", exact=True).fill("5")
    page.keyboard.press("Enter")
    page.wait_for_function("location.search.includes('k_steps=5')")
    page.reload()
    expect(page.get_by_text("SNOWS, K = 5")).to_be_visible()
    expect(network).to_have_value("Vision transformer, trained on Fashion-MNIST")

    # Images that do not suit: the reason stands beside the button that they grey.
    network.focus()
    page.keyboard.type("test_vit")
    page.get_by_role("option", name="timm:test_vit", exact=True).click()
    expect(page.get_by_text("It cannot start. Fashion-MNIST holds 28x28 grey pictures")).to_be_visible()
    expect(start).to_be_disabled()
    page.goto(f"{address}/prune?model=vit-fashion&k_steps=5")
    expect(page.get_by_text("SNOWS, K = 5")).to_be_visible()
    expect(start).to_be_enabled()


def test_the_bar_stays_in_view_on_a_phone(address: str, browser: Browser) -> None:
    page = browser.new_page(viewport={"width": 400, "height": 850}, color_scheme="dark")
    page.goto(f"{address}/prune")
    expect(page.get_by_text("of memory")).to_be_visible()
    assert in_view(page, "Start")
    page.get_by_role("heading", name="How it is refitted").scroll_into_view_if_needed()
    assert in_view(page, "Start")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
