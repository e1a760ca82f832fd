"""Makes the engine that the settings name; nothing else in this package names one.

An engine's module is imported when it is asked for: some need libraries that others do without.
"""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any, assert_never

from actors.gpu.drivers import ChargeableNode
from control_plane.domain import Role
from control_plane.hardware.machine_profile import MachineProfile
from control_plane.settings import Settings
from serve_apps.engines import output_length
from serve_apps.engines.protocol import Engine, Tokenizer

ReadExtensions = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""The request fields beyond OpenAI's that the engine knows, checked. Raises ValueError, naming the field."""


class EngineMissingError(RuntimeError):
    """The library that the engine needs is not installed; the message says how to install it."""


def check_engine(settings: Settings) -> None:
    """Before anything starts. Raises EngineMissingError, and EngineError for a model path without a tokenizer."""
    name = settings.serve.engine
    if name != "simulated" and importlib.util.find_spec(name) is None:
        raise EngineMissingError(f"serve.engine {name} is not installed: pip install 'wattray[{name}]'")
    make_tokenizer(settings)


def make_engine(
    settings: Settings, profile: MachineProfile, tp: int, role: Role, node: ChargeableNode, indices: Sequence[int]
) -> Engine:
    """An engine on the GPUs ``indices`` of ``node``, not loaded yet. Call it in the event loop it will run in."""
    match settings.serve.engine:
        case "simulated":
            from serve_apps.engines.simulated import SimulatedEngine

            load_s = 0.0 if settings.serve.warm_start else settings.sharding.startup_s
            interval_s = settings.serve.stream_interval_s
            return SimulatedEngine(profile.times(tp), profile.limits(tp), node, indices, interval_s, load_s, role)
        case "transformers":
            from serve_apps.engines.transformers_site import transformers_engine

            return transformers_engine(settings, profile, tp, node, indices)
        case "vllm":
            from serve_apps.engines.vllm_site import vllm_engine

            return vllm_engine(settings, profile, tp, node, indices)
        case _:
            assert_never(settings.serve.engine)


def make_tokenizer(settings: Settings) -> Tokenizer:
    """The tokenizer of the served model, without loading the model."""
    match settings.serve.engine:
        case "simulated":
            from serve_apps.engines.word_tokenizer import WordTokenizer

            return WordTokenizer()
        case "transformers" | "vllm":
            from serve_apps.engines.model_tokenizer import tokenizer_of

            return tokenizer_of(settings.serve.model_path)
        case _:
            assert_never(settings.serve.engine)


def extensions_of(settings: Settings) -> ReadExtensions:
    match settings.serve.engine:
        case "simulated":
            return output_length.read_extensions
        case "transformers" | "vllm":
            return output_length.read_extensions if settings.serve.model_path is None else _none
        case _:
            assert_never(settings.serve.engine)


def _none(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A real model decides itself when its answer ends."""
    del fields
    return {}
