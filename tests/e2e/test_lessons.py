"""Lessons in a real browser: a guess, an answer, one thing moved by keyboard; and two people of one class."""

import re

import pytest
from playwright.sync_api import Browser, expect

pytestmark = pytest.mark.e2e


def test_a_lesson_and_a_class(address: str, browser: Browser) -> None:
    teacher = browser.new_page(viewport={"width": 1440, "height": 1200})
    teacher.goto(f"{address}/lessons")
    expect(teacher.get_by_role("link", name=re.compile(r"^6\. "))).to_be_visible()
    teacher.get_by_role("link", name=re.compile(r"^2\. The others")).click()
    expect(teacher.get_by_text("First a guess.")).to_be_visible()
    expect(teacher.get_by_text("Error, just cut")).to_have_count(0)
    teacher.get_by_text("For the teacher").click()
    teacher.get_by_role("button", name="Make a link").click()
    expect(teacher.get_by_text("0 guesses")).to_be_visible()
    shown = teacher.locator("code").filter(has_text="class=")
    expect(shown).to_be_visible()
    link = shown.text_content() or ""  # the inner text of what is about to be painted is empty

    pupil = browser.new_page(viewport={"width": 400, "height": 900})
    pupil.goto(link)
    pupil.get_by_text("When the inputs are alike").click()
    expect(pupil.get_by_text("As you expected.")).to_be_visible()
    expect(pupil.get_by_text("1 guess")).to_be_visible()
    expect(teacher.get_by_text("1 guess")).to_be_visible()  # by itself

    # By keyboard: where the inputs have nothing in common, the others can do nothing.
    slider = pupil.get_by_role("slider", name="How alike the inputs are")
    slider.focus()
    slider.press("Home")
    expect(pupil.get_by_test_id("stMetric").filter(has_text="27.5 %")).to_have_count(2)  # just cut and refitted
    pupil.wait_for_function("location.search.includes('alike=0')")
    pupil.close()
    teacher.close()
