"""`wattray advise`: what control would have saved while it only recommended, from the pools' status."""

from dataclasses import asdict
from functools import reduce
from operator import add
from typing import Any

from actors.messages import ControlPlaneStatus
from control_plane.serving.advice import Advice
from control_plane.simulation.monthly import J_PER_KWH

TOO_SHORT_S = 600.0
"""Less than this is told, and called short."""


def total(now: ControlPlaneStatus) -> Advice:
    """Over all pools."""
    return reduce(add, (pool.advice for pool in now.pools if pool.advice is not None), Advice())


def advice_json(now: ControlPlaneStatus, tariff: float | None) -> dict[str, Any]:
    """Joules and seconds; ``low`` and ``high`` are two standard deviations below and above, ``saved_cost`` is in the
    tariff's currency."""
    whole = total(now)
    return {
        "control": now.control,
        **asdict(whole),
        "saved_low_j": whole.saved_j - 2 * whole.error_j,
        "saved_high_j": whole.saved_j + 2 * whole.error_j,
        "saved_ratio": whole.saved_j / whole.used_j if whole.used_j > 0 else None,
        "saved_cost": None if tariff is None else whole.saved_j / J_PER_KWH * tariff,
        "pools": {str(pool.pool): asdict(pool.advice) for pool in now.pools if pool.advice is not None},
        "missing": list(now.missing),
    }


def advice_told(now: ControlPlaneStatus, tariff: float | None = None) -> list[str]:
    """Lines for people."""
    whole = total(now)
    if now.control != "recommend":
        return [f"control: {now.control}; advice is counted where gpu.control is recommend"]
    if whole.used_j <= 0:
        return ["nothing to advise on yet: no replica has been watched for two looks"]
    share, error = whole.saved_j / whole.used_j, 2 * whole.error_j / whole.used_j
    saves = "would have saved" if whole.saved_j >= 0 else "would have cost"
    money = "" if tariff is None else f", {abs(whole.saved_j) / J_PER_KWH * tariff:,.2f} at {tariff:g} per kWh"
    told = [
        f"control {saves} {abs(share):.1%} (from {share - error:.1%} to {share + error:.1%}) of "
        f"{whole.used_j / J_PER_KWH:,.3f} kWh in {whole.watched_s / 3600:.2f} h: "
        f"{abs(whole.saved_j) / J_PER_KWH:,.3f} kWh{money}",
        f"clocks alone: {whole.saved_by_clocks_j / whole.used_j:.1%}",
        f"power was measured for {whole.measured_s / whole.replica_s:.0%} of the replicas' time; the rest, and what "
        "the wished fleet would have drawn, is the energy profile's",
    ]
    if whole.overloaded_s > 0:
        told.append(f"in {whole.overloaded_s / whole.watched_s:.0%} of it the wished fleet was too small; none counts")
    if whole.watched_s < TOO_SHORT_S:
        told.append(f"{whole.watched_s:.0f} s are short: loads of a day differ")
    if now.missing:
        told.append(f"left out, they do not answer: {', '.join(now.missing)}")
    return told
