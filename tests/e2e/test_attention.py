"""The Attention page as a person walks it: a head, a patch, a cell, an image, one's own image, the link to it all."""

import io
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from snows.runs.store import RunStore

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parent.parent.parent
RECORDED = "recorded-1-vit-fashion"
NETWORK = "SNOWS, refined mask, K = 3 (1)"  # the first of two that differ in nothing


def picture(page: Page, network: str = NETWORK) -> Locator:
    return page.get_by_role("figure", name=re.compile(f"where this network looks: {re.escape(network)}$"))


def click_at(page: Page, figure: Locator, across: float, down: float) -> None:
    """Click at shares of the width and height of a figure's axes."""
    area = figure.locator(".nsewdrag").first.bounding_box()
    assert area is not None
    page.mouse.click(area["x"] + across * area["width"], area["y"] + down * area["height"])


def expect_address(page: Page, *parts: str) -> None:
    page.wait_for_function("parts => parts.every(part => location.search.includes(part))", arg=parts)


def heat(page: Page, network: str = NETWORK) -> str:
    """What the map over a picture looks like."""
    image = picture(page, network).locator(".heatmaplayer image")
    expect(image).to_be_visible()
    return image.get_attribute("href") or ""


def expect_other_heat(page: Page, before: str, network: str = NETWORK) -> str:
    expect(picture(page, network).locator(".heatmaplayer image")).not_to_have_attribute("href", before)
    return heat(page, network)


def test_compare_where_networks_look(address: str, browser: Browser, store: RunStore) -> None:
    shutil.copytree(ROOT / "assets/runs" / RECORDED, store.root / "my-run")
    page = browser.new_page(viewport={"width": 1440, "height": 1800})
    page.goto(f"{address}/attention?run={RECORDED}&with=my-run")
    expect(page.get_by_text("Attention preserved").first).to_be_visible()
    expect(page.get_by_role("figure", name="where this network looks")).to_have_count(4)
    seen = heat(page)

    page.get_by_role("radio", name="2", exact=True).click()
    expect_address(page, "head=2")
    seen = expect_other_heat(page, seen)

    # A click on a patch asks from there: row 5 and column 6 of 7, marked in every picture.
    click_at(page, picture(page), 5.5 / 7, 4.5 / 7)
    expect_address(page, "query=One+patch", "patch=5&patch=6")
    seen = expect_other_heat(page, seen)
    for figure in page.get_by_role("figure", name="where this network looks").all():
        expect(figure.locator(".shapelayer path").last).to_be_visible()

    # A click on a cell of the similarity opens that head: the second of six blocks, the third of three heads.
    alike = page.get_by_role("figure", name=re.compile(f"by block and head: {re.escape(NETWORK)}$"))
    click_at(page, alike, 2.5 / 3, 1.5 / 6)
    expect_address(page, "head=3", "block=blocks.1.attn")
    seen = expect_other_heat(page, seen)

    # By keyboard alone: how much the map covers, and another image.
    page.get_by_role("slider", name="Map over image").focus()
    page.keyboard.press("ArrowRight")
    expect(picture(page).locator(".heatmaplayer image")).to_have_css("opacity", "0.65")
    page.get_by_role("button", name="Image 5: Trouser").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_text("Evaluation image 5, labeled Trouser", exact=True)).to_be_visible()
    expect_address(page, "image=5")
    seen = expect_other_heat(page, seen)

    # The link shows another person the same.
    other = browser.new_context(viewport={"width": 1440, "height": 1800}).new_page()
    other.goto(page.url)
    expect(other.get_by_text("Evaluation image 5, labeled Trouser", exact=True)).to_be_visible()
    expect(other.get_by_role("radio", name="3", exact=True)).to_be_checked()
    expect(other.get_by_role("figure", name="where this network looks")).to_have_count(4)
    assert heat(other) == seen
    other.close()

    # A photograph of one's own: refused with a reason, made to suit, and still there after a change of page.
    photograph, file = np.full((300, 200, 3), 255, np.uint8), io.BytesIO()
    photograph[50:250, 60:140] = 40
    Image.fromarray(photograph).save(file, "PNG")
    page.get_by_role("button", name="Your own image").click()
    page.locator("input[type=file]").set_input_files({"name": "mine.png", "mimeType": "image/png", "buffer": file.getvalue()})
    expect(page.get_by_text("this network takes 28x28 grey images, not 200x300")).to_be_visible()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Make it like Fashion-MNIST").click()
    expect(page.get_by_text("Your own image, mine.png", exact=True)).to_be_visible()
    seen = heat(page)
    page.get_by_role("link", name="Start").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("forgets")
    page.get_by_role("button", name="Inspect").click()
    page.get_by_role("menuitem", name="Attention").click()
    expect(page.get_by_text("Your own image, mine.png", exact=True)).to_be_visible()
    assert heat(page) == seen
