"""A browser's side of Streamlit's protocol, without one: sessions that open pages, click and bring files, many in a thread.

As a browser does, a session sends all it knows of the widgets with each click, runs a fragment again when the app has asked for
that, and keeps messages for another time, so that what does not change is sent once.
"""

import asyncio
import json
import re
import time
import urllib.request
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ClientState_pb2 import ClientState
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from streamlit.proto.WidgetStates_pb2 import WidgetState
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

PATIENCE = 120.0  # seconds
_LARGEST = 200 * 1000**2  # bytes of a message
_KEPT_RUNS = 2  # Streamlit's `global.maxCachedMessageAge`


class SessionError(Exception):
    """The app said something that no visitor should see, or nothing for too long."""


class Session:
    """One tab. `seen` are the words of `words` (a pattern for bytes) that were sent to it."""

    def __init__(self, address: str, key: str, words: re.Pattern[bytes]) -> None:
        """`key`: of the visitor, whom a browser knows by its cookie."""
        self._address, self._words = address, words
        self._cookies = {"snows-visitor": key}
        self._connection: ClientConnection | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._query = self._page = self._shown = self._page_hash = self._session = ""
        self._states: dict[str, WidgetState] = {}
        self._elements: dict[tuple[int, ...], tuple[str, Any, str]] = {}
        self._finished: asyncio.Event = asyncio.Event()
        self._awaited = ""
        self._is_overtaken = False
        self._urls: asyncio.Queue[Any] = asyncio.Queue()
        self._runs = 0
        self._kept: dict[str, tuple[int, ForwardMsg]] = {}  # by hash: in which run of the script it was last of use
        self._failure = ""
        self.seen: set[bytes] = set()
        self.received = 0  # bytes

    # --- what a visitor does ---

    async def open(self, page: str = "", query: str = "") -> float:
        """Go to a page, and return the seconds until all of it is there."""
        if self._connection is None:
            cookies = "; ".join(f"{name}={value}" for name, value in self._cookies.items())
            self._connection = await connect(
                f"{self._address.replace('http', 'ws', 1)}/_stcore/stream",
                subprotocols=["streamlit"],  # type: ignore[list-item]
                additional_headers={"Cookie": cookies},
                max_size=_LARGEST,
                compression=None,
                open_timeout=PATIENCE,
                ping_interval=None,  # no browser asks whether the app is still there
            )
            self._tasks["reader"] = asyncio.create_task(self._read())
        self._query, self._page, self._page_hash = query, page, ""
        self._states.clear()
        return await self._run()

    async def click(self, kind: str, label: str, value: object = None) -> float:
        """Use the widget of that kind and label, and return the seconds until all that follows is there."""
        widget, fragment = self.widget(kind, label)
        return await self._use(self._state(kind, widget, value), fragment)

    async def bring(self, label: str, name: str, content: bytes) -> float:
        """Put a file into the uploader of that label, and return the seconds until all that follows is there."""
        uploader, fragment = self.widget("file_uploader", label)
        message = BackMsg()
        message.file_urls_request.request_id = str(uuid.uuid4())
        message.file_urls_request.file_names.append(name)
        message.file_urls_request.session_id = self._session
        await self._send(message)
        urls = await asyncio.wait_for(self._urls.get(), PATIENCE)
        await asyncio.to_thread(self._put, urls.upload_url, name, content)
        state = WidgetState(id=uploader.id)
        info = state.file_uploader_state_value.uploaded_file_info.add()
        info.name, info.size, info.file_id = name, len(content), urls.file_id
        info.file_urls.CopyFrom(urls)
        return await self._use(state, fragment)

    async def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        for task in self._tasks.values():
            with suppress(asyncio.CancelledError):
                await task
        if self._connection is not None:
            await self._connection.close()

    # --- what is on the page ---

    def widget(self, kind: str, label: str) -> tuple[Any, str]:
        """The widget, and the fragment that it is in. Raises `SessionError`."""
        for known, widget, fragment in self._elements.values():
            if known == kind and label in (widget.label, widget.id):
                return widget, fragment
        raise SessionError(f"There is no {kind} {label!r} on {self._page or 'the first page'}: {self.text()[:500]}")

    def widgets(self, kind: str) -> list[Any]:
        return [widget for known, widget, _ in self._elements.values() if known == kind and not widget.disabled]

    def text(self) -> str:
        """What is to be read on the page, other than in figures and tables."""
        shown = [one for one in self._elements.values() if one[0] in ("markdown", "heading", "alert")]
        return "\n".join(one.body for _, one, _ in shown)

    @property
    def query(self) -> str:
        """What the address says."""
        return self._query

    # --- the protocol ---

    async def _use(self, state: WidgetState, fragment: str) -> float:
        self._states[state.id] = state
        try:
            return await self._run(fragment)
        finally:
            if state.WhichOneof("value") == "trigger_value":
                del self._states[state.id]

    async def _run(self, fragment: str = "") -> float:
        """Have the script, or the fragment, run, and return the seconds until it has."""
        self._awaited, self._is_overtaken = fragment, False
        self._finished.clear()
        begun = time.perf_counter()
        await self._rerun(fragment)
        try:
            await asyncio.wait_for(self._finished.wait(), PATIENCE)
        except TimeoutError:
            raise SessionError(f"{self._page or 'The first page'} did not come within {PATIENCE:g} s") from None
        if self._failure:
            raise SessionError(self._failure)
        return time.perf_counter() - begun

    async def _rerun(self, fragment: str, *, is_automatic: bool = False) -> None:
        state = ClientState(query_string=self._query, page_script_hash=self._page_hash, fragment_id=fragment)
        state.page_name = "" if self._page_hash else self._page
        state.is_auto_rerun = is_automatic
        state.context_info.url = f"{self._address}/{self._page}"
        state.context_info.locale, state.context_info.timezone = "en-US", "UTC"
        state.widget_states.widgets.extend(self._states.values())
        state.cached_message_hashes.extend(self._kept)
        await self._send(BackMsg(rerun_script=state))

    async def _send(self, message: BackMsg) -> None:
        assert self._connection is not None
        await self._connection.send(message.SerializeToString())

    async def _read(self) -> None:
        assert self._connection is not None
        try:
            async for content in self._connection:
                assert isinstance(content, bytes)
                self.received += len(content)
                self.seen.update(self._words.findall(content))
                self._take(ForwardMsg.FromString(content))
        except ConnectionClosed as closed:
            self._failure = f"The app closed the connection: {closed}"
        except Exception as unforeseen:
            self._failure = f"{type(unforeseen).__name__}: {unforeseen}"
        self._finished.set()

    def _take(self, message: ForwardMsg) -> None:
        if message.WhichOneof("type") == "ref_hash":
            metadata, message = message.metadata, self._kept[message.ref_hash][1]
            message.metadata.CopyFrom(metadata)
        if message.metadata.cacheable:
            self._kept[message.hash] = self._runs, message
        match message.WhichOneof("type"):
            case "new_session":
                self._session = message.new_session.initialize.session_id or self._session
                fragments = message.metadata.run.fragment_ids
                if self._is_overtaken and fragments and self._awaited not in fragments:
                    self._finished.set()
                self._is_overtaken = False
                if not fragments:  # the whole script runs
                    self._runs += 1
                    self._elements.clear()
                    self._stop("")
            case "navigation":
                self._page_hash = message.navigation.page_script_hash
                pages = {page.page_script_hash: page for page in message.navigation.app_pages}
                self._shown = "" if pages[self._page_hash].is_default else pages[self._page_hash].url_pathname
            case "page_info_changed":
                self._query = message.page_info_changed.query_string
            case "delta" if message.delta.WhichOneof("type") == "new_element":
                element = message.delta.new_element
                kind = element.WhichOneof("type") or ""
                if kind == "exception":
                    self._failure = f"{element.exception.type}: {element.exception.message}"
                one = getattr(element, kind, None)
                self._elements[tuple(message.metadata.delta_path)] = kind, one, message.delta.fragment_id
                self._remember(kind, one)
            case "auto_rerun":
                again = message.auto_rerun
                self._stop(again.fragment_id)
                self._tasks[f"again-{again.fragment_id}"] = asyncio.create_task(self._again(again.fragment_id, again.interval))
            case "stop_auto_rerun":
                for fragment in message.stop_auto_rerun.fragment_ids:
                    self._stop(fragment)
            case "file_urls_response":
                for urls in message.file_urls_response.file_urls:
                    self._urls.put_nowait(urls)
            case "script_finished":
                # The page before may come to its end after this one was asked for.
                whole = message.script_finished == ForwardMsg.FINISHED_SUCCESSFULLY and self._shown == self._page
                part = message.script_finished == ForwardMsg.FINISHED_FRAGMENT_RUN_SUCCESSFULLY
                if whole:
                    self._kept = {name: one for name, one in self._kept.items() if one[0] > self._runs - _KEPT_RUNS}
                # So an end is called that was still to be sent when the next run began. What it ended is all there unless that
                # run says it again.
                early = message.script_finished == ForwardMsg.FINISHED_EARLY_FOR_RERUN
                self._is_overtaken = early and self._awaited in message.metadata.run.fragment_ids
                if message.script_finished == ForwardMsg.FINISHED_WITH_COMPILE_ERROR:
                    self._failure = "The script does not compile"
                if whole or self._failure or (part and self._awaited in message.metadata.run.fragment_ids):
                    self._finished.set()

    async def _again(self, fragment: str, interval: float) -> None:
        with suppress(ConnectionClosed):  # whoever clicks next is told
            while True:
                await asyncio.sleep(interval)
                await self._rerun(fragment, is_automatic=True)

    def _stop(self, fragment: str) -> None:
        """Run a fragment no more by itself; every one where none is named."""
        for name in [name for name in self._tasks if name.startswith("again-") and name.endswith(fragment)]:
            self._tasks.pop(name).cancel()

    def _remember(self, kind: str, widget: Any) -> None:
        """A widget whose value the app sets is as it says, for a browser that was told."""
        if kind in _VALUES and getattr(widget, "set_value", False):
            value = _VALUES[kind](widget)
            if value is not None:
                self._states[widget.id] = self._state(kind, widget, value)

    @staticmethod
    def _state(kind: str, widget: Any, value: object) -> WidgetState:
        state = WidgetState(id=widget.id)
        match kind:
            case "button":
                state.trigger_value = True
            case "slider" if widget.options:
                state.string_array_value.data.append(str(value))
            case "button_group":
                state.string_array_value.data.append(str(value))
            case "radio" | "selectbox":
                state.string_value = str(value)
            case "checkbox":
                state.bool_value = bool(value)
            case _:
                raise NotImplementedError(kind)
        return state

    def _put(self, url: str, name: str, content: bytes) -> None:
        with urllib.request.urlopen(f"{self._address}/_stcore/health") as answer:
            token = re.search(r"_streamlit_xsrf=([^;]+)", answer.headers["Set-Cookie"]).group(1)  # type: ignore[union-attr]
        edge = uuid.uuid4().hex
        head = f'--{edge}\r\nContent-Disposition: form-data; name="file"; filename={json.dumps(name)}\r\n\r\n'
        request = urllib.request.Request(
            self._address + url,
            data=head.encode() + content + f"\r\n--{edge}--\r\n".encode(),
            method="PUT",
            headers={
                "Content-Type": f"multipart/form-data; boundary={edge}",
                "Cookie": f"_streamlit_xsrf={token}",
                "X-Xsrftoken": token,
            },
        )
        urllib.request.urlopen(request).close()


# What a widget that is set holds, by its kind.
_VALUES: dict[str, Callable[[Any], object]] = {
    "slider": lambda widget: next(iter(widget.raw_value), None) if widget.options else None,
    "button_group": lambda widget: next(iter(widget.raw_values), None),
    "radio": lambda widget: widget.raw_value or None,
    "selectbox": lambda widget: widget.raw_value or None,
    "checkbox": lambda widget: widget.value,
}
