"""A network and images of one's own, as a person brings them: search, download, drop, look, start; the hub runs here."""

import io
import os
import re
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from playwright.sync_api import Browser, Page, expect
from safetensors.torch import save, save_file

from snows.runs.store import ACTIVE, RunStore
from snows.sources import data, models
from tests.e2e.test_first_run import run_id, set_number
from tests.snows.loopback import serving

pytestmark = pytest.mark.e2e


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hub that has the weights of timm:test_vit and nothing else, and an empty cache."""
    weights = save(models.load("timm:test_vit", pretrained=False).module.state_dict())
    with serving({"/timm/test_vit.r160_in1k/resolve/main/model.safetensors": weights}) as (address, _):
        for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
        yield


def choose_network(page: Page, name: str) -> None:
    page.get_by_role("combobox", name="Network").click()
    page.keyboard.type(" ".join(reversed(name.partition(":")[2].split("_"))))  # words, in any order
    page.get_by_role("option", name=name, exact=True).click()


def write_archive(path: Path) -> None:
    """Forty pictures in two folders named like classes of ImageNet."""
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(40):
            picture = Image.new("RGB", (200 + number, 180), (5 * number, 90, 200 - 5 * number))
            ImageDraw.Draw(picture).ellipse((40, 30, 150, 150), fill=(200 - 4 * number, 6 * number, 60))
            file = io.BytesIO()
            picture.save(file, "JPEG")
            archive.writestr(f"pond/{('n01440764', 'n01443537')[number % 2]}/{number}.jpg", file.getvalue())


def test_bring_a_network_and_images(hub: None, address: str, browser: Browser, store: RunStore, tmp_path: Path) -> None:
    write_archive(tmp_path / "pond.zip")
    state = {name: value + 0.01 for name, value in models.load("timm:test_vit", pretrained=False).module.state_dict().items()}
    save_file(state, tmp_path / "mine.safetensors")
    save_file({name: value for name, value in state.items() if name != "norm.weight"}, tmp_path / "torn.safetensors")

    page = browser.new_page(viewport={"width": 1440, "height": 2200})
    page.goto(f"{address}/prune")
    expect(page.get_by_text("272,186 parameters")).to_be_visible()

    # Search, see what it is, and have its weights downloaded.
    choose_network(page, "timm:test_vit")
    expect(page.get_by_text("371,240 parameters")).to_be_visible()
    expect(page.get_by_text("images of 3 x 160 x 160")).to_be_visible()
    page.get_by_role("button", name="Download now").click()
    expect(page.get_by_text("not on this machine yet")).to_have_count(0)
    choose_network(page, "timm:test_resnet")
    page.get_by_role("button", name="Download now").click()
    expect(page.get_by_text("could not be fetched from http")).to_contain_text(
        "Download that file on a machine with a connection"
    )
    choose_network(page, "timm:test_vit")
    expect(page.get_by_text("371,240 parameters")).to_be_visible()

    # Drop pictures: thumbnails and what can be measured, before anything runs.
    page.get_by_text("More: how many").click()
    page.locator("input[type=file]").first.set_input_files(tmp_path / "pond.zip")
    expect(page.get_by_text("Took in 40 pictures in 2 folders")).to_be_visible()
    expect(page.get_by_text("20 of 40 pictures calibrate; the 20 others are measured on. Labels give an")).to_be_visible()
    expect(page.get_by_alt_text(re.compile("goldfish|tench"))).to_have_count(8)

    # A checkpoint that does not fit, then one that does.
    page.get_by_role("button", name="Your own weights").click()
    checkpoint = page.get_by_test_id("stPopoverBody").locator("input[type=file]")
    checkpoint.set_input_files(tmp_path / "torn.safetensors")
    expect(page.get_by_text("The checkpoint does not fit in 1 tensor")).to_have_count(2)  # in the card and in the bar
    expect(page.get_by_role("button", name="Start")).to_be_disabled()
    checkpoint.set_input_files(tmp_path / "mine.safetensors")
    expect(page.get_by_text("does not fit in 1 tensor")).to_have_count(0)
    page.keyboard.press("Escape")

    # What will be pruned, and the run.
    expect(page.get_by_text("layers will be pruned")).to_be_visible()
    set_number(page, "Calibration images", 8)
    set_number(page, "K", 1)
    expect(page.get_by_text("8 of 40 pictures calibrate; the 32 others are measured on.")).to_be_visible()
    page.get_by_role("button", name="Start").click()
    run = store.get(run_id(page))
    deadline = time.monotonic() + 120
    while run.state() in ACTIVE:
        assert time.monotonic() < deadline, "the run does not end"
        time.sleep(0.2)
    expect(page.get_by_test_id("stMetric").filter(has_text="Agreement")).to_be_visible()

    # The run holds all it needs to be repeated: files beside the runs, by their content.
    config = run.config()
    assert config.checkpoint is not None
    assert Path(config.checkpoint).is_relative_to(store.root)
    assert Path(config.data).is_relative_to(store.root)
    assert run.metrics()["accuracy"] is not None
    model = models.load_configured(config)
    assert (model.module.get_parameter("norm.weight") - state["norm.weight"]).abs().max() == 0
    assert len(data.load_configured(config, model).calibration) == 8
