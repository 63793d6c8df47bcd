"""Parquet files, whose columns have types of their own, as files that are mapped into memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features
from datasets.table import table_cast

from balora.errors import DataError

_ROWS = 1000  # of a batch


def store_parquet(files: Mapping[str, Sequence[Path]], stage: Path) -> None:
    """Write a file for each split into `stage`, all with the columns of every file.

    Raises:
        DataError: If a file cannot be read, or has a column of another type than one before it.
    """
    schema = pa.schema([])
    for of_split in files.values():
        for file in of_split:
            schema = _unified(schema, file)
    try:
        features = Features.from_arrow_schema(schema)
    except (ValueError, NotImplementedError) as error:
        names = ", ".join(str(file) for of_split in files.values() for file in of_split)
        raise DataError(f"{names} cannot be read: {error}.") from error
    for split, of_split in files.items():
        with (
            pa.OSFile(str(stage / split), "wb") as sink,
            pa.ipc.new_stream(sink, features.arrow_schema) as writer,
        ):
            for file in of_split:
                for table in _tables(file, schema):
                    writer.write_table(table_cast(table, features.arrow_schema))


def _unified(schema: pa.Schema, file: Path) -> pa.Schema:
    """Return the columns so far and those of another file; its categories are plain values."""
    try:
        found = pq.read_schema(file)
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read: {_reason(error)}.") from error
    fields = [
        field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field
        for field in found
    ]
    metadata = schema.metadata or found.metadata
    try:
        both = pa.unify_schemas([schema, pa.schema(fields)])
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{file} has a column of another type than the files before it ({_reason(error)})."
        ) from error
    return both.with_metadata(metadata)


def _tables(file: Path, schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield the rows of a file a batch at a time, null where it has not a column."""
    try:
        with pq.ParquetFile(file) as content:
            for batch in content.iter_batches(_ROWS):
                columns = [
                    batch[field.name].cast(field.type)
                    if field.name in batch.schema.names
                    else pa.nulls(len(batch), field.type)
                    for field in schema
                ]
                yield pa.table(columns, schema=schema)
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read: {_reason(error)}.") from error


def _reason(error: Exception) -> str:
    """Return a library's complaint as a part of a sentence."""
    text = " ".join(str(error).split()).rstrip(".")
    return text if len(text) <= 300 else text[:297] + "..."
