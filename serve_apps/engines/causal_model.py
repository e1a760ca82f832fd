"""The model that the transformers engine runs: one from a folder, or a small Llama with random weights."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from serve_apps.engines.protocol import EngineError
from serve_apps.engines.sampling import SamplingDefaults

SMALL_LLAMA = {
    "vocab_size": 256,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 65_536,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
"""One token per byte; 0.7 million weights, 2 KiB of KV cache a token. Weights this wide make the likeliest token stand
out from the others, as in a trained model."""
SEED = 14


@dataclass(frozen=True)
class CausalModel:
    """A loaded model and what its configuration says. ``end_ids``: the tokens that end an answer, none of which the
    random model has."""

    network: PreTrainedModel
    end_ids: frozenset[int]
    context_tokens: int
    vocabulary_size: int
    sampling: SamplingDefaults


def load_model(folder: Path | None, device: str) -> CausalModel:
    """Takes seconds to minutes. ``folder`` None makes the small model. Raises EngineError where it cannot be loaded."""
    if folder is None:
        return _described(small_llama().to(device))
    dtype = torch.float32 if device == "cpu" else "auto"
    try:
        network = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise EngineError(f"serve.model_path {folder}: {error}") from error
    return _described(network.to(device))


def small_llama() -> PreTrainedModel:
    """The same weights every time, whatever the process has drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return LlamaForCausalLM(LlamaConfig(**SMALL_LLAMA)).eval()


def _described(network: PreTrainedModel) -> CausalModel:
    text, generation = network.config.get_text_config(), network.generation_config or GenerationConfig()
    ends = generation.eos_token_id
    end_ids = frozenset() if ends is None else frozenset([ends] if isinstance(ends, int) else ends)
    defaults = SamplingDefaults()
    if generation.do_sample:
        temperature = 1.0 if generation.temperature is None else generation.temperature
        defaults = SamplingDefaults(temperature, generation.top_p or 1.0, generation.top_k or 0)
    return CausalModel(network.eval(), end_ids, text.max_position_embeddings, text.vocab_size, defaults)
