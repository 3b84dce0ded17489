"""Nobody is kept out: what axe finds, the way by keyboard, and the menu of a narrow window."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from app.lessons.catalogue import LESSONS
from snows.runs.store import RunStore
from tests.app import helpers
from tests.e2e.conftest import serve

pytestmark = pytest.mark.e2e
VIT, RESNET = "recorded-1-vit-fashion", "recorded-2-resnet20-fashion"
MOST_STOPS = 15
# Streamlit's drawer puts its lists' parts into elements of its own; no page can change that.
AXE = {"resultTypes": ["violations"], "runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21aa", "best-practice"]}}
NOT_OURS = {"exclude": [["[data-testid=stSidebarNavItems]"]]}

REACHED = """() => {
  const here = document.activeElement;
  return here.matches("[data-testid=stMain] :is(a, button, input, [tabindex])");
}"""
LOOKS_DIFFERENT = """async () => {
  const here = document.activeElement, around = [];
  for (let element = here; element && around.length < 6; element = element.parentElement) around.push(element);
  const looks = () => JSON.stringify(around.map(element => {
    const style = getComputedStyle(element);
    return [style.outlineStyle, style.outlineWidth, style.boxShadow, style.borderColor, style.backgroundColor];
  }));
  const focused = looks();
  here.blur();
  await new Promise(resolve => setTimeout(resolve, 500));
  return looks() !== focused;
}"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """The app over a run in each state, and the address of each page by what it shows."""
    root = tmp_path_factory.mktemp("everybody")
    store = RunStore(root / "runs")
    with ExitStack() as hold:
        states = {state: helpers.write_run(store, state, hold).id for state in ("finished", "failed", "running")}
        pages = {
            "start": "/",
            "form": "/prune",
            **{f"{state} run": f"/prune?run={run}" for state, run in states.items()},
            "layers": f"/layers?run={RESNET}",
            "layers of a running run": f"/layers?run={states['running']}",
            "convergence": f"/convergence?run={RESNET}",
            "attention": f"/attention?run={VIT}",
            "compare": f"/compare?runs={VIT},{RESNET}",
            "recorded comparison": "/compare",
            "comparison form": "/compare?batch=new",
            "study": "/study",
            "lessons": "/lessons",
            **{
                f"lesson {name}": f"/lessons?lesson={name}&guess={next(iter(lesson.guesses))}"
                for name, lesson in LESSONS.items()
            },
            "runs": "/runs",
            "a run ticked": f"/runs?run={states['finished']}",
        }
        with serve(store.root, root / "server.log") as address:
            yield address, pages


def settle(page: Page, address: str) -> None:
    """Open the page and wait until it stands."""
    page.goto(address)
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    for working in ("stSpinner", "stSkeleton"):
        expect(page.get_by_test_id(working)).to_have_count(0)
    # A run's page draws itself anew every second, so only what is still to come is waited for.
    page.wait_for_timeout(1500)


def violations(page: Page) -> set[str]:
    """What axe calls serious or critical, and where."""
    response = Axe().run(page, context=NOT_OURS, options=AXE).response
    serious = [v for v in response["violations"] if v["impact"] in ("serious", "critical")]
    return {f"{violation['id']}: {node['html'][:200]}" for violation in serious for node in violation["nodes"]}


def lasting_violations(page: Page) -> set[str]:
    """Those that stay. While a page draws itself anew, a name may be on its way and a color fade."""
    lasting = violations(page)
    for _ in range(3):
        if lasting:
            page.wait_for_timeout(2000)
            lasting &= violations(page)
    return lasting


@pytest.mark.parametrize(
    ("scheme", "width", "names"),
    [
        ("light", 1440, None),
        (
            "dark",
            1440,
            ["form", "finished run", "failed run", "attention", "compare", "recorded comparison", "lesson downhill", "runs"],
        ),
        ("light", 400, ["start", "form", "layers", "recorded comparison", "a run ticked"]),
    ],
)
def test_axe_finds_nothing_serious_and_a_page_s_first_control_is_near_by_keyboard(
    served: tuple[str, dict[str, str]], browser: Browser, scheme: Any, width: int, names: list[str] | None
) -> None:
    address, pages = served
    page = browser.new_context(viewport={"width": width, "height": 1800}, color_scheme=scheme).new_page()
    found = []
    for name in names or pages:
        settle(page, address + pages[name])
        found += [f"{name}: {violation}" for violation in lasting_violations(page)]
        if scheme == "light" and width == 1440:
            found += [f"{name}: {problem}" for problem in by_keyboard(page)]
    assert found == []


def by_keyboard(page: Page) -> list[str]:
    """What hinders whoever comes to the page's first control with the Tab key."""
    page.evaluate("document.activeElement.blur()")
    for _ in range(MOST_STOPS):
        page.keyboard.press("Tab")
        if page.evaluate(REACHED):
            return [] if page.evaluate(LOOKS_DIFFERENT) else ["nobody sees where the keyboard is"]
    return [f"no control within {MOST_STOPS} stops"]


def test_start_is_one_stroke_away(address: str, browser: Browser, store: RunStore) -> None:
    page = browser.new_page(viewport={"width": 1440, "height": 1000})
    page.goto(f"{address}/prune?calibration=8&evaluation=8&update=none")
    start = page.get_by_role("button", name="Start")
    expect(start).to_be_enabled()
    page.keyboard.press("Control+Enter")
    page.wait_for_url("**/prune?run=*")
    assert len(store.list()) == 1


def test_the_drawer_closes(served: tuple[str, dict[str, str]], browser: Browser) -> None:
    address, _ = served
    page = browser.new_page(viewport={"width": 400, "height": 850})
    settle(page, address)
    drawer, opener = page.get_by_test_id("stSidebar"), page.get_by_test_id("stExpandSidebarButton")
    opener.click()
    expect(drawer).to_have_attribute("data-collapsed", "false")
    drawer.get_by_role("link", name="Lessons").click()
    page.wait_for_url("**/lessons")
    expect(drawer).to_have_attribute("data-collapsed", "true")
    opener.click()
    expect(drawer).to_have_attribute("data-collapsed", "false")
    page.keyboard.press("Escape")
    expect(drawer).to_have_attribute("data-collapsed", "true")
