"""The engine's thread for servers: steps run for as long as there is work, and coroutines are told what they bring.

A coroutine puts its requests into the queue of :class:`~ruprompt_fast.engine.loop.StepLoop` and waits for an event of
its own. After a step the thread wakes all that have news, with one ``call_soon_threadsafe`` for each event loop. What
the step brought is in the requests themselves: a wake-up that is lost, as by an interrupt, loses no text.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from ruprompt_fast.engine.engine import Engine
from ruprompt_fast.engine.jobs import Job
from ruprompt_fast.engine.loop import LOOK_AGAIN_SECONDS, StepLoop
from ruprompt_fast.engine.orders import Answer, Order
from ruprompt_fast.errors import EngineStepError, RupromptError, SettingError

if TYPE_CHECKING:
    from typing_extensions import Self


class EngineThread:
    """Has an engine's steps run for coroutines, of any number of event loops.

    While it runs, no caller's thread waits for a step and no step for a caller: requests go on whether their text is
    read or not. What other threads ask of the model shares the steps as ever.

    Use it as ``with engine_thread:`` or ``async with engine_thread:``, or call :meth:`start` and :meth:`stop`.

    Args:
        loop: runs the steps.
    """

    def __init__(self, loop: StepLoop) -> None:
        self._loop = loop
        self._calls = _Calls()

    @property
    def is_running(self) -> bool:
        """Whether coroutines are served."""
        return self._loop.audience is self._calls

    def start(self) -> None:
        """Serve coroutines from now on.

        Raises:
            SettingError: it runs already.
            EngineStepError: the system gives no thread, or the program ends.
            DeadlockError: the caller is inside a step, or in a fork of the process that loaded the model.
        """
        self._loop.call(self._begin)

    def stop(self) -> None:
        """Serve coroutines no more; the requests that still run fail. Does nothing if it does not run.

        Raises:
            EngineStepError, DeadlockError: as for :meth:`start`.
        """
        self._loop.call(self._end)

    def submit(self, engine: Engine, jobs: Sequence[Job], has_news: Callable[[], bool]) -> Call:
        """Have requests taken in before the next step; for a coroutine, which is not kept waiting.

        Args:
            engine: takes them in.
            jobs: the requests.
            has_news: whether there is something for the coroutine to look at; asked on the thread, after every step.

        Raises:
            EngineStepError: the thread is gone, and the system gives no other, or the program ends.
            DeadlockError: as for :meth:`start`.
        """
        call = Call(self._loop, engine, jobs, has_news)
        order = call.order = Order(call.answer, lambda: self._take(call))
        try:
            self._loop.post(order)
        except BaseException:
            call.close()
            raise
        return call

    def _begin(self) -> None:
        if self.is_running:
            raise SettingError("the engine's thread runs already; stop it before it is started again.")
        self._loop.audience = self._calls

    def _end(self) -> None:
        if self.is_running:
            self._loop.audience = None
            self._calls.fail(_stopped)

    def _take(self, call: Call) -> None:
        if not self.is_running:
            raise _stopped()
        call.engine.add(call.jobs)
        self._calls.add(call)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        starting = asyncio.ensure_future(asyncio.to_thread(self.start))
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:  # it starts all the same, and nobody would stop it
            await asyncio.wait([starting])
            if starting.exception() is None:
                await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await asyncio.shield(asyncio.to_thread(self.stop))


class Call:
    """Requests that one coroutine waits for; made, waited for and closed in its event loop.

    Args:
        loop: runs the steps.
        engine: the engine that they are for.
        jobs: the requests.
        has_news: whether there is something for the coroutine to look at.

    Attributes:
        event_loop: the coroutine's.
        order: brings the requests to the thread.
        error: what the coroutine is to be told, set by the thread.
        is_told: whether the coroutine has been woken and has not looked since.
        is_closed: whether nobody waits for the requests any more.
    """

    def __init__(self, loop: StepLoop, engine: Engine, jobs: Sequence[Job], has_news: Callable[[], bool]) -> None:
        self.engine = engine
        self.jobs = jobs
        self.has_news = has_news
        self.event_loop = asyncio.get_running_loop()
        self.order: Order[None] | None = None
        self.error: BaseException | None = None
        self.is_told = False
        self.is_closed = False
        self._loop = loop
        self._event = asyncio.Event()
        self._look_again_later()

    async def news(self) -> None:
        """Return when there may be something to look at.

        Raises:
            CapacityError, DetachedModelError, ModelChangedError: the requests were not taken in.
            EngineStepError: the engine's thread has stopped, or a step failed.
            DeadlockError: this process is a fork of the one that made the call.
        """
        await self._event.wait()
        self._event.clear()
        self.is_told = False  # before anything is looked at: what comes later is told again
        if self.error is not None:
            error, self.error = self.error, None
            try:
                raise error
            finally:
                del error  # its traceback holds this frame

    def close(self) -> None:
        """Cancel the requests that are not done, before the next step."""
        self._look_again.cancel()
        self.abandon()

    def abandon(self) -> None:
        """:meth:`close` for any thread."""
        self.is_closed = True
        order, self.order = self.order, None  # which holds this object
        if order is not None:
            order.is_wanted = False
        self.engine.cancel(self.jobs)

    def wake(self) -> None:
        """Have the coroutine look."""
        self._event.set()

    def answer(self, answer: Answer[None]) -> None:
        """Whether the requests were taken in; on the thread."""
        _, self.error = answer
        if self.error is not None:
            _tell([self])

    def _look_again_later(self) -> None:
        self._look_again = self.event_loop.call_later(LOOK_AGAIN_SECONDS, self._make_sure)

    def _make_sure(self) -> None:
        """That the thread is still there, and no wake-up was lost."""
        try:
            self._loop.check_caller()
            self._loop.make_sure()
        except RupromptError as error:
            self.error = error
        else:
            self._look_again_later()
        self.wake()


class _Calls:
    """Those that wait, an audience of the steps. All methods are for the thread."""

    def __init__(self) -> None:
        self._calls: list[Call] = []

    def add(self, call: Call) -> None:
        """From now on a call is told of news."""
        self._calls.append(call)

    def tell(self) -> None:
        """Wake those that have news and do not know it yet."""
        for call in self._calls:
            if call.event_loop.is_closed():
                call.abandon()
        self._calls = [call for call in self._calls if not call.is_closed]
        _tell([call for call in self._calls if not call.is_told and _has_news(call)])

    def fail(self, error: Callable[[], Exception]) -> None:
        """Tell all of them an error, each one of its own, and forget them."""
        calls, self._calls = self._calls, []
        for call in calls:
            call.error = error()
        _tell(calls)


def _has_news(call: Call) -> bool:
    try:
        return call.has_news()
    except Exception as error:  # the news of this call; the others' steps go on
        call.error = error
        return True


def _tell(calls: Sequence[Call]) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[Call]] = {}
    for call in calls:
        call.is_told = True
        by_loop.setdefault(call.event_loop, []).append(call)
    for event_loop, of_loop in by_loop.items():
        _call_in(event_loop, of_loop)


def _call_in(event_loop: asyncio.AbstractEventLoop, calls: Sequence[Call]) -> None:
    try:
        event_loop.call_soon_threadsafe(_wake, calls)
    except RuntimeError:  # it has just been closed, and with it all who waited there
        for call in calls:
            call.abandon()


def _wake(calls: Sequence[Call]) -> None:
    for call in calls:
        call.wake()


def _stopped() -> EngineStepError:
    return EngineStepError("the engine's thread was stopped: start it again, and make the request again.")
