"""Sampling for each request with its own generator, inside a batch that the library decodes greedily.

transformers samples a whole batch in one way and with one seed. Here the processor draws a request's token itself and
leaves it as the only possible one, so the batch's argmax takes it: an answer depends on its own seed alone, not on the
requests beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessor
from transformers.generation.continuous_batching.requests import FutureRequestState
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from serve_apps.engines.protocol import RequestRefusedError, SamplingParameters

SEEDS = 2**64


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What the model's own generation settings say for fields that a request leaves out; temperature 0 is greedy."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0


class Sampler:
    """Draws the tokens of one request: temperature, then the ``top_k`` likeliest, then those within ``top_p``."""

    def __init__(self, temperature: float, top_p: float, top_k: int, seed: int | None) -> None:
        self._warp = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
        if top_k > 0:
            self._warp.append(TopKLogitsWarper(top_k))
        if top_p < 1.0:
            self._warp.append(TopPLogitsWarper(top_p))
        self._generator = torch.Generator()
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed % SEEDS)

    def draw(self, logits: torch.Tensor) -> int:
        """One token; ``logits`` has one value per token of the vocabulary."""
        likely = torch.softmax(self._warp(None, logits.float()[None]), dim=-1).cpu()
        return int(torch.multinomial(likely, 1, generator=self._generator))


def sampler_of(asked: SamplingParameters, defaults: SamplingDefaults) -> Sampler | None:
    """None where the answer is greedy. Raises RequestRefusedError for what is not honoured here."""
    for name in ("presence_penalty", "frequency_penalty"):
        if getattr(asked, name):
            raise RequestRefusedError(f"{name}: the transformers engine has none; leave it out")
    temperature = defaults.temperature if asked.temperature is None else asked.temperature
    if temperature == 0.0:
        return None
    top_p = defaults.top_p if asked.top_p is None else asked.top_p
    top_k = defaults.top_k if asked.top_k is None else asked.top_k
    return Sampler(temperature, top_p, top_k, asked.seed)


class OwnSampling(ContinuousBatchingLogitsProcessor):
    """The one logits processor of the batch. Requests without a sampler stay greedy."""

    supported_kwargs: dict[str, type] = {}  # noqa: RUF012 - the library's declaration
    ignored_kwargs: tuple[str, ...] = ()

    def __init__(self) -> None:
        self._samplers: dict[str, Sampler] = {}
        self._rows: list[Sampler | None] = []

    def add(self, key: str, sampler: Sampler) -> None:
        self._samplers[key] = sampler

    def remove(self, key: str) -> None:
        self._samplers.pop(key, None)

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: Sequence[FutureRequestState]) -> torch.Tensor:
        """Called in the library's thread before each iteration, with the requests in the order of the scores' rows."""
        self._rows = [self._samplers.get(request.state.request_id) for request in requests_with_new_token]
        return torch.zeros(len(self._rows), dtype=torch.int32)

    def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:
        """``scores``: (requests, vocabulary)."""
        del tensor_arg
        for row, sampler in enumerate(self._rows):
            if sampler is not None:
                token_id = sampler.draw(scores[row])
                scores[row] = -torch.inf
                scores[row, token_id] = 0.0
        return scores
