"""Who used how much: requests, tokens and energy by tenant, since the router started."""

from dataclasses import dataclass

from actors.messages import TenantUsage

MOST_TENANTS = 10_000
OTHERS = "others"
"""Tenants beyond the first ten thousand together: a client that makes names up must not fill the memory."""


@dataclass(frozen=True, slots=True)
class Used:
    """One request that has ended."""

    tenant: str
    input_tokens: int
    output_tokens: int
    energy_j: float | None
    """None where the replica could not be metered."""


class UsageLedger:
    def __init__(self) -> None:
        self._by_tenant: dict[str, TenantUsage] = {}

    def add(self, used: Used) -> None:
        tenant = used.tenant
        if tenant not in self._by_tenant and len(self._by_tenant) >= MOST_TENANTS:
            tenant = OTHERS
        before = self._by_tenant.get(tenant, TenantUsage())
        self._by_tenant[tenant] = before + TenantUsage(
            1, used.input_tokens, used.output_tokens, used.energy_j or 0.0, int(used.energy_j is None)
        )

    def by_tenant(self) -> dict[str, TenantUsage]:
        return dict(self._by_tenant)
