"""Reading what users bring, at the edge: JSON, YAML, CSV and numbers, each fault one line that says where it is.

Readers hand in the kind of error they raise. JSON is JSON: no NaN, no Infinity, no name twice. Digits are 0 to 9.
"""

import csv
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Any

import yaml

Fault = Callable[[str], ValueError]
"""Makes the reader's own error from a message."""

MOST_FIELD_CHARACTERS = 64 * 1024 * 1024
"""A column that nobody reads may hold whole prompts."""

_WHOLE = re.compile(r"[+-]?[0-9]+\Z")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\Z")
_MOST_DIGITS = 40


def whole_number(text: str) -> int | None:
    """The integer that a text writes in digits 0-9, spaces around it allowed; None for anything else."""
    text = text.strip(" \t")
    return int(text) if len(text) <= _MOST_DIGITS and _WHOLE.match(text) else None


def number(text: str) -> float | None:
    """The finite number that a text writes in digits 0-9; None for anything else."""
    text = text.strip(" \t")
    if not _NUMBER.match(text):
        return None
    value = float(text)
    return value if math.isfinite(value) else None


def printable(text: str) -> str:
    """A text as one may show it in a terminal: no control characters, no halves of characters."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def decoded(content: bytes, source: str, fault: Fault) -> str:
    """UTF-8 text, with or without a byte order mark."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        looks_16 = content[:2] in (b"\xff\xfe", b"\xfe\xff")
        hint = "; it looks like UTF-16, save it as UTF-8" if looks_16 else "; save it as UTF-8"
        raise fault(f"{source}: not UTF-8 text: {error.reason} at byte {error.start}{hint}") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise fault(f"{source}: line {line}: a NUL byte, so this is no text file")
    return text


def parse_json(text: str, source: str, fault: Fault, *, one_line: bool = False) -> Any:
    """JSON, checked. ``one_line``: ``source`` names the line already."""

    def at(line: int) -> str:
        return source if one_line else f"{source}: line {line}"

    def constant(name: str) -> Any:
        raise fault(f"{at(text.count(chr(10), 0, text.find(name)) + 1)}: not JSON: {name} is not a number")

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(found)
        if len(content) < len(found):
            names = [name for name, _ in found]
            raise fault(f"{source}: field {next(n for n in names if names.count(n) > 1)!r} is there twice")
        return content

    try:
        content = json.loads(text, parse_constant=constant, object_pairs_hook=pairs)
    except json.JSONDecodeError as error:
        raise fault(f"{at(error.lineno)}: not JSON: {error.msg} (column {error.colno})") from None
    except RecursionError:
        raise fault(f"{source}: nested too deeply") from None
    except ValueError as error:
        if isinstance(error, type(fault(""))):
            raise
        raise fault(f"{source}: not JSON: {str(error).partition(';')[0]}") from None
    _check_strings(content, source, fault)
    return content


def parse_yaml(text: str, source: str, fault: Fault) -> tuple[Any, yaml.Node | None]:
    """YAML's plain values, and the nodes that tell their lines. No name twice, no tags that make objects."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        _check_names(node, source, fault)
        content = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        tab = "; YAML is indented with spaces" if "'\\t'" in str(error.problem) else ""
        raise fault(f"{source}: line {line}: not YAML: {error.problem}{tab}") from None
    except yaml.YAMLError as error:
        raise fault(f"{source}: not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise fault(f"{source}: nested too deeply") from None
    except ValueError as error:
        if isinstance(error, type(fault(""))):
            raise
        raise fault(f"{source}: a value that YAML takes for a date or a number is none: {error}") from None
    return content, node


def csv_rows(
    lines: Iterable[str],
    columns: Sequence[str],
    source: str,
    fault: Fault,
    row: str = "{source}:{line}",
    at_fault: Callable[[ValueError], None] | None = None,
) -> Iterator[tuple[int, tuple[str, ...]]]:
    """(line, the named columns of it); ``row`` says how a fault names a line.

    Blank lines are passed over; a line with fewer or more fields than the header is refused, and so is a header that
    lacks a named column or has it twice. ``at_fault`` is told of a line with the wrong number of fields, which is then
    passed over.
    """
    csv.field_size_limit(MOST_FIELD_CHARACTERS)
    rows = csv.reader(_without_bom(lines))

    def where(line: int) -> str:
        return row.format(source=source, line=line)

    try:
        header = [name.strip() for name in next(rows, [])]
        if not any(header):
            raise fault(f"{source}: the file is empty; expected a header line {','.join(columns)}")
        for name in columns:
            if header.count(name) != 1:
                found = "is missing" if name not in header else "is there twice"
                raise fault(f"{where(1)}: column {name} {found}; found {','.join(header)[:200]}")
        chosen, width = itemgetter(*(header.index(name) for name in columns)), len(header)
        for cells in rows:
            if not cells:
                continue
            if len(cells) != width:
                error = fault(f"{where(rows.line_num)}: {len(cells)} fields where the header has {width}")
                if at_fault is None:
                    raise error
                at_fault(error)
                continue
            yield rows.line_num, chosen(cells)
    except csv.Error as error:
        raise fault(f"{where(rows.line_num)}: not CSV: {error}") from None


def csv_header(lines: Iterable[str], source: str, fault: Fault) -> list[str]:
    """The names of the columns; an empty list for an empty file."""
    csv.field_size_limit(MOST_FIELD_CHARACTERS)
    try:
        return [name.strip() for name in next(csv.reader(_without_bom(lines)), [])]
    except csv.Error as error:
        raise fault(f"{source}:1: not CSV: {error}") from None


def _without_bom(lines: Iterable[str]) -> Iterator[str]:
    for position, line in enumerate(lines):
        yield line.removeprefix("\ufeff") if position == 0 else line


def _check_names(node: yaml.Node | None, source: str, fault: Fault) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name = str(key.value)
            if name in seen:
                raise fault(f"{source}: line {key.start_mark.line + 1}: {name!r} is there twice")
            seen.add(name)
            _check_names(value, source, fault)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_names(item, source, fault)


def _check_strings(content: Any, source: str, fault: Fault) -> None:
    if isinstance(content, str):
        if any("\ud800" <= character <= "\udfff" for character in content):
            raise fault(f"{source}: {content!r} holds half a character")
        if "\0" in content:
            raise fault(f"{source}: {content!r} holds a NUL character")
    elif isinstance(content, dict):
        for name, value in content.items():
            _check_strings(name, source, fault)
            _check_strings(value, source, fault)
    elif isinstance(content, list):
        for value in content:
            _check_strings(value, source, fault)
