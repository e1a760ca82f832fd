"""gpud as a process: opens the driver, finds and undoes what an earlier one left, serves, and leaves nothing behind."""

import asyncio
import fcntl
import logging
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from actors.gpu.driver_thread import DriverThread
from control_plane.ports import Gpu, GpuError, GpuNode, NoGpuError
from gpud.audit import Audit
from gpud.guard import Guard
from gpud.options import Options
from gpud.prometheus import serve_metrics
from gpud.records import Records
from gpud.server import Server, SocketAccess

log = logging.getLogger(__name__)

TICK_S = 1.0
AUDIT_S = 0.02
"""For the lines of the audit that wait for a free moment."""
FIRST_LOOK_S = 3.0


class AlreadyRunningError(RuntimeError):
    """Another gpud works with this state folder."""


class Service:
    """``open_node`` may block and may raise NoGpuError; it is asked again until it succeeds."""

    def __init__(self, options: Options, open_node: Callable[[], GpuNode]) -> None:
        options.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = _locked(options.state)
        self._options = options
        self._audit = Audit(options.state / "audit.jsonl")
        self.guard = Guard(options.rules, Records(options.state / "leases"), self._audit)
        self._server = Server(self.guard, SocketAccess.of(options.group, options.uids), self.state)
        self._driver = DriverThread(_Driver(open_node), "the GPU driver")
        self._no_gpu: str | None = "the driver has not answered yet"
        self._told_no_gpu = False
        self._scanned_s = float("-inf")
        self._scan: Future[list[Gpu]] | None = None

    async def run(self) -> None:
        """Until SIGTERM, SIGINT or SIGHUP; then every lease is ended and what was set is undone."""
        ending = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, ending.set)
        self._audit.note("started", pid=os.getpid(), dry_run=self._options.rules.dry_run or None)
        await self._first_look()
        server = await self._server.serve(self._options.socket)
        metrics = None
        if self._options.metrics_port is not None:
            metrics = await serve_metrics(
                self.guard, self._options.metrics_port, lambda port: log.info("metrics at http://127.0.0.1:%d", port)
            )
        log.info("gpud serves %d GPUs at %s", len(self.guard.cards), self._options.socket)
        ticking = loop.create_task(self._tick_forever(ending))
        await ending.wait()
        ticking.cancel()
        server.close()
        if metrics is not None:
            metrics.close()
        self.guard.ending = True
        await self.guard.upkeep.end()
        self._server.remove_socket()
        await asyncio.sleep(AUDIT_S)
        self._audit.note("ended", pid=os.getpid())

    async def restore(self) -> None:
        """Undo what an earlier gpud left, and nothing else."""
        await self._first_look()
        await self.guard.upkeep.end()
        await asyncio.sleep(AUDIT_S)

    def state(self) -> dict[str, Any]:
        """How gpud is: "ok", "no gpu", "dry run", or "degraded" with the reason."""
        rules, cards = self.guard.rules, self.guard.cards.values()
        told: dict[str, Any] = {"state": "ok", "why": None}
        troubled = [card for card in cards if card.lost or card.hangs or card.denied]
        if self._no_gpu is not None:
            told = {"state": "no gpu", "why": self._no_gpu}
        elif troubled:
            whys = (card.lost or card.denied or f"GPU {card.uuid}: its driver hangs" for card in troubled)
            told = {"state": "degraded", "why": "; ".join(whys)}
        elif rules.dry_run:
            told = {"state": "dry run", "why": "nothing is set, only recorded"}
        return {
            "gpud": {
                **told,
                "pid": os.getpid(),
                "uid": os.geteuid(),
                "dry_run": rules.dry_run,
                "ttl_max_s": rules.ttl_max_s,
                "bounds_mhz": [rules.bounds.low_mhz, rules.bounds.high_mhz],
                "driver": self._options.driver,
            }
        }

    async def _first_look(self) -> None:
        """Wait for the driver, but not for ever: a hung one must not keep gpud from answering."""
        began_s = time.monotonic()
        self._rescan()
        while time.monotonic() - began_s < FIRST_LOOK_S and self._scan is not None and not self._scan.done():
            await asyncio.sleep(0.005)
        self._rescan()
        looks = [self.guard.executor.look(card, 0.0) for card in self.guard.cards.values()]
        for outcome in await asyncio.gather(*looks, return_exceptions=True):
            if isinstance(outcome, GpuError):
                log.warning("%s", outcome)

    async def _tick_forever(self, ending: asyncio.Event) -> None:
        while True:
            idle_s = time.monotonic() - self._server.asked_s
            if (
                self._options.end_idle_s is not None
                and idle_s > self._options.end_idle_s
                and not self.guard.upkeep.busy
            ):
                log.info("nobody has asked anything for %.0f s: gpud ends", idle_s)
                ending.set()
            try:
                self._rescan()
                self.guard.upkeep.tick()
            except Exception:
                log.exception("a tick failed; the next one follows")
            pause_s = TICK_S if self.guard.upkeep.busy else self._options.rescan_s
            expiry_s = self.guard.upkeep.next_expiry_s()
            if expiry_s is not None:
                pause_s = min(pause_s, max(0.001, expiry_s - time.monotonic()))
            self.guard.woken.clear()
            try:
                async with asyncio.timeout(pause_s):
                    await self.guard.woken.wait()
            except TimeoutError:
                continue

    def _rescan(self) -> None:
        """Ask the driver in its thread which GPUs there are, and take in what it said last."""
        if self._scan is not None and self._scan.done():
            self._take_in(self._scan)
            self._scan = None
        now_s = time.monotonic()
        if self._scan is None and now_s - self._scanned_s >= self._options.rescan_s:
            self._scanned_s = now_s
            try:
                self._scan = self._driver.submit(lambda driver: driver.gpus())
            except GpuError as error:
                self._no_gpu = str(error)

    def _take_in(self, scan: "Future[list[Gpu]]") -> None:
        try:
            gpus = scan.result()
        except NoGpuError as error:
            self._say_no_gpu(str(error))
            return
        except GpuError as error:
            log.warning("%s", error)
            return
        if gpus or self.guard.cards:
            self._no_gpu = None
        else:
            self._say_no_gpu("the driver lists no GPU")
        for card in self.guard.admit(gpus):
            if card.owes_a_reset:
                self._audit.note("found", gpu=card.uuid, why="an earlier gpud left it set: it is reset")
        self.guard.upkeep.tick()
        for card in self.guard.cards.values():
            if card.lost is not None or card.last is None:
                self.guard.upkeep.look_soon(card)

    def _say_no_gpu(self, why: str) -> None:
        self._no_gpu = why
        if not self._told_no_gpu:
            self._told_no_gpu = True
            log.warning("no GPU: %s (asked again every %.0f s)", why, self._options.rescan_s)


class _Driver:
    """Opens the node when it is first asked, and again where that failed."""

    def __init__(self, open_node: Callable[[], GpuNode]) -> None:
        self._open_node = open_node
        self._node: GpuNode | None = None

    def gpus(self) -> list[Gpu]:
        if self._node is None:
            self._node = self._open_node()
        return list(self._node.gpus())


def _locked(state: Path) -> Any:
    """The state folder is one gpud's."""
    file = (state / "lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise AlreadyRunningError(f"another gpud works with {state}") from None
    return file
