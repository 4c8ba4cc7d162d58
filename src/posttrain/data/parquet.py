"""Reads Parquet files, of which a few bytes may expand to any number: what is held at once has a
limit (`core.limits`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from posttrain.core import limits
from posttrain.core.errors import DataError
from posttrain.core.extras import require
from posttrain.core.limits import RAISE, limit, megabytes
from posttrain.data.rows import ProgressCallback, Row, RowOrError, first_line

SMALL = 2**24  # bytes of a file that is read through before its first row is used
_CODECS = {"UNCOMPRESSED": 1, "SNAPPY": 24, "LZ4": 256, "GZIP": 1100}  # times a page may expand


def read(path: Path, progress: ProgressCallback) -> Iterator[RowOrError]:
    """The rows of a Parquet file, in order.

    Raises:
        DataError: the file is damaged, names a column twice, or expands to more than it may.
    """
    pq: Any = require("pyarrow.parquet", extra="data", purpose="reading Parquet files")
    arrow: Any = require("pyarrow", extra="data", purpose="reading Parquet files")
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if len(set(names)) < len(names):
                raise DataError(
                    f"the file names a column twice: {', '.join(names)}",
                    where=f"{path}:row 1",
                    cure="rename one",
                )
            rows, file_bytes = max(1, file.metadata.num_rows), path.stat().st_size
            _check_pages(file.metadata, path)
            if file_bytes < SMALL:
                for _ in _batches(arrow, file, path):
                    pass  # what it expands to is known before a row is used
            for batch in _batches(arrow, file, path):
                for fields, raw in _batch_rows(batch):
                    number += 1
                    progress(file_bytes * number // rows)
                    where = f"{path}:row {number}"
                    if isinstance(fields, dict):
                        yield Row(fields, where)
                        continue
                    what = f"a value cannot be read: {fields}"
                    yield DataError(what, where=where, cure="correct or remove the row"), raw
    except (arrow.ArrowException, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise  # the system's, not Arrow's
        raise DataError(
            f"not Parquet, damaged or cut off: {first_line(error)}",
            where=f"{path}:row {number + 1}",
            cure="get the file again",
        ) from None


def _check_pages(metadata: Any, path: Path) -> None:
    """Refuse columns that would expand to what no file of their size holds.

    Arrow expands a page, and all values of one row, before anything can be counted.
    """
    most = limit(limits.EXPANDED)
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            column = metadata.row_group(group).column(number)
            pages = column.total_uncompressed_size
            inside = 0  # bytes of the values of lists, eight for each
            if metadata.schema.column(number).max_repetition_level:
                inside = 8 * column.num_values
            times = limit(limits.EXPANSION)
            if pages > max(most, times // 10 * column.total_compressed_size) or inside > max(
                most, times * pages
            ):
                raise _expands(path, max(pages, inside))


def _expands(path: Path, size: int) -> DataError:
    return DataError(
        f"{path} has {megabytes(path.stat().st_size)} and expands to {megabytes(size)} or more",
        cure=f"write its rows in another way; {RAISE}",
    )


def _batches(arrow: Any, file: Any, path: Path) -> Iterator[Any]:
    """The rows of a Parquet file, some at a time.

    Raises:
        DataError: a row is larger than a row may be, or all of them much larger than the file.
    """
    most, row, expanded = limit(limits.EXPANDED), limit(limits.ROW), 0
    largest = max(most, limit(limits.EXPANSION) * path.stat().st_size)
    number = 0
    for group in range(file.metadata.num_row_groups):
        size = max(1, min(256, most // max(1, _largest_value(file.metadata.row_group(group)))))
        for found in file.iter_batches(batch_size=size, row_groups=[group]):
            batch = _plain(arrow, found)
            expanded += batch.nbytes
            if expanded > largest:
                raise _expands(path, expanded)
            if batch.nbytes > row:
                for i in range(len(batch)):
                    if batch.slice(i, 1).nbytes > row:
                        raise DataError(
                            f"a row of more than {megabytes(row)}",
                            where=f"{path}:row {number + i + 1}",
                            cure=f"make it smaller; {RAISE}",
                        )
            number += len(batch)
            # Python's rows of it are held at once
            step = max(1, len(batch) * row // max(1, batch.nbytes))
            yield from (batch.slice(i, step) for i in range(0, len(batch), step))


def _largest_value(group: Any) -> int:
    """Bytes that a value of a row group may have at most, if many rows can share it.

    In a dictionary page a value stands once, and each of its rows has it whole.
    """
    largest = 0
    for number in range(group.num_columns):
        column = group.column(number)
        if column.has_dictionary_page:
            page = column.data_page_offset - column.dictionary_page_offset
            expanded = _CODECS.get(column.compression, 2**20) * page
            largest = max(largest, min(column.total_uncompressed_size, expanded))
    return largest


def _plain(arrow: Any, batch: Any) -> Any:
    """A batch without dictionaries, so that its bytes are those of its rows."""
    columns = [
        column.dictionary_decode() if arrow.types.is_dictionary(column.type) else column
        for column in batch.columns
    ]
    return arrow.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _batch_rows(batch: Any) -> Iterator[tuple[dict[str, Any] | str, bytes]]:
    """The rows of an Arrow batch as dictionaries.

    A row that Python cannot hold (text that is not UTF-8, a date of the year 12000) comes as the
    reason and the bytes that Arrow holds.
    """
    try:
        yield from ((fields, b"") for fields in batch.to_pylist())
    except (ValueError, OverflowError, LookupError) as error:
        if len(batch) == 1:
            yield first_line(error), batch.serialize().to_pybytes()
        else:
            for i in range(len(batch)):
                yield from _batch_rows(batch.slice(i, 1))
