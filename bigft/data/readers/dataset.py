"""Data sets of the library `datasets`, saved on the disk or on the Hugging Face hub."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bigft.data.readers.raw import RawRow
from bigft.errors import DataError

_ONE_SPLIT = r"\w[\w.-]*(?:\[(?:-?\d+%?)?:(?:-?\d+%?)?\](?:\(\w+\))?)?"
SPLIT = re.compile(rf"{_ONE_SPLIT}(?:\+{_ONE_SPLIT})*")
"""`train`, `train[:10%]`, `train[:100]+test`."""


@dataclass(frozen=True)
class DatasetName:
    """Which rows of which data set."""

    path: str
    """Folder or hub id."""

    is_saved: bool
    subset: str | None = None
    split: str | None = None

    def __str__(self) -> str:
        """Write the name as users do: `org/name/subset@split`."""
        subset = f"/{self.subset}" if self.subset else ""
        return f"{self.path}{subset}{f'@{self.split}' if self.split else ''}"


def load_dataset(name: DatasetName, flag: str, *, streaming: bool = False) -> Any:
    """Load the rows of a data set; of several splits, `train` or the only one.

    Args:
        name: Saved or on the hub.
        flag: What named it, for error messages.
        streaming: Download hub rows while they are read. A saved data set is mapped anyway.

    Raises:
        DataError: It cannot be loaded, or has no such split.
    """
    import datasets

    where = f"{flag}={name}"
    try:
        if name.is_saved:
            loaded = datasets.load_from_disk(name.path)
        else:
            loaded = datasets.load_dataset(
                name.path, name.subset, split=name.split, streaming=streaming
            )
    except _find_failures() as error:
        reason, repair = "the saved data set cannot be opened", "save it again"
        if not name.is_saved:
            reason = "no such file or folder here, and as a hub id it cannot be loaded"
            repair = "check the network" if isinstance(error, ConnectionError) else "check the id"
            repair += ", or give the path of a file or folder"
        raise DataError(f"{where}: {reason}: {type(error).__name__}: {error}; {repair}") from error
    if name.is_saved and name.split:
        return _select(loaded, name.split, where)
    if not isinstance(loaded, dict):
        return loaded
    splits = list(loaded)
    if "train" not in splits and len(splits) != 1:
        raise DataError(
            f"{where}: none of its splits ({', '.join(splits)}) is called `train`; "
            f"choose one: {name}@{splits[0] if splits else 'SPLIT'}"
        )
    return loaded["train" if "train" in splits else splits[0]]


def read_dataset(name: DatasetName, flag: str, *, streaming: bool = False) -> Iterator[RawRow]:
    """Read the rows of a data set; the arguments are those of `load_dataset`.

    Raises:
        DataError: It cannot be loaded, or not to its end.
    """
    rows = load_dataset(name, flag, streaming=streaming)
    number = 0
    try:
        for number, row in enumerate(rows, 1):  # noqa: B007
            yield RawRow(row, f"{name}, row {number}")
    except _find_failures() as error:
        raise DataError(
            f"{flag}={name}: cannot be read on after row {number}: {type(error).__name__}: {error}"
        ) from error


def _select(loaded: Any, split: str, where: str) -> Any:
    """Cut `split`, for example `train[:10%]`, out of a saved data set."""
    import datasets

    splits = loaded if isinstance(loaded, dict) else {str(loaded.split or "train"): loaded}
    lengths = {name: len(rows) for name, rows in splits.items()}
    try:
        ranges = datasets.ReadInstruction.from_spec(split).to_absolute(lengths)
        parts = [splits[part.splitname].select(range(part.from_, part.to)) for part in ranges]
    except (ValueError, KeyError, AssertionError) as error:
        known = ", ".join(f"{name} ({length} rows)" for name, length in lengths.items())
        raise DataError(f"{where}: no such split: {error}; there is {known}") from error
    return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)


def _find_failures() -> tuple[type[Exception], ...]:
    import datasets

    # Of the hub's own errors most are OSErrors, and pyarrow's are ValueErrors or OSErrors.
    return (OSError, ValueError, RuntimeError, LookupError, datasets.exceptions.DatasetsError)
