"""When a session takes a click for done, from the messages that the app sends."""

import re
from typing import Any

import pytest
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

from tests.bench.sessions import Session


def begun(*fragments: str) -> ForwardMsg:
    message = ForwardMsg()
    message.new_session.name = "run"
    message.metadata.run.fragment_ids.extend(fragments)
    return message


def ended(how: Any, *fragments: str) -> ForwardMsg:
    message = ForwardMsg(script_finished=how)
    message.metadata.run.fragment_ids.extend(fragments)
    return message


WHOLE, PART = ForwardMsg.FINISHED_SUCCESSFULLY, ForwardMsg.FINISHED_FRAGMENT_RUN_SUCCESSFULLY
EARLY = ForwardMsg.FINISHED_EARLY_FOR_RERUN


@pytest.mark.parametrize(
    ("messages", "is_done"),
    [
        ([begun("a"), ended(PART, "a")], True),
        ([begun("a", "b"), ended(PART, "a", "b")], True),  # joined with an automatic one
        ([begun("b"), ended(PART, "b")], False),
        ([begun("b"), ended(PART, "b"), begun("a"), ended(PART, "a")], True),
        ([begun(), ended(WHOLE)], True),
        ([begun("a"), ended(EARLY, "a")], False),  # until it is known what runs next
        ([begun("a"), ended(EARLY, "a"), begun("b")], True),  # its end was still to be sent when the other one began
        ([begun("a"), ended(EARLY, "a"), begun("a")], False),  # which says it all again
        ([begun("a"), ended(EARLY, "a"), begun("a"), ended(PART, "a")], True),
        ([begun("a"), ended(EARLY, "a"), begun()], False),  # it wanted the whole script to run
        ([begun("a"), ended(EARLY, "a"), begun(), ended(WHOLE)], True),
        ([begun("b"), ended(EARLY, "b"), begun("c")], False),
    ],
)
def test_a_click_in_a_fragment_is_done_when_its_run_has_ended(messages: list[ForwardMsg], is_done: bool) -> None:
    session = Session("http://localhost", "key", re.compile(b"x"))
    session._awaited = "a"
    for message in messages:
        session._take(message)
    assert session._finished.is_set() == is_done
