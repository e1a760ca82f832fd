"""The bytes of a trace: plain, gzip, zstd or Parquet, opened and read a block at a time."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from control_plane.simulation.trace_reader import Row
from control_plane.simulation.trace_times import Layout, TraceError

_GZIP, _ZSTD, _PARQUET = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1"


@contextmanager
def opened_lines(path: Path) -> Iterator[TextIO]:
    """The file's text. Raises TraceError, in one line, for whatever keeps it from being read."""
    with _faults_of(path), path.open("rb") as raw:
        yield io.TextIOWrapper(_unpacked(raw), encoding="utf-8-sig", newline="")


def is_parquet(path: Path) -> bool:
    with _faults_of(path), path.open("rb") as raw:
        return path.is_file() and raw.read(4) == _PARQUET


def is_jsonl(path: Path) -> bool:
    name = path.name.removesuffix(".gz").removesuffix(".zst")
    return name.endswith((".jsonl", ".ndjson", ".json"))


def parquet_columns(path: Path) -> list[str]:
    import pyarrow.parquet

    with _faults_of(path):
        return list(pyarrow.parquet.read_schema(path).names)


def parquet_requests(path: Path, layout: Layout) -> Iterator[Row]:
    """(row, the layout's columns), rows counted from 1. Times may be timestamps, numbers or text."""
    import pyarrow.parquet

    missing = [name for name in layout.columns if name not in parquet_columns(path)]
    if missing:
        found = ",".join(parquet_columns(path))[:200]
        raise TraceError(f"{path}: column {missing[0]} is missing; found {found}")
    with _faults_of(path):
        row = 0
        file = pyarrow.parquet.ParquetFile(path)
        for batch in file.iter_batches(1 << 16, columns=list(layout.columns)):
            cells = [_values(batch.column(name)) for name in layout.columns]
            for values in zip(*cells, strict=True):
                row += 1
                yield row, values


def _values(column: Any) -> list[Any]:
    import pyarrow

    kind = column.type
    if pyarrow.types.is_timestamp(kind):
        # Without its zone a column holds UTC; as text it has at most as many decimals as Azure's traces.
        unit = "us" if kind.unit == "ns" else kind.unit
        column = column.cast(pyarrow.timestamp(kind.unit)).cast(pyarrow.timestamp(unit), safe=False)
        column = column.cast(pyarrow.string())
    elif pyarrow.types.is_dictionary(kind):
        column = column.dictionary_decode()
    return list(column.to_pylist())


@contextmanager
def _faults_of(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise TraceError(f"{path}: there is no such file") from None
    except IsADirectoryError:
        raise TraceError(f"{path}: this is a folder, not a trace") from None
    except PermissionError:
        raise TraceError(f"{path}: may not be read") from None
    except UnicodeDecodeError as error:
        raise TraceError(f"{path}: not UTF-8 text at byte {error.start}") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise TraceError(f"{path}: the gzip file is damaged: {error}") from None
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        if isinstance(error, TraceError) or not type(error).__module__.startswith("pyarrow"):
            raise
        raise TraceError(f"{path}: {error}") from None


def _unpacked(raw: BinaryIO) -> BinaryIO:
    if not raw.seekable():
        return raw
    magic = raw.read(4)
    raw.seek(0)
    if magic[:2] == _GZIP:
        return gzip.GzipFile(fileobj=raw)  # type: ignore[return-value]
    if magic == _ZSTD:
        import pyarrow

        stream: BinaryIO = pyarrow.CompressedInputStream(raw, "zstd")
        return stream
    return raw
