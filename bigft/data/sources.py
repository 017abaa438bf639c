"""What `--data` names: files, folders, globs, saved or downloaded data sets, or `builtin`."""

import difflib
import glob
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bigft.data.corpus import compute_corpus_digest, read_corpus
from bigft.data.readers.files import READERS, find_suffix
from bigft.errors import DataError, raise_together

BUILTIN = "builtin"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SAVED_MARKERS = ("dataset_info.json", "dataset_dict.json")


@dataclass(frozen=True)
class SourceRecord:
    """One raw record, and where it stands: `a.jsonl:3`."""

    record: Mapping[str, Any]
    origin: str


@dataclass(frozen=True)
class Source:
    """One file, saved data set, hub id or the built-in corpus."""

    name: str
    kind: Literal["file", "saved", "hub", "builtin"]
    flag: str
    """The flag that named it, for error messages."""

    def read(self) -> Iterator[SourceRecord]:
        """Read the records one after the other.

        Raises:
            DataError: The source cannot be read; file and line are named.
        """
        if self.kind == "file":
            records = READERS[find_suffix(Path(self.name))](Path(self.name), self.flag)
        elif self.kind == "builtin":
            records = ((record, f"{BUILTIN}:{name}") for name, record in read_corpus())
        else:
            rows = _load_dataset(self)
            records = ((row, f"{self.name}:{n}") for n, row in enumerate(rows, 1))
        try:
            for record, origin in records:
                yield SourceRecord(record, origin)
        except OSError as error:
            raise DataError(f"{self.flag}={self.name}: cannot be read: {error}") from error

    def compute_fingerprint(self) -> str:
        """Compute a text that changes when the records do, without reading files in full.

        Raises:
            DataError: A data set cannot be loaded.
        """
        if self.kind == "builtin":
            return compute_corpus_digest()
        if self.kind == "hub":
            return str(_load_dataset(self)._fingerprint)
        path = Path(self.name)
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        digest = hashlib.blake2b(digest_size=16)
        for file in files:
            status = file.stat()
            digest.update(f"{file.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
        return digest.hexdigest()


def read_sources(spec: str, flag: str = "--data") -> Iterator[SourceRecord]:
    """Read every record of everything that `spec` names, in order."""
    for source in find_sources(spec, flag):
        yield from source.read()


def find_sources(spec: str, flag: str = "--data") -> list[Source]:
    """List what a comma-separated setting names; a folder or glob becomes its files, sorted.

    Raises:
        DataError: A name leads nowhere; all such names are listed together.
    """
    sources: list[Source] = []
    problems: list[str] = []
    for name in (part.strip() for part in spec.split(",")):
        if name:
            try:
                sources += _find_one(name, flag)
            except DataError as error:
                problems.append(str(error))
    if problems:
        raise_together(DataError, problems)
    if not sources:
        raise DataError(f"{flag}={spec!r} names no data; give a file, a folder or a hub id")
    return sources


def _find_one(name: str, flag: str) -> list[Source]:
    if name == BUILTIN:
        return [Source(name, "builtin", flag)]
    path = Path(name).expanduser()
    if path.is_dir():
        return _find_in_folder(path, flag)
    if path.is_file():
        return [_check_file(path, flag)]
    if glob.has_magic(name):
        found = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207
        files = [file for file in found if file.is_file()]
        if not files:
            raise DataError(f"{flag}={name}: no file fits this pattern")
        return _check_files(files, flag)
    # A name like org/name is a hub id unless its first part is a folder that exists here.
    is_local = path.parent.is_dir() and path.parent != Path()
    if _HUB_ID.fullmatch(name) and not is_local and find_suffix(path) not in READERS:
        return [Source(name, "hub", flag)]
    raise DataError(f"{flag}={name}: no such file or folder; {_describe_near(path)}")


def _find_in_folder(folder: Path, flag: str) -> list[Source]:
    if any((folder / marker).is_file() for marker in _SAVED_MARKERS):
        return [Source(str(folder), "saved", flag)]
    files = [
        file
        for file in sorted(folder.rglob("*"))
        if find_suffix(file) in READERS
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]
    if not files:
        raise DataError(
            f"{flag}={folder}: the folder holds no data; looked for {', '.join(READERS)} "
            "and for a data set saved by `datasets`"
        )
    return _check_files(files, flag)


def _check_files(files: list[Path], flag: str) -> list[Source]:
    sources, problems = [], []
    for file in files:
        try:
            sources.append(_check_file(file, flag))
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise_together(DataError, problems)
    return sources


def _check_file(path: Path, flag: str) -> Source:
    if find_suffix(path) not in READERS:
        raise DataError(
            f"{flag}={path}: files ending in {path.suffix or 'nothing'!r} are not known; "
            f"known are {', '.join(READERS)}"
        )
    if path.stat().st_size == 0:
        raise DataError(f"{flag}={path}: the file is empty (0 bytes)")
    return Source(str(path), "file", flag)


def _describe_near(path: Path) -> str:
    folder = path.parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    if folder != path.parent:
        return f"the folder {path.parent} does not exist either"
    names = [entry.name for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    if near:
        return f"in {folder.resolve()} there is {' or '.join(near)}"
    data = [name for name in names if find_suffix(Path(name)) in READERS][:5]
    return f"{folder.resolve()} holds {', '.join(data) if data else 'no data files'}"


def _load_dataset(source: Source) -> Any:
    """Load a saved or hub data set; of several splits, `train` or the only one."""
    import datasets

    where = f"{source.flag}={source.name}"
    if source.kind == "saved":
        try:
            loaded = datasets.load_from_disk(source.name)
        except (OSError, ValueError) as error:
            raise DataError(f"{where}: the saved data set cannot be opened: {error}") from error
    else:
        try:
            loaded = datasets.load_dataset(source.name)
        except (OSError, ValueError, RuntimeError) as error:
            raise DataError(
                f"{where}: no such file or folder here, and as a hub id it cannot be loaded: "
                f"{type(error).__name__}: {error}"
            ) from error
    if not isinstance(loaded, datasets.DatasetDict):
        return loaded
    splits = list(loaded)
    if "train" not in splits and len(splits) != 1:
        raise DataError(f"{where}: none of its splits ({', '.join(splits)}) is called `train`")
    return loaded["train" if "train" in splits else splits[0]]
