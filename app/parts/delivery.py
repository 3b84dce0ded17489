"""That all a page says reaches its browser, on a busy server too.

Streamlit 1.67 takes what a script run says through the server's event loop. When a fragment is to run and the last run's thread
has ended, it begins another, and from then on drops what the last one said that the loop has not come to yet: a part of the
page, and its end. A page then stays half drawn until the next click. On a server that many visit the loop is late, and pages
that follow a run ask for a fragment every second. Here such a request waits until all of the last run has been taken over, and
what is asked for meanwhile waits behind it: of two requests the later one says what the fields hold.

Until the server has answered a click on another page, the browser asks for the fragments of the old one. Streamlit takes the
page from the last request: the click is lost, or the new page is cleared away. Here a fragment of a page that was left is not
run.
"""

from collections import deque
from functools import wraps
from typing import Any
from weakref import WeakKeyDictionary

from streamlit.proto.ClientState_pb2 import ClientState
from streamlit.runtime.app_session import AppSession, AppSessionState

_SECONDS = 0.01


def mend() -> None:
    """Let every session of this process, from now on, wait for the end of its last run and run no page that was left."""
    create, request = AppSession._create_scriptrunner, AppSession.request_rerun
    if hasattr(create, "__wrapped__"):  # it was told so before
        return
    lines: WeakKeyDictionary[AppSession, deque[Any]] = WeakKeyDictionary()  # the requests that wait, the earliest first

    @wraps(create)
    def create_in_turn(session: AppSession, rerun: Any) -> None:
        line = lines.setdefault(session, deque())
        line.append(rerun)
        serve(session, line)

    def serve(session: AppSession, line: deque[Any]) -> None:
        while line and session._state != AppSessionState.SHUTDOWN_REQUESTED:  # it may be closed while one waits
            runner = session._scriptrunner
            is_taken = runner is not None and runner.request_rerun(line[0])
            if runner is not None and not is_taken and line[0].fragment_id:
                session._event_loop.call_later(_SECONDS, serve, session, line)
                return
            rerun = line.popleft()
            if not is_taken:  # where the last run has not been heard to its end, one of the whole page says all again
                create(session, rerun)

    @wraps(request)
    def request_here(session: AppSession, asked: ClientState | None) -> None:
        if asked is not None and asked.page_script_hash:  # none has whoever has just come
            if not asked.fragment_id:
                session._client_state.page_script_hash = asked.page_script_hash  # Streamlit says so when the page begins
            elif session.page_script_hash not in (asked.page_script_hash, session._pages_manager.main_script_hash, ""):
                return  # the last two stand for the page that is opened first, until it has ended
        request(session, asked)

    AppSession._create_scriptrunner = create_in_turn  # type: ignore[assignment,method-assign]
    AppSession.request_rerun = request_here  # type: ignore[assignment,method-assign]
