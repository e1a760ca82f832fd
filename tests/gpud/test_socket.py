"""The socket of gpud is replaced and removed only where it is provably gpud's own."""

import asyncio
import os
import socket
from pathlib import Path

import pytest

from gpud.server import Server, SocketAccess


def test_a_socket_that_nobody_listens_at_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "g.sock"
    SocketAccess().listen_at(path).close()
    SocketAccess().listen_at(path).close()
    assert path.is_socket()


def test_a_socket_that_somebody_listens_at_stays(tmp_path: Path) -> None:
    path = tmp_path / "g.sock"
    with SocketAccess().listen_at(path), pytest.raises(OSError, match="another gpud listens"):
        SocketAccess().listen_at(path)
    assert path.is_socket()


def test_a_socket_that_answers_otherwise_stays(tmp_path: Path) -> None:
    """A datagram socket refuses a stream with another error than nobody there: whose it is cannot be told."""
    path = tmp_path / "g.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        with pytest.raises(OSError, match="may be another gpud's"):
            SocketAccess().listen_at(path)
    assert path.is_socket()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a socket to another user")
def test_another_users_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "g.sock"
    SocketAccess().listen_at(path).close()
    os.chown(path, 12345, -1)
    with pytest.raises(OSError, match="another user's socket"):
        SocketAccess().listen_at(path)
    assert path.is_socket()


def test_a_gpud_that_ends_leaves_the_socket_of_its_successor(tmp_path: Path) -> None:
    path = tmp_path / "g.sock"

    async def run() -> None:
        first = Server(None, SocketAccess(), dict)  # type: ignore[arg-type]
        serving = await first.serve(path)
        serving.close()
        successor = Server(None, SocketAccess(), dict)  # type: ignore[arg-type]
        path.rename(tmp_path / "old")
        other = await successor.serve(path)
        first.remove_socket()
        assert path.is_socket()
        successor.remove_socket()
        assert not path.exists()
        other.close()

    asyncio.run(run())
