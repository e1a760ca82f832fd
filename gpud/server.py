"""The Unix socket: who may connect, a JSON line per request, answers as they are ready, refusals typed and audited."""

import asyncio
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
QUICK = b'{"op": "lock", "set"'
"""How our own clients begin a scheduled set."""
SO_PEERGROUPS = 59
MOST_GROUPS = 256


@dataclass(frozen=True, slots=True)
class Door:
    """Who may come in: root, gpud's own user, members of ``gid``, and ``uids``."""

    gid: int | None = None
    uids: frozenset[int] = field(default_factory=frozenset)

    @classmethod
    def of(cls, group: str | None, uids: tuple[int, ...]) -> "Door":
        """Raises ValueError for a group that is not there."""
        try:
            gid = None if group is None else int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
        except KeyError:
            raise ValueError(f"--group {group}: there is no such group") from None
        return cls(gid, frozenset(uids))

    def lets_in(self, uid: int, groups: frozenset[int]) -> bool:
        return uid in (0, os.geteuid()) or uid in self.uids or (self.gid is not None and self.gid in groups)

    def open_at(self, path: Path) -> socket.socket:
        """A listening socket that only those may connect to. Raises OSError where another gpud listens there."""
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        if path.is_socket():
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(str(path))
                except OSError:
                    path.unlink()
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

    def __init__(self, guard: Guard, door: Door, state: Callable[[], dict[str, Any]]) -> None:
        self._guard, self._door, self._state = guard, door, state
        self._connections: set[asyncio.Task[Any]] = set()
        self.asked_s = time.monotonic()
        """When somebody asked last."""

    async def serve(self, path: Path) -> asyncio.Server:
        listening = self._door.open_at(path)
        return await asyncio.start_unix_server(self._connected, sock=listening, limit=MOST_FRAME_BYTES)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            peer, groups = _peer(writer.get_extra_info("socket"))
            if not self._door.lets_in(peer.uid, groups):
                self._guard.audit.note("refused", uid=peer.uid, pid=peer.pid, kind=ErrorKind.FORBIDDEN)
                error = RefusedError(ErrorKind.FORBIDDEN, f"user {peer.uid} may not talk to gpud")
                await _send(writer, None, _failure(error))
                await _hear_out(reader, writer)
            elif len(self._connections) > MOST_CONNECTIONS:
                await _send(writer, None, _failure(RefusedError(ErrorKind.BUSY, "too many connections")))
                await _hear_out(reader, writer)
            else:
                await self._converse(reader, writer, peer)
        except (ConnectionError, BrokenPipeError, asyncio.IncompleteReadError):
            pass  # whoever asked is gone; what it asked for is under a lease
        except asyncio.CancelledError:
            pass  # gpud ends
        finally:
            self._connections.discard(task)
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: Peer) -> None:
        room, sending = asyncio.Semaphore(MOST_IN_FLIGHT), asyncio.Lock()
        working: set[asyncio.Task[None]] = set()
        while True:
            try:
                line = await reader.readuntil(b"\n")
            except asyncio.IncompleteReadError as error:
                if error.partial:
                    self._note_refusal(peer, RefusedError(ErrorKind.BAD_REQUEST, "the connection ended in a request"))
                break
            except (asyncio.LimitOverrunError, ValueError):
                refusal = RefusedError(ErrorKind.BAD_REQUEST, f"a request is at most {MOST_FRAME_BYTES} bytes")
                self._note_refusal(peer, refusal)
                async with sending:
                    await _send(writer, None, _failure(refusal))
                await _hear_out(reader, writer)
                return
            if line.startswith(QUICK) and not sending.locked():
                # A scheduled set is answered before the next request of this connection is read: that saves a task.
                await self._answer(line, writer, peer, None, sending)
                continue
            await room.acquire()
            task = asyncio.get_running_loop().create_task(self._answer(line, writer, peer, room, sending))
            working.add(task)
            task.add_done_callback(working.discard)
        if working:
            await asyncio.wait(working)

    async def _answer(
        self,
        line: bytes,
        writer: asyncio.StreamWriter,
        peer: Peer,
        room: asyncio.Semaphore | None,
        sending: asyncio.Lock,
    ) -> None:
        named: object = None
        try:
            named, fields = parse_frame(line)
            content = await self._do(fields, peer)
        except RefusedError as error:
            self._note_refusal(peer, error)
            content = _failure(error)
        except Exception as error:
            log.exception("a request failed in a way that should not be possible")
            content = _failure(RefusedError(ErrorKind.DRIVER, f"gpud failed: {type(error).__name__}: {error}"))
        finally:
            if room is not None:
                room.release()
        try:
            async with sending:
                await _send(writer, named, content)
        except ConnectionError:
            return

    async def _do(self, fields: dict[str, Any], peer: Peer) -> dict[str, Any]:
        request = parse_request(fields)
        self.asked_s = time.monotonic()
        guard = self._guard
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

    def _note_refusal(self, peer: Peer, error: RefusedError) -> None:
        self._guard.audit.note("refused", uid=peer.uid, pid=peer.pid, kind=error.kind, message=str(error)[:300])


async def _hear_out(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Closing with something unread would throw the answer away that was just sent."""
    writer.write_eof()
    try:
        async with asyncio.timeout(HEAR_OUT_S):
            while await reader.read(MOST_FRAME_BYTES):
                pass
    except TimeoutError:
        return


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


async def _send(writer: asyncio.StreamWriter, named: object, content: dict[str, Any]) -> None:
    writer.write(json.dumps({"id": named, **content}).encode() + b"\n")
    await writer.drain()
