"""That all a page says reaches its browser, on a busy server too.

Streamlit 1.67 takes what a script run says through the server's event loop. When a fragment is to run and the last run's thread
has ended, it begins another, and from then on drops what the last one said that the loop has not come to yet: a part of the
page, and its end. A page then stays half drawn until the next click. On a server that many visit the loop is late, and pages
that follow a run ask for a fragment every second. Here such a request waits until all of the last run has been taken over.
"""

from functools import wraps
from typing import Any

from streamlit.runtime.app_session import AppSession, AppSessionState

_SECONDS = 0.01


def mend() -> None:
    """Let every session of this process, from now on, wait for the end of its last run."""
    create = AppSession._create_scriptrunner
    if hasattr(create, "__wrapped__"):  # it was told so before
        return

    @wraps(create)
    def create_after_the_last(session: AppSession, rerun: Any) -> None:
        if session._state == AppSessionState.SHUTDOWN_REQUESTED:  # it was closed while this one waited
            return
        runner = session._scriptrunner
        if runner is None or not rerun.fragment_id:  # a run of the whole page says all again
            create(session, rerun)
        elif not runner.request_rerun(rerun):
            session._event_loop.call_later(_SECONDS, create_after_the_last, session, rerun)

    AppSession._create_scriptrunner = create_after_the_last  # type: ignore[assignment,method-assign]
