"""Requests as typed values: what a line on the socket may say, checked field by field before anything is done."""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from actors.gpu.gpud_wire import ErrorKind
from control_plane.leases import Hold

OWNER = re.compile(r"^[\w:./@#-]{1,128}$")
MOST_WHY = 500
MOST_MHZ = 100_000
MOST_GPUS = 128


class RefusedError(Exception):
    """A request, or one GPU of it, is not granted."""

    def __init__(self, kind: ErrorKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Read:
    """The GPUs as they are now; a reading may be ``max_age_s`` old."""

    gpus: tuple[str, ...] | None
    max_age_s: float


@dataclass(frozen=True, slots=True)
class Lease:
    """Who asks, and for how long. ``only``: these are all the GPUs that the owner wants, its other leases end."""

    owner: str
    epoch: int
    ttl_s: float
    why: str
    only: bool


@dataclass(frozen=True, slots=True)
class Lock:
    """Hold these GPUs at these values and read back what became of it."""

    lease: Lease
    holds: Mapping[str, Hold]


@dataclass(frozen=True, slots=True)
class LimitPower:
    """Limit the power of these GPUs; the clocks that their owner holds stay."""

    lease: Lease
    limits_w: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Schedule:
    """A lease under which its owner sets clocks often; nothing is set yet."""

    lease: Lease
    gpus: tuple[str, ...]
    clocks_mhz: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class SetScheduled:
    """Clocks now, under a schedule lease; None is full clock."""

    owner: str
    epoch: int
    clocks_mhz: Mapping[str, int | None]


@dataclass(frozen=True, slots=True)
class Reset:
    """End leases: the owner's, or anybody's where no owner is named; on these GPUs, or on all."""

    owner: str | None
    gpus: tuple[str, ...] | None
    why: str


Request = Read | Lock | LimitPower | Schedule | SetScheduled | Reset


def parse_frame(line: bytes) -> tuple[object, dict[str, Any]]:
    """The request's id (null, a number or a short text) and its fields. Raises RefusedError."""
    try:
        fields = _DECODER.decode(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise _bad(f"not one line of JSON: {error}") from None
    if not isinstance(fields, dict):
        raise _bad("a request is a JSON object")
    named = fields.pop("id", None)
    if not (named is None or (isinstance(named, int) and abs(named) < 1 << 53) or _is_text(named, 64)):
        raise _bad("id must be a whole number or a text of at most 64 characters")
    return named, fields


def parse_request(fields: dict[str, Any]) -> Request:
    """Raises RefusedError, naming the field."""
    op = fields.pop("op", None)
    parse = _PARSERS.get(op) if isinstance(op, str) else None
    if parse is None:
        raise _bad(f"op must be one of {', '.join(sorted(_PARSERS))}, got {_shown(op)}")
    request = parse(fields)
    if fields:
        raise _bad(f"{op}: unknown fields {', '.join(_shown(name) for name in sorted(fields))}")
    return request


def _read(fields: dict[str, Any]) -> Read:
    gpus = _uuids(fields.pop("gpus")) if fields.get("gpus") is not None else fields.pop("gpus", None)
    return Read(gpus, _number("max_age_s", fields.pop("max_age_s", 0.2), 0.0, 3600.0))


def _lock(fields: dict[str, Any]) -> Request:
    if "set" in fields:
        clocks = _by_gpu("set", fields.pop("set"), lambda name, value: None if value is None else _mhz(name, value))
        return SetScheduled(_owner(fields), _epoch(fields), clocks)
    if "schedule" in fields:
        gpus = _uuids(fields.pop("schedule"))
        within = fields.pop("clocks_mhz", None)
        return Schedule(_lease(fields), gpus, None if within is None else _range(within))
    holds = _by_gpu("gpus", fields.pop("gpus", None), _hold)
    return Lock(_lease(fields), holds)


def _limit_power(fields: dict[str, Any]) -> LimitPower:
    limits = _by_gpu("gpus", fields.pop("gpus", None), _watts_of)
    return LimitPower(_lease(fields), limits)


def _reset(fields: dict[str, Any]) -> Reset:
    gpus = _uuids(fields.pop("gpus")) if fields.get("gpus") is not None else fields.pop("gpus", None)
    owner = _owner(fields) if fields.get("owner") is not None else fields.pop("owner", None)
    return Reset(owner, gpus, _why(fields))


_PARSERS: Mapping[str, Callable[[dict[str, Any]], Request]] = {
    "read": _read,
    "lock": _lock,
    "limit_power": _limit_power,
    "reset": _reset,
}


def _lease(fields: dict[str, Any]) -> Lease:
    only = fields.pop("only", False)
    if not isinstance(only, bool):
        raise _bad(f"only must be true or false, got {_shown(only)}")
    ttl_s = _number("ttl_s", fields.pop("ttl_s", None), 0.0, math.inf)
    return Lease(_owner(fields), _epoch(fields), ttl_s, _why(fields), only)


def _owner(fields: dict[str, Any]) -> str:
    owner = fields.pop("owner", None)
    if not (isinstance(owner, str) and OWNER.match(owner)):
        raise _bad(f"owner must be 1 to 128 letters, digits or :./@#_-, got {_shown(owner)}")
    return owner


def _epoch(fields: dict[str, Any]) -> int:
    epoch = fields.pop("epoch", 0)
    if not isinstance(epoch, int) or isinstance(epoch, bool) or not 0 <= epoch < 1 << 63:
        raise _bad(f"epoch must be a whole number from 0, got {_shown(epoch)}")
    return epoch


def _why(fields: dict[str, Any]) -> str:
    why = fields.pop("why", "")
    if not _is_text(why, MOST_WHY):
        raise _bad(f"why must be a text of at most {MOST_WHY} characters")
    return str(why)


def _uuids(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or len(value) > MOST_GPUS:
        raise _bad(f"GPUs must be a list of 1 to {MOST_GPUS} UUIDs, got {_shown(value)}")
    for uuid in value:
        if not _is_text(uuid, 96):
            raise _bad(f"a GPU is named by its UUID, got {_shown(uuid)}")
    return tuple(dict.fromkeys(value))


def _by_gpu(field: str, value: Any, parse: Callable[[str, Any], Any]) -> dict[str, Any]:
    if not isinstance(value, dict) or len(value) > MOST_GPUS:
        raise _bad(f"{field} must be an object of at most {MOST_GPUS} GPUs by UUID, got {_shown(value)}")
    return {uuid: parse(f"{field}.{uuid[:96]}", given) for uuid, given in value.items()}


def _hold(name: str, value: Any) -> Hold:
    if not isinstance(value, dict) or value.keys() - {"max_mhz", "power_w"}:
        raise _bad(f"{name} must be an object of max_mhz and power_w, got {_shown(value)}")
    max_mhz, power_w = value.get("max_mhz"), value.get("power_w")
    return Hold(
        None if max_mhz is None else _mhz(f"{name}.max_mhz", max_mhz),
        None if power_w is None else _watts(f"{name}.power_w", power_w),
    )


def _watts_of(name: str, value: Any) -> float:
    if not isinstance(value, dict) or value.keys() != {"power_w"}:
        raise _bad(f"{name} must be an object of power_w alone, got {_shown(value)}")
    return _watts(f"{name}.power_w", value["power_w"])


def _range(value: Any) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2:
        raise _bad(f"clocks_mhz must be two clocks, the lowest and the highest, got {_shown(value)}")
    low, high = _mhz("clocks_mhz[0]", value[0]), _mhz("clocks_mhz[1]", value[1])
    if low > high:
        raise RefusedError(ErrorKind.OUT_OF_BOUNDS, f"clocks_mhz: {low} MHz is above {high} MHz")
    return low, high


def _mhz(name: str, value: Any) -> int:
    number = _number(name, value, 0.0, MOST_MHZ)
    if number != math.floor(number):
        raise RefusedError(ErrorKind.OUT_OF_BOUNDS, f"{name} must be a whole number of MHz, got {_shown(value)}")
    return int(number)


def _watts(name: str, value: Any) -> float:
    return _number(name, value, 0.0, 100_000.0)


def _number(name: str, value: Any, low: float, high: float) -> float:
    """Finite, and within ``low`` and ``high``."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _bad(f"{name} must be a number, got {_shown(value)}")
    if isinstance(value, int) and abs(value) > 1 << 53:
        raise RefusedError(ErrorKind.OUT_OF_BOUNDS, f"{name} is out of range")
    if not (math.isfinite(value) and low <= value <= high):
        raise RefusedError(ErrorKind.OUT_OF_BOUNDS, f"{name} must be from {low:g} to {high:g}, got {_shown(value)}")
    return float(value)


def _is_text(value: Any, most: int) -> bool:
    return isinstance(value, str) and len(value) <= most and (value == "" or value.isprintable())


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


_DECODER = json.JSONDecoder(parse_constant=_no_number)


def _shown(value: Any) -> str:
    return ascii(value)[:80]


def _bad(message: str) -> RefusedError:
    return RefusedError(ErrorKind.BAD_REQUEST, message)
