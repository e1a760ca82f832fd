"""Talks to gpud: one connection, one request at a time, each with a deadline; light enough for a command line.

A connection that breaks is opened again at the next request: leases belong to owners, not to connections.
"""

import json
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.gpu.gpud_wire import ErrorKind
from control_plane.leases import Hold
from control_plane.ports import GpuError

TIMEOUT_S = 5.0
"""gpud gives up on a hung driver after 2 s, and a read-back takes half a second at most."""
MOST_ANSWER_BYTES = 4 * 1024 * 1024


class GpudError(GpuError):
    """gpud is not there, does not answer or refused the request; the message says what to do."""

    def __init__(self, message: str, kind: str | None = None) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why one GPU was refused: an ``ErrorKind`` and words."""

    kind: str
    message: str


@dataclass(frozen=True, slots=True)
class Granted:
    """What became of a request, by GPU. ``granted`` holds what gpud says is in force, with the read-back's verdict."""

    granted: Mapping[str, Mapping[str, Any]]
    refused: Mapping[str, Refusal]


class GpudClient:
    """May be used by several threads; they take turns."""

    def __init__(self, path: Path, timeout_s: float = TIMEOUT_S) -> None:
        self.path, self._timeout_s = path, timeout_s
        self._turn = threading.Lock()
        self._socket: socket.socket | None = None
        self._rest = b""
        self._number = 0

    def read(self, gpus: Sequence[str] | None = None, max_age_s: float = 0.2) -> dict[str, Any]:
        """``{"gpus": [rows], "gpud": {…}}``. Raises GpudError."""
        fields: dict[str, Any] = {"op": "read", "max_age_s": max_age_s}
        return self.ask(fields if gpus is None else {**fields, "gpus": list(gpus)})

    def lock(
        self, owner: str, holds: Mapping[str, Hold], ttl_s: float, epoch: int = 0, why: str = "", only: bool = False
    ) -> Granted:
        """Hold these GPUs, read back; ``only``: the owner's other leases end. Raises GpudError."""
        wanted = {uuid: {"max_mhz": hold.freq_mhz, "power_w": hold.power_w} for uuid, hold in holds.items()}
        return self._granted(
            {"op": "lock", "owner": owner, "epoch": epoch, "ttl_s": ttl_s, "why": why, "only": only, "gpus": wanted}
        )

    def schedule(
        self,
        owner: str,
        gpus: Sequence[str],
        ttl_s: float,
        epoch: int = 0,
        clocks_mhz: tuple[int, int] | None = None,
    ) -> Granted:
        """A schedule lease on all of these GPUs or on none. Raises GpudError."""
        fields = {"op": "lock", "owner": owner, "epoch": epoch, "ttl_s": ttl_s, "schedule": list(gpus)}
        return self._granted(fields if clocks_mhz is None else {**fields, "clocks_mhz": list(clocks_mhz)})

    def set(self, owner: str, clocks_mhz: Mapping[str, int | None], epoch: int = 0) -> Granted:
        """Clocks now, under a schedule lease; None is full clock. Raises GpudError."""
        return self._granted({"op": "lock", "set": dict(clocks_mhz), "owner": owner, "epoch": epoch})

    def reset(self, owner: str | None, gpus: Sequence[str] | None = None, why: str = "") -> Granted:
        """End the owner's leases, or everybody's. Raises GpudError."""
        fields: dict[str, Any] = {"op": "reset", "why": why}
        fields |= {} if owner is None else {"owner": owner}
        return self._granted(fields if gpus is None else {**fields, "gpus": list(gpus)})

    def ask(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """One request's answer. Raises GpudError, also where gpud refused."""
        with self._turn:
            try:
                answer = self._exchange(fields)
            except BaseException:
                self._drop()
                raise
        if not answer.get("ok"):
            error = answer.get("error") or {}
            raise GpudError(str(error.get("message", "gpud refused the request")), error.get("kind"))
        return answer

    def close(self) -> None:
        with self._turn:
            self._drop()

    def _granted(self, fields: Mapping[str, Any]) -> Granted:
        answer = self.ask(fields)
        refused = {uuid: Refusal(why["kind"], why["message"]) for uuid, why in answer["refused"].items()}
        return Granted(answer["granted"], refused)

    def _exchange(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        deadline_s = time.monotonic() + self._timeout_s
        fresh = self._socket is None
        self._number += 1
        line = json.dumps({**fields, "id": self._number}).encode() + b"\n"
        try:
            self._connected().sendall(line)
            return self._answer(deadline_s)
        except (BrokenPipeError, ConnectionError, EOFError) as error:
            self._drop()
            if fresh:
                raise GpudError(f"gpud at {self.path} ended the connection: {error}", ErrorKind.BUSY) from None
        # gpud was started anew since the last request.
        try:
            self._connected().sendall(line)
            return self._answer(deadline_s)
        except (ConnectionError, EOFError) as error:
            raise GpudError(f"gpud at {self.path} ended the connection: {error}", ErrorKind.BUSY) from None

    def _answer(self, deadline_s: float) -> dict[str, Any]:
        while True:
            while b"\n" not in self._rest:
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    raise GpudError(f"gpud at {self.path} does not answer within {self._timeout_s:g} s")
                self._connected().settimeout(left_s)
                try:
                    piece = self._connected().recv(65536)
                except TimeoutError:
                    continue
                if not piece:
                    raise EOFError("no answer")
                self._rest += piece
                if len(self._rest) > MOST_ANSWER_BYTES:
                    raise GpudError(f"gpud at {self.path} sends more than an answer may be long")
            line, _, self._rest = self._rest.partition(b"\n")
            answer = json.loads(line)
            if answer.get("id") in (self._number, None):
                return dict(answer)

    def _connected(self) -> socket.socket:
        if self._socket is None:
            opened = socket.socket(socket.AF_UNIX)
            opened.settimeout(self._timeout_s)
            try:
                opened.connect(str(self.path))
            except OSError as error:
                opened.close()
                start = "start it (`wattray gpud`), or name its socket with --socket or WATTRAY_GPUD_SOCKET"
                if isinstance(error, PermissionError):
                    start = "your user may not use it: see --group of `wattray gpud`"
                raise GpudError(f"no gpud at {self.path} ({error.strerror or error}): {start}") from None
            self._socket = opened
        return self._socket

    def _drop(self) -> None:
        self._rest = b""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
