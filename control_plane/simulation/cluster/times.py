"""How long changes of a cluster take, and which of its nodes fail."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NodeFailure:
    """A node of eight GPUs dies with everything on it and comes back empty."""

    at_s: float
    node: int
    down_s: float = 3600.0


@dataclass(frozen=True, slots=True)
class ClusterTimes:
    """How long changes take. A new replica on a node where another has loaded the
    model finds the weights in host memory."""

    cold_start_s: float = 0.0
    weights_here_start_s: float = 0.0
    kv_link_bytes_per_s: float = 50e9
    """Of one replica between nodes: one 400 Gb/s adapter."""
    kv_node_bytes_per_s: float = 450e9
    """Of one replica inside a node: NVLink of an H100, one direction (data sheet)."""
    kv_latency_s: float = 0.002
    kv_bytes_per_token: float = 327_680.0
    """Llama2-70B: 80 layers, 8 KV heads of 128, keys and values, two bytes."""
    kv_layers: int = 80
    kv_streamed: bool = False
    """Each layer's cache is sent as soon as it is computed: only the last one's is left when a prefill ends, where
    the link was free meanwhile. Engines with layer-wise connectors do this."""

    def __post_init__(self) -> None:
        for name in ("cold_start_s", "weights_here_start_s", "kv_latency_s", "kv_bytes_per_token"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more and finite, got {getattr(self, name)}")
        for name in ("kv_link_bytes_per_s", "kv_node_bytes_per_s", "kv_layers"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be more than 0, got {getattr(self, name)}")

    @classmethod
    def for_startup(cls, startup_s: float) -> "ClusterTimes":
        """Of a cold start's 6-8 minutes, engine set-up and loading take 33 s (DynamoLLM Table V): all that is left
        where the weights are on the node."""
        return cls(startup_s, min(startup_s, 33.0))
