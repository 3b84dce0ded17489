"""Clicks in the app's figures."""

from playwright.sync_api import Page, expect


def click_row(page: Page, figure: int, layer: str, across: float = 0.4) -> None:
    """Click in a layer's row of the page's `figure`-th figure, where there is no mark; once the page no longer moves."""
    chart = page.locator(".live-chart:visible").nth(figure)
    expect(chart.locator(".ytick text").first).to_be_visible()
    names = chart.locator(".ytick text").all_text_contents()
    before, area = None, chart.locator(".nsewdrag").first.bounding_box()
    while area != before:
        page.wait_for_timeout(500)
        before, area = area, chart.locator(".nsewdrag").first.bounding_box()
    assert area is not None
    row = (names.index(layer) + 0.6) / (len(names) + 0.2)
    page.mouse.click(area["x"] + across * area["width"], area["y"] + row * area["height"])
