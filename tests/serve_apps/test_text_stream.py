"""Tokens as text: whole characters, and stop strings wherever the tokens happen to be cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("tokenizers")

from serve_apps.engines.model_tokenizer import ModelTokenizer
from serve_apps.engines.protocol import EngineError
from serve_apps.engines.text_stream import TextStream

BYTES = ModelTokenizer.of_bytes()
TOKENS = st.lists(st.integers(0, 255), max_size=60)


def pushed(stream: TextStream, token_ids: list[int], sizes: list[int]) -> tuple[str, int, bool]:
    """The text, the tokens read and whether a stop string came, of a sequence that arrives in parts of these sizes."""
    text, read = "", 0
    while read < len(token_ids):
        part = token_ids[read : read + (sizes.pop(0) if sizes else 7)]
        piece = stream.push(part, read + len(part) == len(token_ids))
        text, read = text + piece.text, read + piece.tokens
        if piece.stopped:
            return text, read, True
    return text, read, False


@given(TOKENS, st.lists(st.integers(1, 5), max_size=30))
def test_the_pieces_together_are_the_decoded_sequence(token_ids: list[int], sizes: list[int]) -> None:
    text, read, _ = pushed(TextStream(BYTES.decode), token_ids, sizes)
    assert (text, read) == (BYTES.decode(token_ids), len(token_ids))


@given(st.text(max_size=30), st.lists(st.integers(1, 5), max_size=30))
def test_no_piece_of_a_proper_text_has_half_a_character(text: str, sizes: list[int]) -> None:
    token_ids, stream, told = BYTES.encode(text), TextStream(BYTES.decode), ""
    while token_ids:
        size = sizes.pop(0) if sizes else 3
        told += stream.push(token_ids[:size], len(token_ids) <= size).text
        token_ids = token_ids[size:]
        assert (text or told).startswith(told)


@given(
    st.text("ab", max_size=40),
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.integers(1, 6), max_size=30),
)
def test_the_text_ends_before_the_first_stop_string(text: str, stops: list[str], sizes: list[int]) -> None:
    token_ids = BYTES.encode(text) if text else []
    told, read, stopped = pushed(TextStream(BYTES.decode, stops), token_ids, sizes)
    # The oracle: the shortest beginning of the text that contains a stop string, one character a token.
    ends = [n for n in range(1, len(text) + 1) if any(stop in text[:n] for stop in stops)]
    if not ends:
        assert (told, stopped) == (text, False)
        return
    seen = text[: ends[0]]
    assert (read, stopped) == (ends[0], True)
    assert told == seen[: min(seen.find(stop) for stop in stops if stop in seen)]


def test_text_that_may_begin_a_stop_string_waits() -> None:
    stream = TextStream(BYTES.decode, ["END"])
    assert stream.push(BYTES.encode("one EN"), False).text == "one "
    assert stream.push(BYTES.encode("D two"), False).stopped
    other = TextStream(BYTES.decode, ["END"])
    assert other.push(BYTES.encode("one EN"), False).text == "one "
    assert other.push(BYTES.encode("VY"), False).text == "ENVY"


@given(st.text(max_size=50))
def test_any_text_survives_the_byte_tokenizer(text: str) -> None:
    if text:
        assert BYTES.decode(BYTES.encode(text)) == text
        assert BYTES.count_tokens(text) == len(text.encode())


def test_a_folder_without_a_tokenizer_is_told(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(EngineError, match=r"tokenizer\.json is missing"):
        ModelTokenizer.of_model(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(EngineError, match="is no tokenizer"):
        ModelTokenizer.of_model(tmp_path)
