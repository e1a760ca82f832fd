"""A model's tokenizer as the ``tokenizers`` library runs it: the router counts with it and loads no model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

from tokenizers import Encoding, Tokenizer, decoders, models, pre_tokenizers

from serve_apps.engines.protocol import EngineError


class ModelTokenizer:
    """Implements ``protocol.Tokenizer``, and decodes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @classmethod
    def of_bytes(cls) -> Self:
        """One token per byte of UTF-8, 256 in all: any text can be encoded, for a model without a vocabulary."""
        vocabulary = {symbol: number for number, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
        return cls(tokenizer)

    @classmethod
    def of_model(cls, folder: Path) -> Self:
        """Raises EngineError where the folder has no ``tokenizer.json`` that can be read."""
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise EngineError(f"serve.model_path: {file} is missing; save the model's fast tokenizer there")
        try:
            return cls(Tokenizer.from_file(str(file)))
        except Exception as error:  # noqa: BLE001 - the library raises plain Exception for a file it cannot read
            raise EngineError(f"serve.model_path: {file} is no tokenizer: {error}") from None

    @property
    def vocabulary_size(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    def count_tokens(self, text: str) -> int:
        return max(1, len(self._encoding(text)))

    def encode(self, text: str) -> list[int]:
        return list(self._encoding(text).ids) or [0]

    def _encoding(self, text: str) -> Encoding:
        """Without the offsets of tokens in the text, which take three quarters of the time."""
        return self._tokenizer.encode_batch_fast([text])[0]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text without special tokens; bytes that are no UTF-8 become U+FFFD."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))


def tokenizer_of(model_path: str | None) -> ModelTokenizer:
    """That of the model in this folder, or one of bytes. Raises EngineError."""
    return ModelTokenizer.of_bytes() if model_path is None else ModelTokenizer.of_model(Path(model_path))
