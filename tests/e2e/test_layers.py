"""The Layers page as a person walks it: click a row, a cell, zoom into a mask, share the link, watch a run fill it."""

import pytest
from playwright.sync_api import Browser, Page, expect

from snows.config import RunConfig
from snows.runs.store import RunStore
from tests.app import helpers
from tests.e2e.figures import click_row

pytestmark = pytest.mark.e2e
LOSSES, WINDOWS, OPERATIONS = 0, 1, 2
RECORDED = "recorded-2-resnet20-fashion"


def expect_layer(page: Page, layer: str) -> None:
    """The address, the selector and the marked rows all say so."""
    page.wait_for_function("layer => location.search.includes('layer=' + layer)", arg=layer)
    expect(page.get_by_role("combobox", name="Layer")).to_have_value(layer)
    for figure in (LOSSES, WINDOWS):
        marked = page.locator(".live-chart").nth(figure).locator(".ytick tspan[style*=bold]")
        expect(marked).to_have_text(layer)


def expect_window(page: Page, layer: str) -> None:
    """The layer's own figures are shown."""
    expect_layer(page, layer)
    first = page.locator(".live-chart").nth(OPERATIONS).locator(".ytick text").first
    expect(first).to_have_text(f"0 · {layer} (convolution)")


def test_look_into_layers(address: str, browser: Browser) -> None:
    page = browser.new_page(viewport={"width": 1440, "height": 2400})
    page.goto(f"{address}/layers?run={RECORDED}")
    expect(page.get_by_text("measured just now")).to_be_visible()
    expect(page.get_by_text("43 others: one value per channel")).to_be_visible()

    # A click on a row of either figure opens its layer.
    click_row(page, LOSSES, "layer2.0.conv1")
    expect_window(page, "layer2.0.conv1")
    click_row(page, WINDOWS, "layer3.0.conv2")
    expect_window(page, "layer3.0.conv2")

    # Its mask: a picture a kernel position, which zoom together.
    mask = page.locator(".live-chart").filter(has=page.locator(".imagelayer image"))
    expect(mask.locator(".imagelayer image")).to_have_count(9)
    ticks = mask.locator(".ytick text")
    expect(ticks.filter(has_text="60").first).to_be_visible()
    area = mask.locator(".nsewdrag").first.bounding_box()
    assert area is not None
    page.mouse.move(area["x"] + 10, area["y"] + 5)
    page.mouse.down()
    page.mouse.move(area["x"] + 80, area["y"] + 0.4 * area["height"], steps=4)
    page.mouse.up()
    expect(ticks.filter(has_text="60")).to_have_count(0)
    expect(ticks.filter(has_text="20")).not_to_have_count(0)
    page.wait_for_timeout(500)  # or the drag counts as the first of three clicks
    page.mouse.dblclick(area["x"] + 40, area["y"] + 20)
    expect(ticks.filter(has_text="60").first).to_be_visible()

    page.get_by_role("radio", name="Absolute").click()
    expect(page.locator(".live-chart").first.get_by_text("Loss (mean squared error)")).to_be_visible()
    page.get_by_role("radio", name="Mask only").click()
    page.wait_for_url("**stage=Mask*")

    # The link shows another person the same.
    other = browser.new_page(viewport={"width": 1440, "height": 2400})
    other.goto(page.url)
    expect_window(other, "layer3.0.conv2")
    expect(other.locator(".live-chart").first.get_by_text("Loss (mean squared error)")).to_be_visible()
    expect(other.get_by_role("radio", name="Mask only")).to_be_checked()
    other.close()

    # By keyboard alone, to a layer that was left dense.
    page.get_by_role("combobox", name="Layer").click()
    page.keyboard.type("fc")
    page.keyboard.press("Enter")
    expect(page.get_by_text("fc was left dense: the classifier")).to_be_visible()


def test_follow_a_run(address: str, browser: Browser, store: RunStore) -> None:
    run = store.create(RunConfig())
    with helpers.waiting_after_two_layers(run) as go_on:
        page = browser.new_page(viewport={"width": 1440, "height": 1600})
        page.goto(f"{address}/layers?run={run.id}")
        expect(page.get_by_text("2 of 21 layers finished")).to_be_visible()
        click_row(page, LOSSES, "layer1.0.conv2")
        expect_layer(page, "layer1.0.conv2")
        click_row(page, WINDOWS, "layer3.2.conv2")
        expect(page.get_by_text("The run has not come to layer3.2.conv2 yet")).to_be_visible()
        go_on.set()
        expect(page.get_by_text("Error at the end")).to_be_visible()  # it comes by itself
        expect(page.get_by_text("layers finished")).to_have_count(0)  # all are, and it says so no more
        expect_layer(page, "layer3.2.conv2")
