"""What gpud tells of its GPUs: one row each, with the age of what is in it; a lost GPU is a row without readings."""

import asyncio
import time
from typing import Any

from control_plane.leases import Hold
from control_plane.ports import GpuError
from gpud.card import Card
from gpud.guard import Guard, owner_name
from gpud.requests import Read

_READINGS = (
    "clock_mhz",
    "power_w",
    "average_power_w",
    "temperature_c",
    "utilisation_ratio",
    "power_limit_w",
    "events",
    "age_s",
    "energy",
)


async def rows(guard: Guard, request: Read) -> list[dict[str, Any]]:
    """Of the GPUs asked for, those that there are. A GPU whose driver does not answer shows what was seen last."""
    cards = [card for uuid, card in guard.cards.items() if request.gpus is None or uuid in request.gpus]
    return list(await asyncio.gather(*(_row(guard, card, request.max_age_s) for card in cards)))


async def _row(guard: Guard, card: Card, max_age_s: float) -> dict[str, Any]:
    why = None
    try:
        await guard.executor.look(card, max_age_s)
    except GpuError as error:
        why = str(error)
    return {
        "uuid": card.uuid,
        "name": None if card.facts is None else card.facts.name,
        **_state(card, why),
        **_facts(card),
        **_seen(card),
        **_lease(guard, card),
    }


def _state(card: Card, why: str | None) -> dict[str, Any]:
    if card.lost is not None:
        return {"state": "lost", "why": card.lost}
    if why is not None or card.last is None:
        return {"state": "silent", "why": why or "its driver has not answered yet"}
    if card.last.not_ours is not None:
        return {"state": "not ours", "why": card.last.not_ours}
    if card.denied is not None:
        return {"state": "watched only", "why": card.denied}
    return {"state": "ok", "why": None}


def _facts(card: Card) -> dict[str, Any]:
    facts = card.facts
    if facts is None:
        return {"clocks_mhz": [], "limits_w": None, "features": []}
    return {
        "clocks_mhz": list(facts.clocks_mhz),
        "limits_w": facts.limits_w,
        "features": sorted(facts.features),
    }


def _seen(card: Card) -> dict[str, Any]:
    look = None if card.lost is not None else card.last
    if look is None:
        return dict.fromkeys(_READINGS)
    sample, energy = look.sample, look.energy
    return {
        "clock_mhz": sample.freq_mhz,
        "power_w": sample.power_w,
        "average_power_w": sample.average_power_w,
        "temperature_c": sample.temperature_c,
        "utilisation_ratio": sample.utilisation_ratio,
        "power_limit_w": sample.power_limit_w,
        "events": None if sample.events is None else sorted(sample.events),
        "age_s": round(time.monotonic() - look.at_s, 4),
        "energy": {
            "total_j": round(energy.total_j, 3),
            "source": energy.source,
            "epoch": energy.epoch,
            "counter_j": energy.counter_j,
            "read_at_s": look.energy_at_s,
            "disagreement_ratio": energy.disagreement_ratio,
        },
    }


def _lease(guard: Guard, card: Card) -> dict[str, Any]:
    lease = guard.book.lease(card.uuid)
    held = card.in_force or Hold()
    return {
        "max_mhz": held.freq_mhz,
        "held_power_w": held.power_w,
        "verdict": card.verdict if lease is not None else None,
        "owes_a_reset": card.owes_a_reset,
        "lease": None
        if lease is None
        else {
            "owner": owner_name(lease.owner),
            "schedule": lease.hold is None,
            "expires_in_s": round(lease.expires_s - time.monotonic(), 3),
            "age_s": round(time.monotonic() - lease.renewed_s, 3),
        },
    }
