"""What a replay measured, as numbers: counts, attainment and percentiles by the client's own clock."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from control_plane.domain import Slo
from wattray.load_generator import Sent


def replay_results(sent: Sequence[Sent], slo: Slo, metered_j: float | None) -> dict[str, Any]:
    """``metered_j`` is what all serving GPUs used meanwhile, idle ones too; without it the answers' own shares are
    added up, which leave idle GPUs out. A failed request missed its SLO."""
    whole = [one for one in sent if one.error is None]
    shares_j = [one.energy_j for one in whole if one.energy_j is not None]
    energy_j = metered_j if metered_j is not None else sum(shares_j) if shares_j else None
    ttft_s, tbt_s = [one.ttft_s for one in whole], [one.mean_tbt_s for one in whole if one.tokens > 1]
    return {
        "sent": len(sent),
        "completed": len(whole),
        "failed": len(sent) - len(whole),
        "slo_attainment": sum(one.met(slo) for one in sent) / len(sent),
        "ttft_p50_s": _percentile(ttft_s, 50),
        "ttft_p99_s": _percentile(ttft_s, 99),
        "tbt_p50_s": _percentile(tbt_s, 50),
        "tbt_p99_s": _percentile(tbt_s, 99),
        "energy_j": energy_j,
        "energy_source": None if energy_j is None else "meters" if metered_j is not None else "answers",
        "output_tokens": sum(one.tokens for one in whole),
        "lasted_s": max((one.finished_s for one in whole), default=0.0),
        "errors": sorted({one.error for one in sent if one.error is not None})[:10],
    }


def _percentile(values: Sequence[float], share: float) -> float | None:
    return float(np.percentile(values, share)) if values else None
