"""The Convergence page as a person walks it: compare steps, click a layer, run the checks, share the link, watch a run."""

import pytest
from playwright.sync_api import Browser, Page, expect

from snows.config import RunConfig
from snows.runs.store import RunStore
from tests.app import helpers
from tests.e2e.figures import click_row

pytestmark = pytest.mark.e2e
RECORDED = "recorded-1-vit-fashion"


def expect_layer(page: Page, layer: str) -> None:
    page.wait_for_url(f"**layer={layer}*")
    expect(page.get_by_role("combobox", name="Layer")).to_have_value(layer)
    expect(page.get_by_role("heading", name=f"Live checks on {layer}")).to_be_visible()


def test_look_into_solves_and_check_one(address: str, browser: Browser) -> None:
    page = browser.new_page(viewport={"width": 1440, "height": 2600})
    page.goto(f"{address}/convergence?run={RECORDED}")
    expect(page.get_by_text("No step failed.")).to_be_visible()
    expect(page.get_by_role("heading", name="Live checks on blocks.0.attn.proj")).to_be_visible()  # the hardest

    # A click in the figure leads to another layer.
    click_row(page, 0, "blocks.2.attn.proj", 0.3)
    expect_layer(page, "blocks.2.attn.proj")
    click_row(page, 0, "blocks.3.attn.qkv", 0.3)
    expect_layer(page, "blocks.3.attn.qkv")
    page.get_by_role("radio", name="Reduction").click()
    page.wait_for_url("**by=Reduction*")
    expect(page.locator(".live-chart:visible").first.get_by_text("promised by the model")).to_be_visible()

    # Every check answers, and what it found stays while other things are clicked.
    page.get_by_role("button", name="Run all four").click()
    found = [
        "The three agree",
        "The solver's own step errs by",
        "With row blocks, the residual is",
        "Largest ÷ smallest eigenvalue: ",
    ]
    for words in found:
        expect(page.get_by_text(words)).to_be_visible()
    page.get_by_role("radio", name="Step size").click()
    expect(page.locator(".live-chart:visible").first.get_by_text("tried")).to_be_visible()
    for words in found:
        expect(page.get_by_text(words)).to_be_visible()

    # The link shows another person the same layer and measure, and computes nothing.
    other = browser.new_page(viewport={"width": 1440, "height": 2600})
    other.goto(page.url)
    expect_layer(other, "blocks.3.attn.qkv")
    expect(other.get_by_role("radio", name="Step size")).to_be_checked()
    expect(other.get_by_role("button", name="Run all four")).to_be_visible()
    expect(other.get_by_text("The three agree")).to_have_count(0)
    other.close()

    # By keyboard alone, to another layer, whose checks have not been run.
    page.get_by_role("combobox", name="Layer").click()
    page.keyboard.type("blocks.0.mlp.fc1")
    page.keyboard.press("Enter")
    expect_layer(page, "blocks.0.mlp.fc1")
    expect(page.get_by_text("The three agree")).to_have_count(0)


def test_watch_gradients_and_curvature_side_by_side(address: str, browser: Browser) -> None:
    page = browser.new_page(viewport={"width": 1440, "height": 2600})
    page.goto(f"{address}/convergence?run={RECORDED}&layer=blocks.2.attn.proj")
    page.get_by_role("button", name="Run all five").click()
    expect(page.get_by_text(", so far.")).to_be_visible()
    chart = page.locator(".live-chart:visible").last
    for way in ("Gauss-Newton", "Exact Hessian", "Empirical Fisher", "Adam", "Gradient descent"):
        expect(chart.locator(".legendtext").get_by_text(way)).to_be_visible()
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("You cancelled this.")).to_be_visible()
    expect(page.get_by_text("The lowest loss is")).to_be_visible()

    # Once more to its end, and then by the clock.
    page.get_by_role("button", name="Run again").click()
    expect(page.get_by_role("button", name="Cancel")).to_be_visible()
    expect(page.get_by_role("button", name="Cancel")).to_have_count(0)
    expect(page.get_by_text("The lowest loss is")).to_be_visible()
    page.get_by_role("radio", name="Seconds").click()
    expect(page.locator(".live-chart:visible").last.locator(".xtitle")).to_have_text("Seconds")


def test_follow_a_run(address: str, browser: Browser, store: RunStore) -> None:
    run = store.create(RunConfig())
    with helpers.waiting_after_two_layers(run) as go_on:
        page = browser.new_page(viewport={"width": 1440, "height": 1600})
        page.goto(f"{address}/convergence?run={run.id}")
        expect(page.get_by_text("No step failed so far. In all 4 Newton steps")).to_be_visible()
        expect(page.get_by_role("combobox", name="Layer")).to_have_value("layer1.0.conv2 (in work)")
        expect(page.get_by_text("Choose a finished layer above")).to_have_count(2)  # to check its numbers, and to go down it
        go_on.set()
        expect(page.get_by_text("No step failed. In all 42 Newton steps")).to_be_visible()
        expect(page.get_by_role("button", name="Run all four")).to_be_visible()
