"""The planner's end of its solver process: started at the first question, again when it dies, ended when idle.

The socket between the two is all that keeps the solver alive: it ends with the planner's process, however that ends.
"""

import asyncio
import itertools
import logging
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from actors.solver_messages import (
    Answer,
    Answered,
    Asked,
    Question,
    SolvingError,
    UnreadableMessageError,
    receive,
    send,
)

log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "actors.solver_main")
IDLE_S = 300.0
"""A solver takes 130 MB and more; a new one is up in a second and traces again what it is asked about."""
MOST_ATTEMPTS = 3
END_S = 5.0
"""How long a solver whose socket has closed may take to end before it is killed."""


@dataclass(frozen=True, slots=True, eq=False)
class _Link:
    process: "subprocess.Popen[bytes]"
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


@dataclass(slots=True, eq=False)
class _Open:
    """A question without an answer, and the solver it was last put to."""

    question: Question
    answer: "asyncio.Future[Answer]"
    link: _Link | None = None
    attempts: int = 0


class SolverProcess:
    """A Solver. Used from one event loop."""

    def __init__(self, command: Sequence[str] = COMMAND, idle_s: float = IDLE_S) -> None:
        self._command, self._idle_s = command, idle_s
        self._numbers = itertools.count()
        self._open: dict[int, _Open] = {}
        self._link: _Link | None = None
        self._starting = asyncio.Lock()
        self._reading: set[asyncio.Task[None]] = set()
        self._resting: asyncio.TimerHandle | None = None

    async def answer(self, question: Question) -> Answer:
        """Raises SolvingError where there is none, also where solvers keep dying over it."""
        if self._resting is not None:
            self._resting.cancel()
        number = next(self._numbers)
        asked = self._open[number] = _Open(question, asyncio.get_running_loop().create_future())
        try:
            await self._put(number, asked)
            return await asked.answer
        finally:
            del self._open[number]
            if not self._open:
                self._resting = asyncio.get_running_loop().call_later(self._idle_s, self._rest)

    async def close(self) -> None:
        """End the solver and wait for it; what is open fails."""
        self._rest()
        for asked in self._open.values():
            if not asked.answer.done():
                asked.answer.set_exception(SolvingError("the solver has been closed"))
        await asyncio.gather(*self._reading)

    @property
    def pid(self) -> int | None:
        """Of the solver that runs now, if one does."""
        return None if self._link is None else self._link.process.pid

    def _rest(self) -> None:
        if self._resting is not None:
            self._resting.cancel()
        if self._link is not None:
            self._link.writer.close()
            self._link = None

    async def _put(self, number: int, asked: _Open) -> None:
        asked.attempts += 1
        try:
            asked.link = await self._started()
        except OSError as error:
            _fail(asked, f"no solver can be started: {error}")
            return
        try:
            await send(asked.link.writer, Asked(number=number, question=asked.question))
        except ConnectionError as error:
            log.warning("the solver ended before question %d reached it: %s", number, error)  # see _listen

    async def _started(self) -> _Link:
        async with self._starting:
            if self._link is None:
                ours, theirs = socket.socketpair()
                # Its modules are found beside this one, wherever this process was started.
                root = Path(__file__).resolve().parents[1]
                try:
                    with theirs:
                        process = subprocess.Popen(self._command, stdin=theirs.fileno(), cwd=root)
                except OSError:
                    ours.close()
                    raise
                reader, writer = await asyncio.open_connection(sock=ours)
                self._link = _Link(process, reader, writer)
                listening = asyncio.get_running_loop().create_task(self._listen(self._link))
                self._reading.add(listening)
                listening.add_done_callback(self._reading.discard)
            return self._link

    async def _listen(self, link: _Link) -> None:
        """Take answers until the solver ends or cannot be understood; what it left open is then put to a new one."""
        try:
            while (answered := await receive(link.reader, Answered)) is not None:
                asked = self._open.get(answered.number)
                if asked is not None and not asked.answer.done():
                    _settle(asked.answer, answered)
        except UnreadableMessageError as error:
            log.error("the solver's answer cannot be read, another is started: %s", error)
            link.process.kill()
            unread = None if error.number is None else self._open.get(error.number)
            if unread is not None:
                _fail(unread, f"the solver's answer cannot be read: {error}")
        finally:
            link.writer.close()
            if self._link is link:
                self._link = None
        code = await asyncio.to_thread(_ended, link.process)
        left = {number: asked for number, asked in self._open.items() if asked.link is link and not asked.answer.done()}
        if left:
            log.error("the solver ended with code %d; %d questions are asked again", code, len(left))
        for number, asked in left.items():
            if asked.attempts >= MOST_ATTEMPTS:
                _fail(asked, f"the solver died {asked.attempts} times over it, code {code}")
            else:
                await self._put(number, asked)


def _ended(process: "subprocess.Popen[bytes]") -> int:
    """Its exit code; a solver that has closed its socket and still runs is killed."""
    try:
        return process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _fail(asked: _Open, why: str) -> None:
    if not asked.answer.done():
        asked.answer.set_exception(SolvingError(f"job {asked.question.job.name}: {why}"))


def _settle(future: "asyncio.Future[Answer]", answered: Answered) -> None:
    try:
        future.set_result(answered.answer)
    except SolvingError as error:
        future.set_exception(error)
