"""What `--data` names: files, folders, globs, saved or downloaded data sets, or built-in ones."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bigft.data.readers.dataset import DatasetName, load_dataset, read_dataset
from bigft.data.readers.files import READERS, find_suffix
from bigft.data.readers.raw import RawRow
from bigft.data.sources.corpus import compute_corpus_digest, read_corpus
from bigft.data.sources.derived.table import (
    DERIVED,
    PREFIX,
    build_unknown_error,
    compute_derived_digest,
    read_derived,
)
from bigft.data.sources.glue import find_glue_task
from bigft.data.sources.search import Search
from bigft.data.sources.spec import choose_names, split_spec, split_weight
from bigft.errors import DataError, raise_together

BUILTIN = "builtin"


@dataclass(frozen=True)
class Source:
    """One file, saved data set, hub id or built-in data set."""

    name: str
    """Path, `org/name/subset@split`, `builtin` or `builtin/NAME`."""

    kind: Literal["file", "saved", "hub", "builtin"]
    flag: str
    """The flag that named it, for error messages."""

    dataset: DatasetName | None = None
    """What `datasets` is asked for, of the kinds `saved` and `hub`."""

    def read(self, *, streaming: bool = False) -> Iterator[RawRow]:
        """Read the rows one after the other.

        Args:
            streaming: Download the rows of a hub id while they are read, and keep none.

        Raises:
            DataError: The source cannot be read on; file and line are named.
        """
        if self.dataset:
            return read_dataset(self.dataset, self.flag, streaming=streaming)
        if self.kind == "builtin":
            rows = read_corpus() if self.name == BUILTIN else read_derived(self._derived_name)
            return (RawRow(record, f"{self.name}:{name}") for name, record in rows)
        return READERS[find_suffix(Path(self.name))](Path(self.name), self.flag)

    def compute_fingerprint(self) -> str:
        """Compute a text that changes when the rows do, without reading files in full.

        Raises:
            DataError: A data set cannot be loaded.
        """
        if self.kind == "builtin":
            if self.name == BUILTIN:
                return compute_corpus_digest()
            return compute_derived_digest(self._derived_name)
        if self.kind == "hub" and self.dataset:
            return str(load_dataset(self.dataset, self.flag)._fingerprint)
        path = Path(self.dataset.path if self.dataset else self.name)
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        # The split is no part of the files, but decides which rows are read.
        digest = hashlib.blake2b(self.name.encode("utf-8", "surrogateescape"), digest_size=16)
        for file in files:
            status = file.stat()
            text = f"{file.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\0"
            digest.update(text.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    @property
    def _derived_name(self) -> str:
        return self.name.removeprefix(PREFIX)


@dataclass(frozen=True)
class Part:
    """What stands between two commas of `--data`."""

    name: str
    """Short and unique among the parts; of `[A-Za-z0-9._-]`."""

    weight: float | None
    """As typed; None when there was none."""

    sources: tuple[Source, ...]
    """At least one."""


def read_sources(spec: str, flag: str = "--data") -> Iterator[RawRow]:
    """Read every row of everything that `spec` names, in order, whatever the weights."""
    for part in find_sources(spec, flag):
        for source in part.sources:
            yield from source.read()


def find_sources(
    spec: str,
    flag: str = "--data",
    *,
    weighted: bool = True,
    names: Sequence[str] | None = None,
) -> list[Part]:
    """List what a comma-separated setting names; a folder or glob becomes its files, sorted.

    Args:
        spec: `a.jsonl:3,folder,org/name/subset@train[:10%]`.
        flag: The setting, for error messages.
        weighted: Whether a part may end in `:weight`.
        names: Of the parts; absent: made from what they name.

    Raises:
        DataError: A name leads nowhere or a weight is wrong; all problems are listed together.
    """
    search = Search(flag)
    found: list[tuple[str, float | None, tuple[Source, ...]]] = []
    for part in split_spec(spec):
        try:
            name, weight = split_weight(part, flag, weighted=weighted)
            found.append((name, weight, tuple(_find_part(name, flag, search))))
        except DataError as error:
            search.problems.append(str(error))
        except OSError as error:
            search.problems.append(f"{flag}={part}: cannot be read: {error}")
    if search.problems:
        raise_together(DataError, search.problems)
    if not found:
        raise DataError(f"{flag}={spec!r} names no data; give a file, a folder or a hub id")
    if names is None:
        names = choose_names([_suggest_names(name, sources[0]) for name, _, sources in found])
    elif len(names) != len(found):
        raise DataError(
            f"--data.loading.names {','.join(names)}: {len(names)} names, but {flag}={spec} has"
            f" {len(found)} parts; give each part a name, or none"
        )
    return [
        Part(name, weight, sources) for name, (_, weight, sources) in zip(names, found, strict=True)
    ]


def _find_part(name: str, flag: str, search: Search) -> Iterator[Source]:
    derived = name.removeprefix(PREFIX) if name.startswith(PREFIX) else None
    # A folder here may be called `builtin`, too; `./builtin/modules` is never a built-in set.
    if derived is not None and derived not in DERIVED and not Path(BUILTIN).is_dir():
        raise build_unknown_error(derived, flag)
    if name == BUILTIN or derived in DERIVED:
        yield Source(name, "builtin", flag)
        return
    for place in search.find(name):
        if isinstance(place, DatasetName):
            yield Source(str(place), "saved" if place.is_saved else "hub", flag, place)
        else:
            yield Source(str(place), "file", flag)


def _suggest_names(name: str, first: Source) -> tuple[str, str]:
    """Suggest a short and a long name for a part, for `choose_names`."""
    if first.kind == "builtin":
        return name, name
    dataset = first.dataset
    if find_glue_task(name):
        return name.removeprefix("glue/").replace("@", "-"), str(dataset)
    if dataset and (dataset.split or not dataset.is_saved):
        return Path(dataset.path).name, str(dataset)
    path = Path(name).absolute()
    suffix = find_suffix(path)
    stem = path.name.removesuffix(path.name[-len(suffix) :]) if suffix in READERS else path.name
    return stem, f"{path.parent.name}-{stem}"
