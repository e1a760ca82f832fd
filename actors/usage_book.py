"""Who used how much, over the life of a control plane: every router's own account, added up."""

import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from actors.messages import TenantUsage

log = logging.getLogger(__name__)

WRITE_S = 10.0
"""At most so often to the file: what a router that has ended told last may be lost with a manager that is killed."""


class UsageBook:
    """A router tells all that was used since it started, under a name of its own, so telling twice does no harm."""

    def __init__(self, file: Path | None, clock_s: Callable[[], float]) -> None:
        """Takes up what ``file`` holds; an unreadable one is told in the log and written anew."""
        self._file, self._clock_s = file, clock_s
        self._by_router: dict[str, dict[str, TenantUsage]] = {}
        self._written_s = clock_s()
        if file is not None and file.exists():
            try:
                kept = json.loads(file.read_text())
                self._by_router = {
                    router: {tenant: TenantUsage(**used) for tenant, used in tenants.items()}
                    for router, tenants in kept.items()
                }
            except (OSError, ValueError, TypeError, AttributeError) as error:
                log.error("%s cannot be read, usage before now is not known: %s", file, error)

    def used(self, router: str, by_tenant: dict[str, TenantUsage]) -> None:
        self._by_router[router] = by_tenant
        if self._file is not None and self._clock_s() - self._written_s >= WRITE_S:
            self._written_s = self._clock_s()
            self._write(self._file)

    def by_tenant(self) -> dict[str, TenantUsage]:
        total: dict[str, TenantUsage] = {}
        for tenants in self._by_router.values():
            for tenant, used in tenants.items():
                total[tenant] = total.get(tenant, TenantUsage()) + used
        return total

    def _write(self, file: Path) -> None:
        draft = file.with_suffix(".draft")
        kept = {
            router: {tenant: asdict(used) for tenant, used in tenants.items()}
            for router, tenants in self._by_router.items()
        }
        try:
            draft.write_text(json.dumps(kept))
            draft.replace(file)
        except OSError as error:
            log.error("usage is not kept: %s", error)
