"""The Unix socket: who may connect, a JSON line per request, answers as they are ready, refusals typed and audited."""

import asyncio
import contextlib
import grp
import json
import logging
import os
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, assert_never

from actors.gpu.gpud_wire import MOST_FRAME_BYTES, ErrorKind
from gpud.executor import Peer
from gpud.guard import Answer, Guard
from gpud.readings import rows
from gpud.requests import (
    LimitPower,
    Lock,
    Read,
    RefusedError,
    Reset,
    Schedule,
    SetScheduled,
    parse_frame,
    parse_request,
)

log = logging.getLogger(__name__)

MOST_IN_FLIGHT = 32
"""Requests of one connection that are worked on at once; the next ones are read when one of them is answered."""
MOST_CONNECTIONS = 256
HEAR_OUT_S = 1.0
SO_PEERGROUPS = 59
MOST_GROUPS = 256


@dataclass(frozen=True, slots=True)
class SocketAccess:
    """Who may connect: root, gpud's own user, members of ``gid``, and ``uids``."""

    gid: int | None = None
    uids: frozenset[int] = field(default_factory=frozenset)

    @classmethod
    def of(cls, group: str | None, uids: tuple[int, ...]) -> "SocketAccess":
        """Raises ValueError for a group that is not there."""
        try:
            gid = None if group is None else int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
        except KeyError:
            raise ValueError(f"--group {group}: there is no such group") from None
        return cls(gid, frozenset(uids))

    def allows(self, uid: int, groups: frozenset[int]) -> bool:
        return uid in (0, os.geteuid()) or uid in self.uids or (self.gid is not None and self.gid in groups)

    def listen_at(self, path: Path) -> socket.socket:
        """A listening socket that only those may connect to. A socket of ours that nobody listens at is replaced.
        Raises OSError where another gpud listens there, and where that cannot be told."""
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        if path.is_socket():
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(2.0)
                try:
                    probe.connect(str(path))
                except ConnectionRefusedError:
                    if path.lstat().st_uid != os.geteuid():
                        raise OSError(f"{path} is another user's socket; name another one with --socket") from None
                    path.unlink()
                except OSError as error:
                    raise OSError(f"{path} may be another gpud's, it cannot be asked: {error}") from None
                else:
                    raise OSError(f"another gpud listens at {path}")
        listening = socket.socket(socket.AF_UNIX)
        before = os.umask(0o177)
        try:
            listening.bind(str(path))
        finally:
            os.umask(before)
        if self.gid is not None:
            os.chown(path, -1, self.gid)
            path.chmod(0o660)
        elif self.uids:
            path.chmod(0o666)  # the check of the peer's user is the lock then
        listening.listen(64)
        return listening


class Server:
    """``state`` tells how gpud is, as part of every answer to ``read``."""

    def __init__(self, guard: Guard, access: SocketAccess, state: Callable[[], dict[str, Any]]) -> None:
        self.guard, self.access, self._state = guard, access, state
        self.connections: set[_Connection] = set()
        self._place: tuple[Path, int] | None = None
        self.asked_s = time.monotonic()
        """When somebody asked last."""

    async def serve(self, path: Path) -> asyncio.Server:
        listening = self.access.listen_at(path)
        self._place = path, path.lstat().st_ino
        return await asyncio.get_running_loop().create_unix_server(lambda: _Connection(self), sock=listening)

    def remove_socket(self) -> None:
        """Only the one that was made here: another gpud may have begun to listen there since."""
        if self._place is None:
            return
        path, inode = self._place
        with contextlib.suppress(FileNotFoundError):
            if path.lstat().st_ino == inode:
                path.unlink()

    async def answer(self, line: bytes, peer: Peer) -> bytes:
        """The answer to one request, a line too."""
        named: object = None
        try:
            named, fields = parse_frame(line)
            content = await self._do(fields, peer)
        except RefusedError as error:
            content = self.refused(peer, error)
        except Exception as error:
            log.exception("a request failed in a way that should not be possible")
            content = _failure(RefusedError(ErrorKind.DRIVER, f"gpud failed: {type(error).__name__}: {error}"))
        return _line(named, content)

    async def _do(self, fields: dict[str, Any], peer: Peer) -> dict[str, Any]:
        request = parse_request(fields)
        self.asked_s = time.monotonic()
        guard = self.guard
        match request:
            case Read():
                return {"ok": True, "gpus": await rows(guard, request), **self._state()}
            case Lock():
                return _told(await guard.lock(request, peer))
            case LimitPower():
                return _told(await guard.limit_power(request, peer))
            case Schedule():
                return _told(await guard.schedule(request, peer))
            case SetScheduled():
                return _told(await guard.set_scheduled(request, peer))
            case Reset():
                return _told(await guard.reset(request, peer, may_end_all=peer.uid in (0, os.geteuid())))
            case _:
                assert_never(request)

    def refused(self, peer: Peer, error: RefusedError) -> dict[str, Any]:
        """Noted in the audit, and the answer that tells it."""
        self.guard.audit.note("refused", uid=peer.uid, pid=peer.pid, kind=error.kind, message=str(error)[:300])
        return _failure(error)


class _Connection(asyncio.Protocol):
    """Cuts what comes into lines; each is worked on at once, so many at a time. A peer that does not take its answers
    is not read from either."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._rest = b""
        self._working: set[asyncio.Task[None]] = set()
        self._refusing = self._full = self._peer_ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._peer, groups = _peer(transport.get_extra_info("socket"))
        self._server.connections.add(self)
        if not self._server.access.allows(self._peer.uid, groups):
            self._refuse(RefusedError(ErrorKind.FORBIDDEN, f"user {self._peer.uid} may not talk to gpud"))
        elif len(self._server.connections) > MOST_CONNECTIONS:
            self._refuse(RefusedError(ErrorKind.BUSY, "too many connections"))

    def data_received(self, data: bytes) -> None:
        if self._refusing:
            return
        self._rest += data
        self._begin_requests()

    def _begin_requests(self) -> None:
        begin = 0
        while not self._refusing and len(self._working) < MOST_IN_FLIGHT:
            end = self._rest.find(b"\n", begin)
            if (len(self._rest) if end < 0 else end) - begin > MOST_FRAME_BYTES:
                self._refuse(RefusedError(ErrorKind.BAD_REQUEST, f"a request is at most {MOST_FRAME_BYTES} bytes"))
                return
            if end < 0:
                break
            task = asyncio.get_running_loop().create_task(self._answer(self._rest[begin:end]))
            begin = end + 1
            self._working.add(task)
            task.add_done_callback(self._answered)
        self._rest = self._rest[begin:]
        self._read_on()

    async def _answer(self, line: bytes) -> None:
        self._transport.write(await self._server.answer(line, self._peer))

    def _answered(self, task: "asyncio.Task[None]") -> None:
        self._working.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("an answer was not sent: %r", task.exception())
        self._begin_requests()
        if self._peer_ended and not self._working and not self._refusing:
            self._transport.close()

    def _read_on(self) -> None:
        """Or not, while too much of this connection is being worked on or its answers are not taken."""
        if self._transport.is_closing():
            return
        if self._full or len(self._working) >= MOST_IN_FLIGHT:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def pause_writing(self) -> None:
        self._full = True
        self._read_on()

    def resume_writing(self) -> None:
        self._full = False
        self._read_on()

    def eof_received(self) -> bool:
        """Whether the connection stays open for answers that are still due."""
        if self._rest and not self._refusing:
            self._server.refused(self._peer, RefusedError(ErrorKind.BAD_REQUEST, "the connection ended in a request"))
        self._peer_ended = True
        return bool(self._working) and not self._refusing

    def connection_lost(self, exc: Exception | None) -> None:
        """What the peer asked for is under a lease and goes on."""
        self._server.connections.discard(self)

    def _refuse(self, error: RefusedError) -> None:
        """Say so, and listen to what the peer still sends for a moment: closing with something unread would throw the
        answer away."""
        self._refusing, self._rest = True, b""
        self._transport.write(_line(None, self._server.refused(self._peer, error)))
        self._transport.write_eof()
        self._transport.resume_reading()
        asyncio.get_running_loop().call_later(HEAR_OUT_S, self._transport.close)


def _peer(connection: Any) -> tuple[Peer, frozenset[int]]:
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, gid = struct.unpack("3i", raw)
    try:
        listed = connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 4 * MOST_GROUPS)
    except OSError:
        listed = b""  # a kernel before 4.13: the primary group alone counts
    groups = struct.unpack(f"{len(listed) // 4}i", listed)
    return Peer(uid & 0xFFFFFFFF, pid), frozenset({gid, *groups})


def _told(answer: Answer) -> dict[str, Any]:
    return {"ok": True, "granted": answer.granted, "refused": answer.refused}


def _failure(error: RefusedError) -> dict[str, Any]:
    return {"ok": False, "error": {"kind": error.kind, "message": str(error)}}


def _line(named: object, content: dict[str, Any]) -> bytes:
    return json.dumps({"id": named, **content}).encode() + b"\n"
