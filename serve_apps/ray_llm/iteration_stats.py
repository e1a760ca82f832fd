"""What vLLM's scheduler says after every iteration, as a stat logger plugin (entry point ``vllm.stat_logger_plugins``):
installed with wattray, it runs in every process that has a vLLM engine, and keeps the last word for a replica here.
"""

import time
from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase

from serve_apps.ray_llm.scheduler_view import SchedulerView, tell


class IterationStats(StatLoggerBase):
    """Never raises: an engine must not fail for its watcher."""

    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
        del vllm_config
        self._engine_index = engine_index

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
    ) -> None:
        """Fields that another version of vLLM does not have count as 0."""
        del mm_cache_stats, iteration_stats
        if scheduler_stats is not None:
            view = SchedulerView(
                time.monotonic(),
                int(getattr(scheduler_stats, "num_waiting_reqs", 0)),
                int(getattr(scheduler_stats, "num_running_reqs", 0)),
                float(getattr(scheduler_stats, "kv_cache_usage", 0.0)),
            )
            tell(engine_idx, view)

    def log_engine_initialized(self) -> None:
        return
