"""Two visitors of a public app, each in a browser of their own: what one brings and starts is still there after a reload, and
nowhere in the other's. And a small class of sessions without a browser, as `tests.bench visitors` has a large one."""

import io
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, expect

from snows.runs.store import RunStore
from tests.e2e.conftest import serve
from tests.e2e.test_first_run import run_id, set_number

pytestmark = pytest.mark.e2e


def write_archive(path: Path) -> None:
    """Twenty pictures as the bundled networks take them."""
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(20):
            file = io.BytesIO()
            Image.new("L", (28, 28), 12 * number).save(file, "PNG")
            archive.writestr(f"annas-holiday/{number}.png", file.getvalue())


def test_two_visitors(browser: Browser, store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_archive(tmp_path / "annas-holiday.zip")
    monkeypatch.setenv("SNOWS_PUBLIC", "1")
    monkeypatch.setenv("SNOWS_WORKERS", "0")  # what is started waits, to be looked at
    with serve(store.root, tmp_path / "server.log") as address:
        anna, bert = browser.new_context(), browser.new_context()
        page = anna.new_page()
        page.goto(f"{address}/prune")
        expect(page.get_by_text("This app is open to everybody.")).to_contain_text("a network of 5,000,000 parameters")
        expect(page.get_by_text("272,186 parameters")).to_be_visible()
        page.get_by_text("More: how many").click()
        expect(page.get_by_text("where it lies on the machine")).to_have_count(0)
        page.locator("input[type=file]").first.set_input_files(tmp_path / "annas-holiday.zip")
        expect(page.get_by_text("Took in 20 pictures")).to_be_visible()
        set_number(page, "Calibration images", 8)
        set_number(page, "K", 0)
        expect(page.get_by_text("8 of 20 pictures calibrate")).to_be_visible()
        brought = page.url.partition("?")[2]
        assert "data=brought" in brought
        page.get_by_role("button", name="Start").click()
        run = store.get(run_id(page))

        # A reload and a second tab are the same visitor.
        page.reload()
        expect(page.get_by_role("button", name="Cancel", exact=True)).to_be_visible()
        second = anna.new_page()
        second.goto(f"{address}/runs?run={run.id}")
        expect(second.get_by_role("button", name="Cancel", exact=True)).to_be_visible()
        assert (store.root / ".visitors" / run.owner() / ".uploads").is_dir()

        # The other has a key of their own, and sees neither the run nor the pictures, by no address.
        other = bert.new_page()
        for place in ("prune", "layers"):
            other.goto(f"{address}/{place}?run={run.id}")
            expect(other.get_by_text("There is no run").first).to_be_visible()
        other.goto(f"{address}/runs?run={run.id}")
        expect(other.get_by_text("There is no run").first).to_be_visible()
        expect(other.get_by_role("button", name="Cancel", exact=True)).to_have_count(0)
        other.goto(f"{address}/prune?{brought}")
        expect(other.get_by_text("Images are those that come with the app, or pictures that you bring").first).to_be_visible()
        expect(other.get_by_role("button", name="Start")).to_be_disabled()
        for tab in (page, other):  # the page's own script writes it, on a busy machine after its words are there
            tab.wait_for_function("document.cookie.includes('snows-visitor=')")
        keys = [next(c["value"] for c in context.cookies() if c["name"] == "snows-visitor") for context in (anna, bert)]
        assert len(set(keys)) == 2
        assert not [path for path in store.root.rglob("*") if path.is_file() and keys[0].encode() in path.read_bytes()]


def test_a_class_sees_what_is_everybodys_and_each_their_own() -> None:
    from tests.bench import visitors

    found = visitors.visit(3, 3, (0.0, 0.2), "num_calibration=16&num_evaluation=100&k_steps=0", forgotten=0)
    assert found.strange == []
    assert found.own >= 2 * found.runs  # each run's own visitor was sent its id, and the name of what they had brought
    assert found.runs >= 3
    assert sorted(map(len, found.clicks.values())) == [6, 6, 6]
    assert found.levels["again"].threads <= found.levels["after"].threads <= found.levels["peak"].threads
