"""Ask a model server over HTTP: answers are bounded, what passes is tried again, and the key is shown to nobody.

Start with `Server`. All traffic is in one event loop in a thread, so that waiting can be interrupted at any moment.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import email.utils
import importlib
import ipaddress
import logging
import os
import random
import re
import threading
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit

from vlmgate.captioner.server.messages import BadReplyError, parse
from vlmgate.config import EndpointConfig
from vlmgate.errors import ConfigError, EndpointError, shorten

logger = logging.getLogger(__name__)
T = TypeVar("T")
# Says whether the server answers another request. None: it, or a proxy before a server that is gone, is too busy to.
Alive = Callable[[], Awaitable[bool | None]]

MOST_BYTES = 32 * 1024**2  # of one answer
LONGEST_DETAIL = 300  # characters of a server's own words
LONGEST_PAUSE = 60.0  # seconds between two tries, where the server does not ask for more
MOST_PATIENCE = 600.0  # seconds that a server may ask us to wait
TIMEOUT_COUNTS = 3  # tries: who does not answer within minutes is not asked as often as who answers "busy"
NONSENSE_COUNTS = 3
_PASSES = frozenset({408, 409, 425, 429})  # and everything from 500 up
_BUSY = frozenset({503, 529})  # the server, or a proxy, is up and has too much to do
_TOO_MANY = 429
_OF_A_PROXY = frozenset({502, 504})  # the server behind it did not answer
_RESET = re.compile(r"connection (?:termination|reset)|remote reset|reset by peer|prematurely", re.IGNORECASE)
# Errors of the HTTP library before a server has a request whole, by their names: it cannot have died of that one.
_NOT_SENT = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol"})
_BROKE_OFF = frozenset({"ReadError", "WriteError", "CloseError", "RemoteProtocolError"})
_OPENAI_KNOWS = "model messages temperature top_p seed n logprobs max_tokens max_completion_tokens".split()
OWN_KEY, USUAL_KEY = "VLMGATE_API_KEY", "OPENAI_API_KEY"  # environment variables
SHORTEST_KEY = 8  # characters; a shorter "key" such as EMPTY is a word that a caption may hold, and no secret


class RefusedError(Exception):
    """The server understood and says no; the same request would be refused again."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(f"HTTP {status}: {detail}" if detail else f"HTTP {status}")
        self.status = status


class UnansweredError(Exception):
    """However often it was asked, the server gave no answer that can be read.

    The last time it got no request at all (`sent` is false), or had too much to do (`busy`): that says nothing of what
    it was asked. `unclear`: it was busy in words that a proxy says before a server that is gone, too.
    """

    def __init__(self, text: str, trouble: _PassingError | None = None) -> None:
        super().__init__(text)
        self.sent = trouble is None or trouble.sent
        self.busy = trouble is not None and trouble.busy
        self.unclear = trouble is not None and trouble.unclear


class DiedError(Exception):
    """The server broke off in the middle of this request, and does not answer another one either."""


class _PassingError(Exception):
    """What may go away by itself."""

    def __init__(
        self,
        text: str,
        counts: int = 1,
        wait: float | None = None,
        *,
        sent: bool = True,
        broke: bool = False,
        final: bool = False,
        busy: bool = False,
        unclear: bool = False,
    ) -> None:
        super().__init__(text)
        self.counts, self.wait = counts, wait  # tries; seconds
        self.sent = sent  # the request may have come to the server
        self.broke = broke  # the server had the request, and may have died of it
        self.busy, self.unclear = busy, unclear  # see `UnansweredError`
        self.final = final  # the server's own answer; whoever hears it twice need not ask again


class Server:
    """One model server, asked by at most `concurrency` requests at once."""

    def __init__(self, config: EndpointConfig) -> None:
        """Make everything ready and send nothing; raises `EndpointError` where the client is not installed."""
        try:
            import openai
        except ImportError as error:
            raise EndpointError(
                f"--endpoint needs the package openai ({error}); pip install 'vlmgate[endpoint]'."
            ) from error
        self.config = config
        self._openai = openai
        self.versions = {"openai": str(openai.__version__)}
        self._key = find_key(os.environ, config.url)
        self._headers: dict[str, Any] = {} if self._key else {"Authorization": openai.Omit()}
        self._slots = asyncio.Semaphore(config.concurrency)
        self._random = random.Random()  # of pauses, so that clients do not come back all at once
        key = self._key
        self._loop = _LoopThread(lambda: _make_client(config, key))  # not `self`, which the thread would keep alive
        weakref.finalize(self, self._loop.close)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do some asking and wait for it; what interrupts the waiting ends the asking."""
        return self._loop.run(work)

    def start(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Do some asking meanwhile; to cancel what is returned ends it."""
        return self._loop.start(work)

    async def complete(
        self, options: Mapping[str, Any], *, retries: int | None = None, alive: Alive | None = None
    ) -> dict[str, Any]:
        """Return a chat completion as plain data, its `choices` a list; nothing else in it has been checked.

        Raises `RefusedError` at once, and `UnansweredError` after as many tries as were agreed. `alive` says whether
        the server answers another request. With it, a request that the server breaks on raises `DiedError` where it
        then does not answer, and `UnansweredError` after two equal answers where it does. A server that is then too
        busy to say counts as there, once.
        """
        request = request_of(options)
        left = self.config.retries if retries is None else retries
        tried, before, unclear = 0, "", False
        while True:
            try:
                async with self._slots:
                    return await self._once(request)
            except _PassingError as passing:
                trouble = passing
            tried += trouble.counts
            if alive is not None and trouble.broke:
                answers = await alive()
                if answers is False:
                    raise DiedError(str(trouble))
                if trouble.final and str(trouble) == before:
                    raise UnansweredError(f"{trouble} (twice, while it answers other requests)")
                if answers is None and unclear:  # a proxy says "busy" of a server that is gone
                    raise DiedError(str(trouble))
                unclear = answers is None
            before = str(trouble)
            if tried > left or (trouble.wait or 0) > MOST_PATIENCE:
                raise UnansweredError(str(trouble), trouble)
            pause = self._pause(tried, trouble.wait)
            logger.info("%s (again in %.1f s)", trouble, pause)
            await asyncio.sleep(pause)

    async def models(self) -> list[str]:
        """Return the names of the models that the server says it has; none where it does not say."""
        try:
            async with asyncio.timeout(10):
                page = await self._loop.client.models.list(extra_headers=self._headers)
                return sorted(self._line(str(model.id)) for model in page.data)
        except Exception:  # a nicety of an error message
            return []

    def _pause(self, tried: int, wait: float | None) -> float:
        usual: float = min(2.0 ** (tried - 1), LONGEST_PAUSE) * self._random.uniform(0.5, 1.0)
        return max(usual, wait or 0.0)

    async def _once(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Ask once. What goes wrong leaves without its cause: that may hold the key, and would be in a traceback."""
        try:
            async with asyncio.timeout(self.config.timeout):
                raw = await self._loop.client.chat.completions.with_raw_response.create(
                    **request, extra_headers=self._headers
                )
            return parse(without(self._key, raw.content.decode("utf-8", "replace")).encode())
        except BadReplyError as error:
            problem: Exception = _PassingError(str(error), NONSENSE_COUNTS)
        except Exception as error:
            problem = self._problem(error)
        raise problem

    def _problem(self, error: Exception) -> Exception:
        """Return what an exception of the client means, in one line without the key."""
        too_large = next((e for e in (error, error.__cause__) if isinstance(e, UnansweredError)), None)
        if too_large is not None:
            return too_large
        if isinstance(error, self._openai.APIStatusError):
            return self._status(error)
        if isinstance(error, TimeoutError | self._openai.APITimeoutError):
            sent = not _names(error.__cause__ or error) & _NOT_SENT
            return _PassingError(f"no answer within {self.config.timeout:g} s", TIMEOUT_COUNTS, sent=sent)
        if isinstance(error, self._openai.APIConnectionError):
            cause = error.__cause__ or error
            what = f"no connection ({self._line(str(cause)) or type(cause).__name__})"
            return _PassingError(what, sent=not _names(cause) & _NOT_SENT, broke=_broke_off(cause))
        what = self._line(f"{type(error).__name__}: {error}")
        return _PassingError(what, NONSENSE_COUNTS, broke=_broke_off(error))

    def _status(self, error: Any) -> Exception:
        status, headers = int(error.status_code), error.response.headers
        detail = self._line(_own_words(error.body))
        if 300 <= status < 400:
            return RefusedError(status, "it sends us elsewhere; name that URL if you trust it")
        if status in (401, 403) and self._key is None:
            unsent = f" ({USUAL_KEY} is not sent over plain http)" if os.environ.get(USUAL_KEY) else ""
            detail = f"{detail}; set VLMGATE_API_KEY{unsent}"
        if status == 413:
            detail = f"{detail}; lower --max-side"
        if status not in _PASSES and status < 500:
            return RefusedError(status, detail)
        wait = _retry_after(headers.get("retry-after"))
        reset = bool(_RESET.search(detail))  # what a proxy says where the server behind it went away
        broke = wait is None and status >= 500 and (status not in _BUSY or reset)
        final = broke and status not in (*_BUSY, *_OF_A_PROXY)
        busy = status in (_TOO_MANY, *_BUSY) and not reset
        unclear = busy and status == 503 and wait is None
        text = f"HTTP {status}: {detail}"
        return _PassingError(text, wait=wait, broke=broke, final=final, busy=busy, unclear=unclear)

    def _line(self, text: str) -> str:
        return shorten(without(self._key, text), LONGEST_DETAIL)


def request_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as the client's arguments: what OpenAI does not know travels as `extra_body`."""
    more = {name: value for name, value in options.items() if name not in _OPENAI_KNOWS}
    return {name: options[name] for name in options if name in _OPENAI_KNOWS} | ({"extra_body": more} if more else {})


def _make_client(config: EndpointConfig, key: str | None) -> Any:
    import openai

    bounded = _bounded_stream()

    async def bound(response: Any) -> None:
        response.stream = bounded(response.stream)

    http = openai.DefaultAsyncHttpxClient(
        follow_redirects=False,  # images go where the user said, and nowhere else
        trust_env=not is_loopback(config.url),  # no proxy between us and ourselves
        event_hooks={"response": [bound]},
    )
    return openai.AsyncOpenAI(
        base_url=config.url,
        api_key=key or "none",
        timeout=openai.Timeout(config.timeout, connect=min(10.0, config.timeout)),
        max_retries=0,  # done here, where bodies that break off and nonsense count, too
        http_client=http,
    )


def _bounded_stream() -> Any:
    """Return a class that lets so much of an answer through and no more; of the HTTP library that the client uses."""
    import openai

    library = openai.DefaultAsyncHttpxClient.__mro__[1].__module__.split(".")[0]  # httpx or httpx2, by version
    base: Any = importlib.import_module(library).AsyncByteStream

    class Bounded(base):  # type: ignore[misc]  # a base known at run time only
        def __init__(self, inner: Any) -> None:
            self._inner, self._left = inner, MOST_BYTES

        async def __aiter__(self) -> AsyncIterator[bytes]:
            async for chunk in self._inner:
                self._left -= len(chunk)
                if self._left < 0:
                    raise UnansweredError(f"it answered with more than {MOST_BYTES // 1024**2} MiB")
                yield chunk

        async def aclose(self) -> None:
            await self._inner.aclose()

    return Bounded


def _names(error: BaseException) -> set[str]:
    """Return the names of the kinds of an error, for those of the HTTP library cannot be imported here."""
    return {kind.__name__ for kind in type(error).__mro__}


def _broke_off(error: BaseException) -> bool:
    """Say whether a connection broke while the server had the request, so that it may have died of it."""
    names = _names(error)
    return bool(names & _BROKE_OFF) and not names & _NOT_SENT


def _own_words(body: object) -> str:
    """Return a server's own words for an error, wherever it puts them."""
    found = body
    for key in ("error", "message", "detail"):
        if isinstance(found, dict) and key in found:
            found = found[key]
    text = found if isinstance(found, str) else "" if found is None else str(found)
    return "" if text.lstrip()[:1] == "<" else text  # a web page says nothing in one line


def _retry_after(header: str | None) -> float | None:
    """Return the seconds that a server asks for, as a number or as a date; None where it asks for none."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return seconds if seconds > 0 else None  # not a number is neither


class _LoopThread:
    """An event loop in a thread, with a client in it."""

    def __init__(self, make_client: Any) -> None:
        ready: concurrent.futures.Future[tuple[asyncio.AbstractEventLoop, asyncio.Event, Any]]
        ready = concurrent.futures.Future()
        # A daemon: a request that hangs must not keep the program from ending.
        self._thread = threading.Thread(target=_live, args=(make_client, ready), name="model server", daemon=True)
        self._thread.start()
        self._loop, self._stop, self.client = ready.result()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        future = self.start(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def start(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self) -> None:
        with contextlib.suppress(RuntimeError):  # closed before
            self._loop.call_soon_threadsafe(self._stop.set)
        if threading.current_thread() is not self._thread:
            self._thread.join(5)


def _live(make_client: Any, ready: concurrent.futures.Future[Any]) -> None:
    async def main() -> None:
        client = None
        try:
            client = make_client()
            stop = asyncio.Event()
            ready.set_result((asyncio.get_running_loop(), stop, client))
            await stop.wait()
        except Exception as error:
            ready.set_exception(error)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if client is not None:
            await client.close()

    asyncio.run(main())


# --- the key ----------------------------------------------------------------------------------------------------------


def find_key(environment: Mapping[str, str], url: str) -> str | None:
    """Return the key for a server; None = none is sent. Raises `ConfigError` for one that no header can hold.

    `OPENAI_API_KEY` is often there for another service's sake, so it does not go over an open line to another machine.
    """
    for name in (OWN_KEY, USUAL_KEY):
        key = environment.get(name, "").strip()
        if not key or (name == USUAL_KEY and not url.startswith("https:") and not is_loopback(url)):
            continue
        if not key.isascii() or not key.isprintable() or " " in key:
            raise ConfigError(f"{name} holds a character that no key has; set it again.")
        return key
    return None


def is_loopback(url: str) -> bool:
    """Say whether a URL leads to this very machine."""
    host = urlsplit(url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def without(key: str | None, text: str) -> str:
    """Return a text in which the key does not stand."""
    return text if key is None or len(key) < SHORTEST_KEY else text.replace(key, "[key]")
