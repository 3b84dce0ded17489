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
    create = AppSession._create_scriptrunner
    monkeypatch.setattr(AppSession, "_create_scriptrunner", getattr(create, "__wrapped__", create))


@pytest.fixture
def mended(by_itself: None) -> None:
    delivery.mend()
    delivery.mend()  # a page that is run again asks for it again


async def late_for(page: Path) -> tuple[AppSession, str]:
    """A page was opened again and has ended, and the server has not heard a word of it; and the page's fragment."""
    session = AppSession(ScriptData(str(page), False), MemoryUploadedFileManager(""), ScriptCache(), None, {})
    session.request_rerun(ClientState())
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
