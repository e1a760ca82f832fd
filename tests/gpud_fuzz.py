"""Random requests, valid and not, and bytes that are no requests: what gpud must survive."""

import json
import random
import socket
import time
from pathlib import Path
from typing import Any

NUMBERS: list[Any] = [
    *(0, -1, 345, 600, 990, 1200, 1203, 1500, 1980, 1981),
    *(1e9, -1e9, 1200.5, 2**70, None, "1200", True, [], {}),
]
OWNERS: list[Any] = ["pool", "job", "governor:r0", "", "a" * 200, "ö ä", None, 7]
TTLS: list[Any] = [0.2, 1, 3, 0, -1, 31, 1e12, None, "x"]


def any_request(chance: random.Random, uuids: list[str]) -> dict[str, Any]:
    """Most of it makes sense."""
    some = chance.sample([*uuids, "GPU-none"], chance.randint(0, len(uuids)))
    base = {"id": chance.choice([1, "x", None, 2**60, []]) if chance.random() < 0.05 else chance.randint(0, 999)}
    owner = chance.choice(OWNERS[:3]) if chance.random() < 0.9 else chance.choice(OWNERS)
    ttl = chance.choice(TTLS[:3]) if chance.random() < 0.9 else chance.choice(TTLS)
    lease = {"owner": owner, "ttl_s": ttl, "epoch": chance.choice([0, 0, 0, 1, 2, -1, "x"])}

    def mhz() -> Any:
        return chance.choice(NUMBERS[3:9]) if chance.random() < 0.8 else chance.choice(NUMBERS)

    match chance.randint(0, 7):
        case 0:
            return {**base, "op": "read", "max_age_s": chance.choice([0, 0.2, 5, -1, None])}
        case 1 | 2:
            holds = {uuid: {"max_mhz": mhz(), "power_w": chance.choice([None, 300, 450, 9000])} for uuid in some}
            return {**base, "op": "lock", **lease, "gpus": holds, "only": chance.choice([True, False, False, 3])}
        case 3:
            within = {} if chance.random() < 0.5 else {"clocks_mhz": [mhz(), mhz()]}
            return {**base, "op": "lock", **lease, "schedule": some, **within}
        case 4 | 5:
            return {**base, "op": "lock", "owner": owner, "set": {uuid: mhz() for uuid in some}}
        case 6:
            return {**base, "op": "limit_power", **lease, "gpus": {uuid: {"power_w": mhz()} for uuid in some}}
        case _:
            op = chance.choice(["reset", "reset", "reset", "shutdown", None, 7, "exec"])
            return {**base, "op": op, "owner": owner, **({"gpus": some} if chance.random() < 0.5 else {})}


def garbage(chance: random.Random, uuids: list[str]) -> bytes:
    """Bytes that are no request, or half of one, or far too much of one."""
    good = json.dumps(any_request(chance, uuids)).encode()
    match chance.randint(0, 6):
        case 0:
            return chance.randbytes(chance.randint(1, 4000)) + b"\n"
        case 1:
            return good[: chance.randint(1, len(good))]
        case 2:
            return b"{" * 30_000 + b"\n"
        case 3:
            return b'{"op": "' + b"x" * 300_000 + b'"}\n'
        case 4:
            place = chance.randrange(len(good))
            return good[:place] + chance.randbytes(1) + good[place:] + b"\n"
        case 5:
            return b'\n\n\r\n[]\nnull\n1e999\n"\xff"\n'
        case _:
            return b'{"op": "read", "op": "lock", "gpus": NaN}\n' * 50


def hammer(path: Path, uuids: list[str], seconds: float, seed: int, throw: float) -> dict[str, int]:
    """Talk to gpud for a while; how many answers of each kind came. ``throw``: the share of garbage."""
    chance, until_s = random.Random(seed), time.monotonic() + seconds
    counts: dict[str, int] = {}
    while time.monotonic() < until_s:
        with socket.socket(socket.AF_UNIX) as raw:
            raw.settimeout(10)
            raw.connect(str(path))
            try:
                converse(raw, chance, uuids, until_s, throw, counts)
            except (ConnectionError, BrokenPipeError):
                counts["cut off"] = counts.get("cut off", 0) + 1
    return counts


def converse(
    raw: socket.socket, chance: random.Random, uuids: list[str], until_s: float, throw: float, counts: dict[str, int]
) -> None:
    for _ in range(200):
        if time.monotonic() >= until_s:
            return
        if chance.random() < throw:
            raw.sendall(garbage(chance, uuids))
            counts["garbage"] = counts.get("garbage", 0) + 1
            return
        raw.sendall(json.dumps(any_request(chance, uuids)).encode() + b"\n")
        line = b""
        while not line.endswith(b"\n"):
            piece = raw.recv(1 << 20)
            if not piece:
                return
            line += piece
        answer = json.loads(line)
        for kind in kinds(answer):
            counts[kind] = counts.get(kind, 0) + 1


def kinds(answer: dict[str, Any]) -> list[str]:
    """Every refusal is one of a known kind and says why."""
    if not answer["ok"]:
        assert answer["error"]["message"]
        return [answer["error"]["kind"]]
    refused = answer.get("refused", {}).values()
    assert all(refusal["message"] for refusal in refused)
    return ["ok", *(refusal["kind"] for refusal in refused)]
