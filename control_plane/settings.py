"""Every setting in one frozen tree, each with its unit and a why for its default; unknown keys are refused.

Read once at the edge; each policy is handed its own part.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from control_plane.domain import InputClass, PoolName, Slo
from control_plane.field_errors import explain

LEASE_TICKS = 2
"""A lease outlives this many renewals at the least."""
LARGEST_BODY_BYTES = 16 * 1024 * 1024
"""What Ray Serve's proxy lets pass at all: it and the router hold a body in memory at once."""


class SettingsError(ValueError):
    """A setting is unknown or out of range; the message names the field, the value and the fix."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SloSettings(_Part):
    """Limits in seconds; DynamoLLM Table II."""

    ttft_short_s: float = Field(0.250, gt=0)
    ttft_medium_s: float = Field(0.400, gt=0)
    ttft_long_s: float = Field(2.000, gt=0)
    tbt_s: float = Field(0.100, gt=0)

    def slo(self) -> Slo:
        return Slo(self.ttft_short_s, self.ttft_medium_s, self.ttft_long_s, self.tbt_s)


class PoolSettings(_Part):
    """One pool of replicas and the input classes it serves."""

    name: str = Field(pattern=r"^[a-z][a-z0-9-]{0,30}$")
    input_classes: tuple[InputClass, ...] = Field(min_length=1)
    spill_to: str | None = None
    """Where requests go when this pool has no room: the next higher-performance pool."""

    @property
    def pool(self) -> PoolName:
        return PoolName(self.name)


class CadenceSettings(_Part):
    """Slow, costly decisions rarely; quick, cheap ones often (DynamoLLM section IV)."""

    cluster_s: float = Field(1800.0, gt=0)
    pool_s: float = Field(300.0, gt=0)
    frequency_s: float = Field(5.0, gt=0)


class FrequencySettings(_Part):
    """When to lower a clock and when to go to full clock."""

    headroom_ratio: float = Field(0.30, ge=0)
    """Load is taken this much higher than seen: arrivals are noisy over seconds."""
    urgent_wait_ratio: float = Field(0.3, gt=0)
    """A first token waited for longer than this share of its TTFT limit puts the replica at full clock."""
    dwell_s: float = Field(4.0, ge=0)
    """A clock is lowered only after this long at the higher one; raised at once."""


class ShardingSettings(_Part):
    """When replicas and tensor parallelism change."""

    headroom_ratio: float = Field(0.20, ge=0)
    min_replicas: int = Field(1, ge=1)
    scale_down_hold_s: float = Field(600.0, ge=0)
    """Fewer or smaller replicas only once that has been enough for this long."""
    startup_s: float = Field(420.0, ge=0)
    """Time to a new replica; 6-8 minutes cold (DynamoLLM Table V). Charged before a reconfiguration pays off."""


class ForecastSettings(_Part):
    """Load forecast from arrivals."""

    method: Literal["window", "portfolio"] = "window"
    """`portfolio`: forecasts that compete (docs/forecast.md). It plans for the busiest of the next bins instead of the
    busiest of the last `peak_hold_s`, once it has seen enough of them."""
    portfolio_bin_s: float = Field(300.0, gt=0)
    portfolio_bins: int = Field(6, ge=1)
    """How far ahead the portfolio looks: half an hour, what the cluster is planned for."""
    portfolio_quantile: float = Field(0.9, ge=0.5, lt=1)
    """The share of cases in which the load should stay below the portfolio's upper bound."""
    bin_s: float = Field(15.0, gt=0)
    """A rise is seen within one bin."""
    window_bins: int = Field(12, ge=1)
    """The window whose mean is predicted on: three minutes follow a load curve and average out bursts.
    (Both chosen on the Azure 2023 conversation hour: SLO held by 99.9 % instead of 99.7 %, 3 % more energy.)"""
    peak_hold_s: float = Field(900.0, ge=0)
    """The busiest bin of this long ago is still planned for: bursts come back, and a replica takes minutes to start."""
    quantile_z: float = Field(1.3, ge=0)
    """Upper bound in standard deviations of a Poisson count: 1.3 is about the 90th percentile."""
    max_growth_ratio: float = Field(3.0, ge=1)
    """A forecast is never above this many times the highest load seen."""


class GpuSettings(_Part):
    """The GPUs and who may set their clocks."""

    count: int = Field(32, ge=1)
    driver: Literal["simulated", "nvml"] = "simulated"
    """`nvml`: NVIDIA's GPUs."""
    control: Literal["recommend", "act"] = "act"
    """`recommend` computes and logs every clock but sets none. It is the default on real GPUs: whoever wants their
    clocks set says so."""
    lease_ttl_s: float = Field(15.0, gt=0)
    """A lowered clock whose owner has been silent this long is reset."""
    gpud: bool = False
    """Whether clocks are set by gpud, a process of its own that outlives its clients, or by the node's agent. It is
    always so on real GPUs whose clocks are set."""
    gpud_socket: str | None = None
    """Of the node's gpud; default: /run/wattray/gpud.sock where one is there, else the agent starts one of its own."""

    @model_validator(mode="before")
    @classmethod
    def _careful_with_real_gpus(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and given.get("driver") == "nvml":
            return {"control": "recommend", "gpud": True, **given}
        return given

    @model_validator(mode="after")
    def _real_clocks_are_set_by_gpud(self) -> "GpuSettings":
        if self.driver == "nvml" and self.control == "act" and not self.gpud:
            raise ValueError(
                "gpu.gpud false with gpu.driver nvml and gpu.control act: an agent that is killed would leave real "
                "clocks lowered; leave gpu.gpud out, or set gpu.control to recommend"
            )
        return self


class TrainingSettings(_Part):
    """The training half."""

    gpus: int = Field(0, ge=0)
    """GPUs of one node kept for training jobs; serving plans with the others."""


KEPT_VLLM_ARGS = {
    "model": "set serve.model_path",
    "tokenizer": "the tokenizer is serve.model_path's",
    "skip_tokenizer_init": "the router and the replicas have the tokenizer",
    "tensor_parallel_size": "plans choose it among the profile's",
    "pipeline_parallel_size": "a replica is one stage",
    "data_parallel_size": "replicas are plans' to count",
    "scheduling_policy": "prompts are begun in the order in which their first tokens are due",
    "disable_log_stats": "its scheduler's statistics are read",
    "distributed_executor_backend": "Ray gives a replica its GPUs",
}
"""Fields of vLLM's arguments that the settings do not pass on, and why or what to set."""


class ServeSettings(_Part):
    """The HTTP side."""

    host: str = "127.0.0.1"
    """Any other than a loopback address needs Ray's token mode and an API key."""
    api_key_file: str | None = None
    """A file whose content clients must send as `Authorization: Bearer KEY`."""
    port: int = Field(8000, ge=1, le=65535)
    admin_port: int | None = Field(None, ge=1, le=65535)
    """Of the status page, on loopback only; default: the one after `port`, or any free one where that is taken."""
    model_name: str = "llama2-70b"
    engine: Literal["simulated", "transformers", "vllm"] = "simulated"
    """The inference engine of every replica; docs/engines.md tells which when."""
    model_path: str | None = None
    """The folder of a Hugging Face model with its `tokenizer.json`, on every node. Without one the engines that run
    models serve a small one with random weights: nothing is downloaded."""
    vllm_args: dict[str, Any] = {}
    """Fields of vLLM's AsyncEngineArgs for the vllm engine, as `gpu_memory_utilization` or `quantization`."""
    kv_cache_tokens: int = Field(65_536, ge=1024)
    """Tokens in the KV cache of a transformers replica: 128 MiB of the small model, 8 GiB of Llama 3 8B. vLLM takes
    what its `gpu_memory_utilization` leaves."""
    stream_interval_s: float = Field(0.25, ge=0)
    """Tokens of a stream are sent together this often (the first at once), as vLLM's stream interval does; 0 sends
    them after every iteration."""
    max_prompt_tokens: int = Field(32_768, ge=1)
    """Longer prompts are refused. The longest of the Azure 2023 traces has 14,050 tokens; with the longest answer this
    still fits the KV cache of the smallest replica of the default profile (48,522 tokens)."""
    max_output_tokens: int = Field(4096, ge=1)
    """The most that `max_tokens` may ask for. A replica that drains waits for its longest answer at the TBT limit:
    4,096 tokens at 0.1 s take 410 s. The longest answer of the Azure 2023 traces has 1,899 tokens."""
    max_body_bytes: int = Field(1_048_576, ge=1024, le=LARGEST_BODY_BYTES)
    """A larger request is refused before it is read: 32 bytes for each of 32,768 prompt tokens, where English text
    takes about 4 and escaped Chinese 12."""
    max_waiting_requests: int = Field(2048, ge=1)
    """While so many wait for their first token, further ones are answered with 429 at once: a queue that only grows
    helps nobody."""
    overhead_s: float = Field(0.030, ge=0)
    """Time to first token that network, router and event loops add to the engine's: plans leave room for it."""
    warm_start: bool = True
    """Simulated replicas are ready at once; false takes `sharding.startup_s`."""

    @model_validator(mode="after")
    def _a_model_needs_an_engine_that_runs_it(self) -> "ServeSettings":
        if self.engine == "simulated" and self.model_path is not None:
            raise ValueError(
                f"serve.model_path {self.model_path!r} with serve.engine simulated, which runs no model; "
                "set serve.engine to vllm or transformers, or leave serve.model_path out"
            )
        if self.engine != "vllm" and self.vllm_args:
            raise ValueError(f"serve.vllm_args with serve.engine {self.engine}; set serve.engine to vllm")
        for name in self.vllm_args.keys() & KEPT_VLLM_ARGS.keys():
            raise ValueError(f"serve.vllm_args.{name} is not passed on: {KEPT_VLLM_ARGS[name]}")
        return self


class Settings(_Part):
    """All of wattray's settings."""

    policy: str = "wattray"
    """Serving policy by name, see ``control_plane.serving.policies.registry``."""
    phases: Literal["auto", "together"] = "auto"
    """`auto` lets a policy run prefill and decode on different replicas where engines hand KV caches over."""
    lengths: Literal["table", "learned"] = "table"
    """How output lengths are predicted: `table`, the mean by input class; `learned`, quantiles by tenant, application
    and input tokens (docs/forecast.md), fitted in the router's process beside its loop."""
    profile: str = "llama2-70b-h100"
    """Energy profile by name (`wattray profile list` shows them), or a profile file's path or its text."""
    profile_correction: bool = True
    """Let plans follow what replicas measure, slowly and within bounds, where the profile is off."""
    slo: SloSettings = SloSettings()
    pools: tuple[PoolSettings, ...] = (
        PoolSettings(name="short-medium", input_classes=(InputClass.SHORT, InputClass.MEDIUM), spill_to="long"),
        PoolSettings(name="long", input_classes=(InputClass.LONG,), spill_to="short-medium"),
    )
    """Below about 40 servers nine pools cost more than one, so types are merged by TTFT limit."""
    cadence: CadenceSettings = CadenceSettings()
    frequency: FrequencySettings = FrequencySettings()
    sharding: ShardingSettings = ShardingSettings()
    forecast: ForecastSettings = ForecastSettings()
    gpu: GpuSettings = GpuSettings()
    training: TrainingSettings = TrainingSettings()
    serve: ServeSettings = ServeSettings()

    @model_validator(mode="after")
    def _pools_cover_every_class_once(self) -> "Settings":
        if self.serve.overhead_s >= min(self.slo.ttft_short_s, self.slo.ttft_medium_s, self.slo.ttft_long_s):
            raise ValueError(f"serve.overhead_s {self.serve.overhead_s} leaves nothing of the tightest TTFT limit")
        if self.gpu.lease_ttl_s < LEASE_TICKS * self.cadence.frequency_s:
            raise ValueError(
                f"gpu.lease_ttl_s {self.gpu.lease_ttl_s} is too short: leases are renewed every cadence.frequency_s "
                f"({self.cadence.frequency_s} s) and must outlive a missed renewal, so at least "
                f"{LEASE_TICKS * self.cadence.frequency_s} s"
            )
        if self.training.gpus >= self.gpu.count:
            raise ValueError(f"training.gpus {self.training.gpus} leaves serving none of {self.gpu.count} GPUs")
        names = [pool.name for pool in self.pools]
        if len(set(names)) != len(names):
            raise ValueError(f"pool names must differ, got {names}")
        served = [cls for pool in self.pools for cls in pool.input_classes]
        if sorted(served) != sorted(InputClass):
            raise ValueError(f"pools must serve each of S, M, L exactly once, got {[str(c.value) for c in served]}")
        for pool in self.pools:
            if pool.spill_to is not None and (pool.spill_to not in names or pool.spill_to == pool.name):
                raise ValueError(f"pool {pool.name!r} spills to {pool.spill_to!r}; other pools are {names}")
        return self

    @property
    def serving_gpus(self) -> int:
        """GPUs that serving may plan with."""
        return self.gpu.count - self.training.gpus

    def planning_slo(self) -> Slo:
        """The limits that plans must hold inside the engine: the client's, less the overhead on the way."""
        room_s = self.serve.overhead_s
        slo = self.slo
        return Slo(slo.ttft_short_s - room_s, slo.ttft_medium_s - room_s, slo.ttft_long_s - room_s, slo.tbt_s)

    @property
    def drain_s(self) -> float:
        """How long a draining replica may take: the longest answer at the TBT limit, begun at the TTFT limit."""
        return self.serve.max_output_tokens * self.slo.tbt_s + self.slo.ttft_long_s

    def pool_of(self, input_class: InputClass) -> PoolName:
        return next(pool.pool for pool in self.pools if input_class in pool.input_classes)

    def pool_settings(self, pool: PoolName) -> PoolSettings:
        return next(settings for settings in self.pools if settings.pool == pool)


def parse_settings(values: Mapping[str, Any], source: str = "settings") -> Settings:
    """Settings from a mapping (a YAML file's content). Raises SettingsError naming ``source`` and the field."""
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        told = [explain(Settings, source, dict(item), "setting") for item in error.errors()]
        raise SettingsError("\n".join(told)) from None
