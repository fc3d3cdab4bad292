"""Rows that the package ``datasets`` reads: Parquet files, folders, data sets of the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ruprompt_fast.errors import MissingDependencyError, TrainingDataError
from ruprompt_fast.runs.data.compressed import data_suffix
from ruprompt_fast.runs.data.row_format import Record


def read_parquet(path: Path) -> Iterator[Record]:
    """The rows of a Parquet file.

    Raises:
        TrainingDataError: it cannot be read.
        MissingDependencyError: ``datasets`` is not installed.
    """
    # Streaming reads the file itself; otherwise datasets would first write a copy to its cache.
    return read_dataset(str(path), "parquet", data_files=str(path), split="train", streaming=True)


def read_folder(
    folder: Path,
    split: str,
    name: str | None,
    own_suffixes: Collection[str],
    read_file: Callable[[Path], Iterator[Record]],
) -> Iterator[Record]:
    """The rows of one split of a folder.

    Args:
        folder: the folder.
        split: the split; ``datasets`` finds out which files belong to it.
        name: the configuration.
        own_suffixes: of the files that ``read_file`` reads.
        read_file: reads files that datasets' own readers would silently lose rows of.

    Raises:
        TrainingDataError, MissingDependencyError: as for :func:`read_parquet`.
    """
    datasets = _datasets(str(folder))
    with _naming_errors(str(folder), split):
        builder = datasets.load_dataset_builder(str(folder), name=name)
        files = [Path(file) for file in (builder.config.data_files or {}).get(split, [])]
    if files and all(data_suffix(file) in own_suffixes and file.is_file() for file in files):
        return _chained(files, read_file)
    return read_dataset(str(folder), str(folder), name=name, split=split, streaming=True)


def read_dataset(source: str, builder: str, **arguments: Any) -> Iterator[Record]:
    """Rows of what ``datasets.load_dataset(builder, **arguments)`` finds.

    Raises:
        TrainingDataError, MissingDependencyError: as for :func:`read_parquet`.
    """
    datasets = _datasets(source)
    with _naming_errors(source, arguments["split"]):
        dataset = datasets.load_dataset(builder, **arguments)
        next(iter(dataset), None)  # opens the files
    return _numbered(dataset, source, arguments["split"])


def _numbered(dataset: Any, source: str, split: str) -> Iterator[Record]:
    with _naming_errors(source, split):
        yield from enumerate(dataset, start=1)


def _chained(files: list[Path], read_file: Callable[[Path], Iterator[Record]]) -> Iterator[Record]:
    for file in files:
        for line, record in read_file(file):
            yield line, f"of {file.name} {record}" if isinstance(record, str) and len(files) > 1 else record


def _datasets(source: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingDependencyError(
            f"reading {source} needs the package datasets; install it with pip install 'ruprompt-fast[train]'."
        ) from error
    return datasets


@contextmanager
def _naming_errors(source: str, split: str) -> Iterator[None]:
    import datasets
    import pyarrow  # type: ignore[import-untyped]

    # RuntimeError: a data set that is a script, which datasets does not run any more.
    errors = (OSError, ValueError, TypeError, LookupError, RuntimeError)
    try:
        yield
    except TrainingDataError:
        raise
    except (*errors, datasets.exceptions.DatasetsError, pyarrow.ArrowException) as error:
        raise TrainingDataError(
            f"{source}: expected a file, a folder or the id of a data set, with the split {split!r}; it "
            f"cannot be read: {error}"
        ) from error
