"""One thread per GPU makes every call to its driver: no two calls on one GPU overlap, and one that hangs delays no
other GPU. Whoever asks waits as long as it likes; the call goes on, because nobody can stop it."""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, Generic, TypeVar

from control_plane.ports import GpuBusyError

HUNG_S = 2.0
"""A driver that has not answered for this long hangs: what is asked meanwhile is refused instead of queued. A lock
takes 10-20 ms, the slowest energy read seen 17 ms."""

Subject = TypeVar("Subject")
Value = TypeVar("Value")


class DriverThread(Generic[Subject]):
    """Calls run one after the other; urgent ones (those that set) come before those that only read."""

    def __init__(self, subject: Subject, name: str, hung_s: float = HUNG_S) -> None:
        """``name`` says in errors whose driver it is: "GPU <UUID>"."""
        self.subject, self.name = subject, name
        self._hung_s = hung_s
        self._waiting = threading.Condition()
        self._urgent: deque[tuple[Callable[[Subject], Any], Future[Any]]] = deque()
        self._reads: deque[tuple[Callable[[Subject], Any], Future[Any]]] = deque()
        self._began_s: float | None = None
        self._ended = False
        threading.Thread(target=self._run, name=name[-15:], daemon=True).start()

    def submit(self, call: Callable[[Subject], Value], urgent: bool = False) -> "Future[Value]":
        """The call's answer, one day. Raises GpuBusyError while the driver hangs, without queueing the call."""
        future: Future[Value] = Future()
        with self._waiting:
            stuck_s = self.stuck_s()
            if stuck_s > self._hung_s:
                raise GpuBusyError(f"{self.name}: its driver has not answered for {stuck_s:.1f} s")
            (self._urgent if urgent else self._reads).append((call, future))
            self._waiting.notify()
        return future

    def ask(self, call: Callable[[Subject], Value], urgent: bool = False) -> Value:
        """Wait for the answer. Raises GpuBusyError where it does not come in time; a call that has not begun by then
        never runs."""
        future = self.submit(call, urgent)
        try:
            return future.result(self._hung_s)
        except FutureTimeoutError:
            future.cancel()
            raise GpuBusyError(f"{self.name}: its driver has not answered within {self._hung_s:g} s") from None

    def stuck_s(self) -> float:
        """How long the call that runs now has taken so far; 0 where none runs."""
        began_s = self._began_s
        return 0.0 if began_s is None else time.monotonic() - began_s

    @property
    def hangs(self) -> bool:
        return self.stuck_s() > self._hung_s

    def end(self) -> None:
        """No more calls; one that hangs is left behind (the thread does not keep the process alive)."""
        with self._waiting:
            self._ended = True
            self._waiting.notify()

    def _run(self) -> None:
        while True:
            with self._waiting:
                while not (self._urgent or self._reads or self._ended):
                    self._waiting.wait()
                if self._ended and not self._urgent:
                    for _, dropped in self._reads:
                        dropped.cancel()
                    return
                call, future = (self._urgent or self._reads).popleft()
                self._began_s = time.monotonic()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call(self.subject))
                except BaseException as error:  # noqa: BLE001 (it is raised where the answer is awaited)
                    future.set_exception(error)
            self._began_s = None
