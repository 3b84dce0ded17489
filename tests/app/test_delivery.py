"""What a page says while the server is late, in a real session of Streamlit."""

import asyncio
import time
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from streamlit.proto.ClientState_pb2 import ClientState
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from streamlit.runtime import Runtime
from streamlit.runtime.app_session import AppSession
from streamlit.runtime.memory_uploaded_file_manager import MemoryUploadedFileManager
from streamlit.runtime.script_data import ScriptData
from streamlit.runtime.scriptrunner.script_cache import ScriptCache
from streamlit.runtime.scriptrunner.script_runner import ScriptRunner

from app.parts import delivery

SCRIPT = """
import streamlit as st
st.write("before")
st.fragment(lambda: st.write("in the fragment" + st.query_params.get("n", "")))()
st.write("after")
"""


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(Runtime, "_instance", MagicMock())  # a session asks it to forget files of the last run
    path = tmp_path / "page.py"
    path.write_text(SCRIPT)
    return path


@pytest.fixture(autouse=True)
def by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streamlit as it comes, whether or not another test has opened the app."""
    for name in ("_create_scriptrunner", "request_rerun"):
        as_it_comes = getattr(AppSession, name)
        monkeypatch.setattr(AppSession, name, getattr(as_it_comes, "__wrapped__", as_it_comes))


@pytest.fixture
def mended(by_itself: None) -> None:
    delivery.mend()
    delivery.mend()  # a page that is run again asks for it again


def visit(page: Path, query: str = "") -> AppSession:
    """A browser has asked for the page."""
    session = AppSession(ScriptData(str(page), False), MemoryUploadedFileManager(""), ScriptCache(), None, {})
    session.request_rerun(ClientState(query_string=query))
    return session


async def late_for(page: Path) -> tuple[AppSession, str]:
    """A page was opened again and has ended, and the server has not heard a word of it; and the page's fragment."""
    session = visit(page)
    await settled(session)
    said = session.flush_browser_queue()
    (fragment,) = {one.delta.fragment_id for one in said if one.delta.fragment_id}
    session.request_rerun(ClientState())
    until = time.monotonic() + 60
    while session._scriptrunner._script_thread.is_alive():  # and whoever is to take over what it says does not come to it
        assert time.monotonic() < until
        time.sleep(0.01)
    return session, fragment


async def late(page: Path, *, is_closed: bool = False) -> tuple[AppSession, list[ForwardMsg]]:
    """A page is opened again, and its fragment asked for before the server has heard a word of it."""
    session, fragment = await late_for(page)
    session.request_rerun(ClientState(fragment_id=fragment, is_auto_rerun=True))
    session.request_rerun(ClientState(fragment_id=fragment))
    if is_closed:
        session.shutdown()
    await settled(session)
    return session, session.flush_browser_queue()


async def settled(session: AppSession) -> None:
    until, looks = time.monotonic() + 60, 0
    while looks < 20:  # one that waits for its turn comes a hundredth of a second later
        assert time.monotonic() < until
        await asyncio.sleep(0.02)
        looks = looks + 1 if session._scriptrunner is None else 0


def ends(said: list[ForwardMsg]) -> list[int]:
    return [one.script_finished for one in said if one.WhichOneof("type") == "script_finished"]


def texts(said: list[ForwardMsg]) -> list[str]:
    return [one.delta.new_element.markdown.body for one in said if one.delta.new_element.markdown.body]


def test_streamlit_by_itself_drops_a_part_of_the_page(page: Path) -> None:
    """When this fails, Streamlit has mended it, and `delivery` can go."""
    _, said = asyncio.run(late(page))
    assert ForwardMsg.FINISHED_SUCCESSFULLY not in ends(said)
    assert "after" not in texts(said)


@pytest.mark.usefixtures("mended")
def test_all_of_the_page_comes_and_then_the_fragment(page: Path) -> None:
    _, said = asyncio.run(late(page))
    first, *_, last = ends(said)
    assert (first, last) == (ForwardMsg.FINISHED_SUCCESSFULLY, ForwardMsg.FINISHED_FRAGMENT_RUN_SUCCESSFULLY)
    assert {"before", "after", "in the fragment"} <= set(texts(said))


@pytest.mark.usefixtures("mended")
def test_a_session_that_was_closed_meanwhile_runs_nothing_more(page: Path) -> None:
    _, said = asyncio.run(late(page, is_closed=True))
    assert ForwardMsg.FINISHED_FRAGMENT_RUN_SUCCESSFULLY not in ends(said)


@pytest.mark.usefixtures("mended")
def test_of_two_clicks_the_later_one_counts(page: Path) -> None:
    """The first waits for the last run's end; the second comes when that is there, and must not overtake it."""

    async def clicks() -> list[ForwardMsg]:
        session, fragment = await late_for(page)
        session.request_rerun(ClientState(fragment_id=fragment, query_string="n=1"))
        while session._scriptrunner is not None:
            await asyncio.sleep(0)
        session.request_rerun(ClientState(fragment_id=fragment, query_string="n=2"))
        await settled(session)
        return session.flush_browser_queue()

    assert texts(asyncio.run(clicks()))[-1] == "in the fragment2"


@pytest.mark.usefixtures("mended")
def test_a_run_that_could_not_begin_holds_nobody_up(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(runner: ScriptRunner) -> None:
        raise RuntimeError("can't start new thread")

    async def clicks() -> list[ForwardMsg]:
        session, fragment = await late_for(page)
        session.request_rerun(ClientState(fragment_id=fragment, query_string="n=1"))
        session.request_rerun(ClientState(fragment_id=fragment, query_string="n=2"))
        with monkeypatch.context() as short:
            short.setattr(ScriptRunner, "start", refuse)
            with pytest.raises(RuntimeError):
                session.request_rerun(ClientState())
        session.request_rerun(ClientState(fragment_id=fragment, query_string="n=3"))
        await settled(session)
        return session.flush_browser_queue()

    assert "in the fragment3" in texts(asyncio.run(clicks()))


PAGES = """
import time
import streamlit as st

def page(name):
    if name == "first":
        st.divider()  # a fragment is known by its place, among others
    st.write("before " + name)
    st.fragment(lambda: st.write("in the fragment of " + name))()
    st.write("after " + name)
    if "slow" in st.query_params:
        time.sleep(1)
    if name == "through":
        st.switch_page(pages["first"])
    if name == "stops":
        st.stop()

def made(name):
    def of_its_own():
        page(name)
    return st.Page(of_its_own, title=name, url_path=name, default=name == "first")

pages = {name: made(name) for name in ("first", "second", "through", "stops")}
st.navigation(list(pages.values())).run()
"""


@pytest.fixture
def pages(page: Path) -> Path:
    page.write_text(PAGES)
    return page


async def opened(pages: Path) -> tuple[AppSession, dict[str, str], str]:
    """A session that shows the first page; the pages' hashes by name, and the first one's fragment."""
    session = visit(pages)
    await settled(session)
    return session, *what_it_is(session.flush_browser_queue())


def what_it_is(said: list[ForwardMsg]) -> tuple[dict[str, str], str]:
    """The pages' hashes by name, and the fragment that there is."""
    (navigation,) = (one.navigation for one in said if one.WhichOneof("type") == "navigation")
    hashes = {one.url_pathname or "first": one.page_script_hash for one in navigation.app_pages}
    (fragment,) = {one.delta.fragment_id for one in said if one.delta.fragment_id}
    return hashes, fragment


async def heard(session: AppSession, words: str) -> list[ForwardMsg]:
    """What a page says up to these words."""
    said: list[ForwardMsg] = []
    until = time.monotonic() + 60
    while words not in texts(said):
        assert time.monotonic() < until
        await asyncio.sleep(0)
        said += session.flush_browser_queue()
    return said


async def clicked(pages: Path, *, to: str, after: str = "") -> list[ForwardMsg]:
    """What a click on the page `to` brings if, at once or `after` that page said so, the first one's fragment is asked for."""
    session, hashes, fragment = await opened(pages)
    session.request_rerun(ClientState(page_script_hash=hashes[to]))
    said = await heard(session, after) if after else []
    session.request_rerun(ClientState(page_script_hash=hashes["first"], fragment_id=fragment, is_auto_rerun=True))
    await settled(session)
    return said + session.flush_browser_queue()


def began(said: list[ForwardMsg]) -> int:
    return sum(one.WhichOneof("type") == "new_session" for one in said)


def test_streamlit_by_itself_loses_a_click_on_another_page(pages: Path) -> None:
    """When this fails, Streamlit has mended it, and that half of `delivery` can go."""
    said = asyncio.run(clicked(pages, to="second"))
    # The first page is shown again or, where the second one has begun, follows it, and the browser clears that away.
    assert texts(said)[-1] == "after first" or began(said) > 1


@pytest.mark.usefixtures("mended")
@pytest.mark.parametrize(
    ("to", "after"), [("second", ""), ("second", "before second"), ("stops", ""), ("stops", "after stops")]
)
def test_a_page_that_was_left_asks_for_nothing_more(pages: Path, to: str, after: str) -> None:
    said = asyncio.run(clicked(pages, to=to, after=after))
    assert texts(said) == [f"before {to}", f"in the fragment of {to}", f"after {to}"]
    assert began(said) == 1  # one of the page that was left would have the browser clear this one away


@pytest.mark.usefixtures("mended")
def test_the_fragment_of_a_page_that_another_led_to_is_run(pages: Path) -> None:
    async def led() -> list[str]:
        session, hashes, fragment = await opened(pages)
        session.request_rerun(ClientState(page_script_hash=hashes["through"]))
        await settled(session)
        assert texts(session.flush_browser_queue())[-1] == "after first"
        session.request_rerun(ClientState(page_script_hash=hashes["first"], fragment_id=fragment, is_auto_rerun=True))
        await settled(session)
        return texts(session.flush_browser_queue())

    assert asyncio.run(led()) == ["in the fragment of first"]


@pytest.mark.usefixtures("mended")
def test_a_fragment_of_the_page_that_is_opened_first_is_run_after_it(pages: Path) -> None:
    """Streamlit calls the page by the main script's name until its end."""

    async def hasty() -> list[str]:
        session = visit(pages, "slow=1")
        hashes, fragment = what_it_is(await heard(session, "after first"))
        session.request_rerun(ClientState(page_script_hash=hashes["first"], fragment_id=fragment))
        assert session._scriptrunner is not None
        await settled(session)
        return texts(session.flush_browser_queue())

    assert asyncio.run(hasty()) == ["in the fragment of first"]
