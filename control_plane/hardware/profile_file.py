"""A user's own profile: measured iterations by tokens for every shape, as versioned JSON or YAML text.

Between its points a profile interpolates; beyond them it refuses. Errors name the source, the line and the field.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from control_plane.domain import Slo
from control_plane.hardware.energy_profile import activity_of
from control_plane.hardware.gpu_model import H100_SXM, Activity, GpuSpec
from control_plane.hardware.iteration_tables import Floats, IterationTables
from control_plane.hardware.machine_profile import Evidence, MachineProfile
from control_plane.hardware.replica_model import ReplicaLimits
from control_plane.settings import SloSettings
from control_plane.text_edges import parse_json, parse_yaml

NAME = r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,60}$"
"""What a profile may be called."""
SCHEMA: Literal["wattray-profile/1"] = "wattray-profile/1"

POWER_TOLERANCE = 0.10
"""Measured powers may lie this far from memory + SM power x a share per clock, which is how GPUs are simulated."""


class ProfileError(ValueError):
    """A profile is unknown or its file cannot be used; the message names the source, the line and the field."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Tokens = Annotated[int, Field(ge=1, le=10_000_000)]
"""More than any model's context: tables have a row for each."""
Requests = Annotated[int, Field(ge=1, le=100_000)]
Clock = Annotated[int, Field(ge=1, le=100_000)]
Parallelism = Annotated[int, Field(ge=1, le=1024)]
LEAST_ITERATION_MS = 0.05
"""No engine's iteration is shorter: such a time is in seconds."""


class PointPart(_Part):
    """An iteration over this many tokens, contexts and prefill attention taken off.

    ``power_w`` is of the whole replica at the shape's clock. A model of the GPU's power says instead what one GPU
    draws above its context at the highest clock, power limit left out: ``clocked_w`` follows f·V², ``steady_w`` does
    not.
    """

    tokens: Tokens
    iteration_ms: Annotated[float, Field(gt=0, lt=1e7, allow_inf_nan=False)]
    power_w: Positive | None = None
    steady_w: NotNegative | None = None
    clocked_w: NotNegative | None = None


class ShapePart(_Part):
    """One tensor parallelism at one clock."""

    tp: Parallelism
    freq_mhz: Clock
    attention_ps_per_pair: NotNegative = 0.0
    """What a prefill adds for each pair of its tokens."""
    points: Annotated[tuple[PointPart, ...], Field(min_length=2)]


class ReplicaPart(_Part):
    """What a tensor parallelism has at every clock."""

    tp: Parallelism
    kv_tokens: Annotated[int, Field(ge=1, le=10**12)]
    context_ns_per_token: NotNegative = 0.0
    """What every token of the decoders' contexts adds to an iteration."""


class GpuPart(_Part):
    """The GPU. ``mem_w`` and ``sm_w`` stand in where points carry no power; the knee is that of its voltage."""

    name: Annotated[str, Field(min_length=1)]
    idle_w: NotNegative
    context_w: NotNegative
    power_limit_w: Positive
    settle_ms: NotNegative = 50.0
    mem_w: NotNegative = H100_SXM.mem_w
    sm_w: NotNegative = H100_SXM.sm_w
    knee_mhz: Clock | None = None
    knee_voltage_ratio: Annotated[float, Field(gt=0, le=1)] = H100_SXM.knee_voltage_ratio
    sm_shares: tuple[Annotated[float, Field(gt=0, le=1)], ...] | None = None
    """SM power by clock of ``freqs_mhz`` as a share of that at the highest; f·V² where not given."""


class ProfileFile(_Part):
    """The whole file."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=True, validate_by_alias=True)

    schema_: Annotated[Literal["wattray-profile/1"], Field(alias="schema")]
    name: Annotated[str, Field(pattern=NAME)]
    era: str = ""
    source: str = ""
    notes: tuple[str, ...] = ()
    gpu: GpuPart
    slo: SloSettings = SloSettings()
    batch_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = 2048
    batch_requests: Requests = 256
    freqs_mhz: Annotated[tuple[Clock, ...], Field(min_length=1)]
    replicas: Annotated[tuple[ReplicaPart, ...], Field(min_length=1)]
    shapes: Annotated[tuple[ShapePart, ...], Field(min_length=1)]
    measured_batch: Requests | None = None
    measured_input: Tokens | None = None
    measured_freqs_mhz: tuple[Clock, ...] | None = None
    """Clocks at which times were measured; all where not given."""
    errors: Mapping[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = {}
    """What is known of its errors, as ratios by name."""


def parse_profile(text: str, source: str = "profile", slo: Slo | None = None) -> MachineProfile:
    """A profile from a file's text; ``slo`` overrides the file's limits. Raises ProfileError."""
    lines = _Lines(text, source)
    try:
        file = ProfileFile.model_validate(lines.content)
    except ValidationError as error:
        raise ProfileError("\n".join(lines.says(item["loc"], _reason(dict(item))) for item in error.errors())) from None
    faults = [lines.says(where, what) for where, what in _faults(file)]
    if faults:
        raise ProfileError("\n".join(faults))
    return _build(file, lines, slo or file.slo.slo())


def dump_profile(file: ProfileFile) -> str:
    """The file's text, as ``parse_profile`` reads it."""
    return file.model_dump_json(by_alias=True, indent=1, exclude_none=True) + "\n"


Where = tuple[str | int, ...]


class _Lines:
    """The text's content and the line on which each field stands."""

    def __init__(self, text: str, source: str) -> None:
        self._source = source
        text = text.removeprefix("\ufeff")
        if text.lstrip().startswith("{"):
            self.content: Any = parse_json(text, source, ProfileError)
            self._json: str | None = text
            self._node: yaml.Node | None = None
        else:
            self._json = None
            self.content, self._node = parse_yaml(text, source, ProfileError)
        if not isinstance(self.content, Mapping):
            raise ProfileError(f"{source}: line 1: a profile is a mapping that begins with schema: {SCHEMA}")

    def says(self, where: Where, what: str) -> str:
        field = ".".join(str(part) for part in where) or "profile"
        return f"{self._source}: line {self._line(where)}: {field}: {what}"

    def _line(self, where: Where) -> int:
        if self._json is not None and self._node is None:
            self._node = _nodes_of_json(self._json)  # Only a fault needs it, and it takes seconds.
        node, line = self._node, 1
        for part in where:
            if isinstance(node, yaml.MappingNode):
                found = [(key, value) for key, value in node.value if key.value == str(part)]
                if not found:
                    break
                line, node = found[0][0].start_mark.line + 1, found[0][1]
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
                node = node.value[part]
                line = node.start_mark.line + 1
            else:
                break
        return line


def _nodes_of_json(text: str) -> yaml.Node | None:
    """Where each field stands. YAML reads JSON but for tabs; where it cannot, faults name no line but the first."""
    try:
        return yaml.compose(text.replace("\t", " "), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError):
        return None


def _reason(item: dict[str, Any]) -> str:
    if item["type"] == "missing":
        return "is missing"
    if item["type"] == "extra_forbidden":
        return "is not a field of a profile"
    return f"{item['msg']} (got {item['input']!r:.80})"


def _faults(file: ProfileFile) -> Sequence[tuple[Where, str]]:
    """What the schema cannot say: missing shapes, loads that are not monotone, tables that stop too early."""
    faults: list[tuple[Where, str]] = []
    tps = [replica.tp for replica in file.replicas]
    if len(set(tps)) != len(tps):
        faults.append((("replicas",), f"each TP once, got {tps}"))
    if list(file.freqs_mhz) != sorted(set(file.freqs_mhz)):
        faults.append((("freqs_mhz",), f"clocks must be distinct and ascending, got {list(file.freqs_mhz)}"))
    seen: set[tuple[int, int]] = set()
    for index, shape in enumerate(file.shapes):
        key = (shape.tp, shape.freq_mhz)
        if key in seen:
            faults.append((("shapes", index), f"TP{shape.tp}@{shape.freq_mhz} is there twice"))
        if shape.tp not in tps or shape.freq_mhz not in file.freqs_mhz:
            faults.append((("shapes", index), f"TP{shape.tp}@{shape.freq_mhz} is not among replicas and freqs_mhz"))
        seen.add(key)
        faults += _point_faults(file, index, shape)
    missing = [f"TP{tp}@{freq}" for tp in tps for freq in file.freqs_mhz if (tp, freq) not in seen]
    if missing:
        faults.append((("shapes",), f"no measurements of {', '.join(missing)}"))
    points = [point for shape in file.shapes for point in shape.points]
    for field in ("power_w", "steady_w", "clocked_w"):
        if len({getattr(point, field) is None for point in points}) > 1:
            faults.append((("shapes",), f"{field} must be there at every point or at none"))
    first = points[0]
    if (first.steady_w is None) != (first.clocked_w is None):
        faults.append((("shapes",), "steady_w and clocked_w belong together"))
    if first.power_w is not None and first.clocked_w is not None:
        faults.append((("shapes",), "give power_w, or steady_w and clocked_w, not both"))
    if file.gpu.sm_shares is not None and len(file.gpu.sm_shares) != len(file.freqs_mhz):
        told = f"{len(file.gpu.sm_shares)} shares for {len(file.freqs_mhz)} clocks"
        faults.append((("gpu", "sm_shares"), told))
    unknown = sorted(set(file.measured_freqs_mhz or ()) - set(file.freqs_mhz))
    if unknown:
        faults.append((("measured_freqs_mhz",), f"{unknown} MHz are not among freqs_mhz"))
    return faults


def _point_faults(file: ProfileFile, index: int, shape: ShapePart) -> Sequence[tuple[Where, str]]:
    faults: list[tuple[Where, str]] = []
    name = f"TP{shape.tp}@{shape.freq_mhz}"
    for number, point in enumerate(shape.points):
        if point.iteration_ms < LEAST_ITERATION_MS:
            where: Where = ("shapes", index, "points", number, "iteration_ms")
            faults.append(
                (where, f"{name}: {point.iteration_ms:g} ms is shorter than any iteration; is it in seconds?")
            )
    for number, (before, point) in enumerate(zip(shape.points, shape.points[1:], strict=False), start=1):
        where = ("shapes", index, "points", number)
        if point.tokens <= before.tokens:
            faults.append(((*where, "tokens"), f"{name}: {point.tokens} after {before.tokens}: tokens must rise"))
        elif point.iteration_ms < before.iteration_ms:
            fall = f"{before.iteration_ms:g} ms at {before.tokens} tokens, {point.iteration_ms:g} at {point.tokens}"
            faults.append(((*where, "iteration_ms"), f"{name}: not monotone in load: {fall}"))
    last = shape.points[-1].tokens
    if last < file.batch_tokens:
        where = ("shapes", index, "points", len(shape.points) - 1, "tokens")
        faults.append((where, f"{name}: measured to {last} tokens, batch_tokens is {file.batch_tokens}"))
    return faults


def _build(file: ProfileFile, lines: _Lines, slo: Slo) -> MachineProfile:
    limits = {part.tp: ReplicaLimits(part.kv_tokens, file.batch_requests, file.batch_tokens) for part in file.replicas}
    first, notes = file.shapes[0].points[0], file.notes
    if first.clocked_w is not None:
        gpu, activities = _modelled_power(file)
    elif first.power_w is not None:
        gpu, activities = _fitted_power(file, lines)
    else:
        gpu, activities = _assumed_power(file)
        notes = (*notes, f"no power measured: the H100's power curve on {gpu.name}")
    return MachineProfile(
        file.name,
        gpu,
        slo,
        file.freqs_mhz,
        {part.tp: _tables(file, part, activities[part.tp]) for part in file.replicas},
        limits,
        Evidence(
            file.era,
            file.source or "a user's file",
            file.freqs_mhz if file.measured_freqs_mhz is None else file.measured_freqs_mhz,
            file.measured_batch,
            file.measured_input,
            notes,
            file.errors,
        ),
    )


def _tables(file: ProfileFile, part: ReplicaPart, activity: Sequence[Activity]) -> IterationTables:
    shapes = {shape.freq_mhz: shape for shape in file.shapes if shape.tp == part.tp}
    columns = {
        freq: (
            np.array([float(point.tokens) for point in shape.points]),
            np.array([point.iteration_ms / 1e3 for point in shape.points]),
        )
        for freq, shape in shapes.items()
    }

    def seconds(freq_mhz: int, tokens: Floats) -> Floats:
        at, duration_s = columns[freq_mhz]
        slope = (duration_s[-1] - duration_s[-2]) / (at[-1] - at[-2])
        beyond = np.maximum(tokens - at[-1], 0.0) * slope
        result: Floats = np.interp(tokens, at, duration_s) + beyond
        return result

    return IterationTables(
        seconds,
        file.freqs_mhz,
        {freq: shape.attention_ps_per_pair / 1e12 for freq, shape in shapes.items()},
        part.context_ns_per_token / 1e9,
        activity,
    )


Powers = tuple[GpuSpec, Mapping[int, Sequence[Activity]]]


def _assumed_power(file: ProfileFile) -> Powers:
    table = [activity_of(tokens) for tokens in range(_table_length(file))]
    gpu = _spec(file, file.gpu.mem_w, file.gpu.sm_w, None)
    return gpu, {part.tp: table for part in file.replicas}


def _modelled_power(file: ProfileFile) -> Powers:
    """The watts that a model of the GPU gave, at the highest clock of each tensor parallelism."""
    tokens = np.arange(_table_length(file), dtype=np.float64)
    top_mhz, found = file.freqs_mhz[-1], {}
    for part in file.replicas:
        shape = next(shape for shape in file.shapes if (shape.tp, shape.freq_mhz) == (part.tp, top_mhz))
        at = [float(point.tokens) for point in shape.points]
        found[part.tp] = [
            np.interp(tokens, at, [watts or 0.0 for watts in column]).tolist()
            for column in zip(*((point.steady_w, point.clocked_w) for point in shape.points), strict=True)
        ]
    mem_w, sm_w = max(1e-9, file.gpu.mem_w), max(1e-9, file.gpu.sm_w)
    return _spec(file, mem_w, sm_w, file.gpu.sm_shares), {
        tp: [Activity(sm=c / sm_w, mem=s / mem_w) for s, c in zip(steady, clocked, strict=True)]
        for tp, (steady, clocked) in found.items()
    }


def _fitted_power(file: ProfileFile, lines: _Lines) -> Powers:
    """Memory and SM watts by tokens and a share of SM power by clock, nearest to the measured powers."""
    tokens = np.arange(_table_length(file), dtype=np.float64)
    drawn = {part.tp: _drawn_w(file, part.tp, tokens) for part in file.replicas}
    stacked = np.concatenate(list(drawn.values()), axis=1)
    memory, sm, shares = _split(stacked, np.array([_physical_share(freq, file) for freq in file.freqs_mhz]))
    modelled = memory + shares[:, None] * sm
    context_w = file.gpu.context_w
    apart = np.abs((modelled + context_w) / (stacked + context_w) - 1)
    if apart.max() > POWER_TOLERANCE:
        clock, at = np.unravel_index(int(apart.argmax()), apart.shape)
        tp = file.replicas[int(at) // len(tokens)].tp
        found = f"TP{tp}@{file.freqs_mhz[int(clock)]} at {int(at) % len(tokens)} tokens is {apart.max():.0%} off"
        raise ProfileError(
            lines.says(("shapes",), f"power_w does not follow memory + SM power x a share per clock: {found}")
        )
    mem_w, sm_w = max(1e-9, float(memory.max())), max(1e-9, float(sm.max()))
    gpu = _spec(file, mem_w, sm_w, tuple(float(share) for share in shares))
    activities = {}
    for number, part in enumerate(file.replicas):
        own = slice(number * len(tokens), (number + 1) * len(tokens))
        pairs = zip(sm[own], memory[own], strict=True)
        activities[part.tp] = [Activity(sm=float(s) / sm_w, mem=float(m) / mem_w) for s, m in pairs]
    return gpu, activities


def _drawn_w(file: ProfileFile, tp: int, tokens: Floats) -> Floats:
    """Watts of a GPU above its context, by clock and tokens."""
    rows = []
    for freq in file.freqs_mhz:
        shape = next(shape for shape in file.shapes if (shape.tp, shape.freq_mhz) == (tp, freq))
        at = [float(point.tokens) for point in shape.points]
        watts = [(point.power_w or 0.0) / tp - file.gpu.context_w for point in shape.points]
        rows.append(np.interp(tokens, at, watts))
    return np.maximum(np.array(rows), 0.0)


def _split(drawn_w: Floats, shares: Floats) -> tuple[Floats, Floats, Floats]:
    """Alternating least squares: watts for the shares, shares for the watts; 1 at the highest clock."""
    memory, sm = np.zeros(drawn_w.shape[1]), drawn_w[-1]
    if len(shares) == 1:
        return memory, sm, np.ones(1)
    for _ in range(20):
        centre = shares - shares.mean()
        sm = np.maximum(0.0, (centre @ drawn_w) / max(1e-12, float(centre @ centre)))
        memory = np.maximum(0.0, (drawn_w - shares[:, None] * sm).mean(axis=0))
        sm = np.maximum(0.0, (shares @ (drawn_w - memory)) / float(shares @ shares))
        scale = float(sm @ sm)
        if scale > 0:
            shares = np.clip(((drawn_w - memory) @ sm) / scale, 1e-3, None)
            shares = np.maximum.accumulate(shares)
            sm, shares = sm * shares[-1], shares / shares[-1]
    return memory, sm, shares


def _physical_share(freq_mhz: int, file: ProfileFile) -> float:
    top_mhz = file.freqs_mhz[-1]
    return freq_mhz / top_mhz * (0.7 + 0.3 * freq_mhz / top_mhz) ** 2


def _spec(file: ProfileFile, mem_w: float, sm_w: float, shares: tuple[float, ...] | None) -> GpuSpec:
    gpu = file.gpu
    return GpuSpec(
        name=gpu.name,
        freqs_mhz=file.freqs_mhz,
        idle_w=gpu.idle_w,
        context_w=gpu.context_w,
        mem_w=mem_w,
        sm_w=sm_w,
        knee_mhz=min(H100_SXM.knee_mhz, file.freqs_mhz[0]) if gpu.knee_mhz is None else gpu.knee_mhz,
        knee_voltage_ratio=gpu.knee_voltage_ratio,
        power_limit_w=gpu.power_limit_w,
        settle_ns=round(gpu.settle_ms * 1e6),
        sm_shares=shares,
    )


def _table_length(file: ProfileFile) -> int:
    return file.batch_tokens + file.batch_requests + 1
