"""Where a name in `--data` leads: files, saved data sets, hub ids, or an error that helps."""

import difflib
import glob
import logging
import os.path
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from bigft.data.readers.dataset import SPLIT, DatasetName
from bigft.data.readers.files import DOCUMENTS, KNOWN_KINDS, READERS, find_suffix
from bigft.data.sources.glue import HUB_ID, check_split, find_glue_task
from bigft.errors import DataError

Place = Path | DatasetName

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.+-]*){1,2}")
_BARE_HUB_ID = re.compile(r"[A-Za-z][\w-]*")
_ABOUT_THE_DATA = ("readme", "license", "licence", "changelog", "contributing")

_logger = logging.getLogger(__name__)


class Search:
    """Finds the places that names lead to, and gathers what is wrong with them."""

    def __init__(self, flag: str) -> None:
        """Remember the setting that holds the names, for error messages."""
        self._flag = flag
        self.problems: list[str] = []
        """What is wrong with single files of a folder or pattern."""

    def find(self, name: str) -> list[Place]:
        """Find the files or data sets of one name, sorted.

        Raises:
            DataError: The name leads nowhere. What is wrong with single files is in `problems`.
        """
        path = _expand(name)
        if _is_dir(path):
            return self._find_in_folder(path)
        if path.is_file():
            return list(self._check([path]))
        base, at, split = name.rpartition("@")
        if at and SPLIT.fullmatch(split) and find_suffix(path) not in READERS:
            return [self._find_split(base, split)]
        if glob.has_magic(name):
            found = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207
            files = [file for file in found if file.is_file()]
            if not files:
                raise self._fail(name, "no file fits this pattern")
            return list(self._check(files))
        return [self._find_on_hub(name)]

    def _find_split(self, base: str, split: str) -> Place:
        path = _expand(base)
        check_split(base, split, self._flag)
        if _is_saved(path):
            return DatasetName(str(path), is_saved=True, split=split)
        if path.exists():
            reason = f"{base} is no data set saved by `datasets` and has no splits; write {base}"
            raise self._fail(f"{base}@{split}", reason)
        return self._find_on_hub(base, split)

    def _find_on_hub(self, name: str, split: str | None = None) -> Place:
        path = _expand(name)
        parts = name.split("/")
        # `org/name` is a mistyped path where `org` is a folder, and `name` where a file is like it.
        if len(parts) == 1:
            is_id = bool(_BARE_HUB_ID.fullmatch(name)) and not _find_near(path)
        else:
            is_id = bool(_HUB_ID.fullmatch(name)) and not _is_dir(Path(parts[0]))
        if "://" in name:
            raise self._fail(name, "addresses are not read; download it, and give the file")
        if not is_id or find_suffix(path) in READERS:
            raise self._fail(name, f"no such file or folder; {_describe_near(path)}")
        if task := find_glue_task(name):
            return DatasetName(HUB_ID, False, task, split)
        return DatasetName("/".join(parts[:2]), False, "/".join(parts[2:]) or None, split)

    def _find_in_folder(self, folder: Path) -> list[Place]:
        if _is_saved(folder):
            return [DatasetName(str(folder), is_saved=True)]
        found = [path for path in _walk(folder) if path.is_dir() or find_suffix(path) in READERS]
        if any(find_suffix(path) not in DOCUMENTS for path in found):
            # Downloaded data come with pages about them, which are no part of the data.
            about = [path for path in found if path.name.lower().startswith(_ABOUT_THE_DATA)]
            about = [path for path in about if find_suffix(path) in DOCUMENTS]
            found = [path for path in found if path not in about]
            if about:
                _logger.info("%s=%s: left out %s", self._flag, folder, ", ".join(map(str, about)))
        if not found:
            reason = (
                f"the folder holds no data; looked for {KNOWN_KINDS}; "
                "and for data sets saved by `datasets`"
            )
            raise self._fail(str(folder), reason)
        return list(self._check(found))

    def _check(self, paths: Iterable[Path]) -> Iterator[Place]:
        for path in paths:
            suffix = find_suffix(path)
            if path.is_dir():
                yield DatasetName(str(path), is_saved=True)
            elif suffix not in READERS:
                ending = path.suffix or "nothing"
                reason = f"files ending in {ending!r} are not known; known are {KNOWN_KINDS}"
                self.problems.append(str(self._fail(str(path), reason)))
            elif path.stat().st_size == 0 and suffix not in DOCUMENTS:
                self.problems.append(str(self._fail(str(path), "the file is empty (0 bytes)")))
            else:
                yield path

    def _fail(self, name: str, reason: str) -> DataError:
        return DataError(f"{self._flag}={name}: {reason}")


def _walk(folder: Path) -> Iterator[Path]:
    """Walk through the files and the saved data sets in a folder, sorted, but for hidden ones."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if not path.is_dir():
            if path.is_file():
                yield path
        elif _is_saved(path):
            yield path
        elif not path.is_symlink():  # One could lead back up, and round and round.
            yield from _walk(path)


def _is_saved(folder: Path) -> bool:
    # `dataset_info.json` alone also stands in folders of other programs.
    names = ("dataset_info.json", "state.json")
    return (folder / "dataset_dict.json").is_file() or all(
        (folder / name).is_file() for name in names
    )


def _describe_near(path: Path) -> str:
    folder = path.parent
    while not _is_dir(folder) and folder != folder.parent:
        folder = folder.parent
    if folder != path.parent:
        return f"the folder {path.parent} does not exist either"
    near = _find_near(path)
    if near:
        return f"in {folder.resolve()} there is {' or '.join(near)}"
    data = [name for name in _list_names(folder) if find_suffix(Path(name)) in READERS][:5]
    return f"{folder.resolve()} holds {', '.join(data) if data else 'no data files'}"


def _find_near(path: Path) -> list[str]:
    return difflib.get_close_matches(path.name, _list_names(path.parent), n=3, cutoff=0.5)


def _list_names(folder: Path) -> list[str]:
    try:
        return sorted(item.name for item in folder.iterdir() if not item.name.startswith("."))
    except OSError:
        return []


def _expand(name: str) -> Path:
    # Unlike Path.expanduser, this leaves the `~` of an unknown user.
    return Path(os.path.expanduser(name))  # noqa: PTH111


def _is_dir(path: Path) -> bool:
    # Unlike Path.is_dir, this is False for names that are too long.
    return os.path.isdir(path)  # noqa: PTH112
