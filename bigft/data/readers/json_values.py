"""JSON files that are read as values: arrays, objects of lists, objects one after another.

Nothing but the element at hand is kept, so that memory does not grow with the file. An object is
looked through once before, to learn which of its lists holds the rows; a file that is one array
is read once.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from bigft.data.readers.compression import open_input
from bigft.data.readers.encoding import BOM
from bigft.data.readers.json_lines import read_json_lines
from bigft.data.readers.json_scanner import JsonScanner
from bigft.data.readers.raw import RawRow, find_flaw, is_writable, make_unreadable
from bigft.errors import DataError

_LIST_KEYS = frozenset(
    ("data", "dataset", "train", "training", "rows", "examples", "instances", "items", "records")
    + ("samples", "entries")
)
"""Keys under which files keep their rows, whatever else stands beside them."""

_TURN_KEYS = frozenset(
    ("messages", "conversations", "conversation", "dialog", "dialogue", "turns", "history")
    + ("tools", "functions", "prompt", "completion", "chosen", "rejected")
)
"""Keys whose lists of objects are a part of one row."""

_START_BYTES = 1 << 20


@dataclass
class _Member:
    """A value of the outermost object."""

    is_list: bool
    length: int = 0
    objects: int = 0
    """How many of its elements are objects."""
    first: Any = None


def read_json_values(path: Path, flag: str) -> Iterator[RawRow]:
    """Read the rows of a JSON file in any of the forms that people give it.

    These are an array of objects; an object with such an array under one key; an object of
    equally long lists, one per column; one object; objects one per line or one after another.

    Raises:
        DataError: The file is none of these, damaged, broken as JSON or has no rows.

    Memory: 1 MiB and the largest element, per column if the file is an object of lists.
    """
    with open_input(path, flag) as file:
        start = file.stream.peek(_START_BYTES)
    if _is_lines(start):
        yield from read_json_lines(path, flag)
        return
    with _open_scanner(path, flag) as scanner:
        match scanner.peek():
            case "":
                raise DataError(f"{flag}={path}: the file is blank")
            case "[":
                yield from _read_list(scanner, str(path))
                if scanner.peek():
                    raise scanner.fail("text behind the end of the array")
                return
            case "{":
                pass
            case other:
                raise scanner.fail(f"neither an array nor an object: it begins with {other!r}")
    yield from _read_object(path, flag)


def _is_lines(start: bytes) -> bool:
    """Whether the first two lines that are not blank are objects, as far as one can see."""
    lines = (line.strip() for line in start.removeprefix(BOM).split(b"\n"))
    first = list(islice(filter(None, lines), 2))
    return len(first) == 2 and all(line[:1] == b"{" and line[-1:] == b"}" for line in first)


def _read_list(scanner: JsonScanner, name: str) -> Iterator[RawRow]:
    is_empty = True
    for _ in scanner.read_elements():
        is_empty = False
        yield _read_row(scanner, name)
    if is_empty:
        raise scanner.fail("the array is empty")


def _read_row(scanner: JsonScanner, name: str) -> RawRow:
    scanner.peek()
    origin = f"{name}:{scanner.line}"
    value, text = scanner.read_value()
    flaw = scanner.find_bad_bytes(text) or find_flaw(value, text)
    return RawRow(make_unreadable(flaw, text) if flaw else value, origin)


def _read_object(path: Path, flag: str) -> Iterator[RawRow]:
    with _open_scanner(path, flag) as scanner:
        members = _survey(scanner)
        is_last = not scanner.peek()
    if is_last and (key := _find_list(members, path, flag)) is not None:
        with _open_list(path, flag, key) as scanner:
            yield from _read_list(scanner, str(path))
    elif is_last and _are_columns(members):
        yield from _read_columns(path, flag, members)
    else:
        with _open_scanner(path, flag) as scanner:
            while scanner.peek():
                yield _read_row(scanner, str(path))


def _survey(scanner: JsonScanner) -> dict[str, _Member]:
    members: dict[str, _Member] = {}
    for key in scanner.read_keys():
        member = _Member(is_list=scanner.peek() == "[")
        if not member.is_list:
            scanner.read_value()
        else:
            for _ in scanner.read_elements():
                value, _text = scanner.read_value()
                member.first = member.first if member.length else value
                member.length += 1
                member.objects += isinstance(value, dict)
        if key in members and (member.is_list or members[key].is_list):
            raise scanner.fail(f"the key {key!r} stands twice in one object")
        members[key] = member
    return members


def _find_list(members: dict[str, _Member], path: Path, flag: str) -> str | None:
    """Find the key whose list holds the rows; None when the object is no such container."""
    lists = [key for key, member in members.items() if member.objects]
    named = [key for key in lists if key.lower() in _LIST_KEYS]
    if "train" in named:
        return "train"
    if len(named) > 1:
        shown = ", ".join(map(repr, named))
        raise DataError(
            f"{flag}={path}: the object holds {len(named)} lists of objects ({shown}); "
            "leave one of them, or call it `train`"
        )
    if named:
        return named[0]
    return lists[0] if len(members) == 1 and lists and not _has_turns(members) else None


def _has_turns(members: dict[str, _Member]) -> bool:
    return any(
        member.objects
        and (
            key.lower() in _TURN_KEYS
            or (isinstance(member.first, dict) and not {"role", "from"}.isdisjoint(member.first))
        )
        for key, member in members.items()
    )


def _are_columns(members: dict[str, _Member]) -> bool:
    are_lists = bool(members) and all(member.is_list for member in members.values())
    return are_lists and not _has_turns(members)


def _read_columns(path: Path, flag: str, members: dict[str, _Member]) -> Iterator[RawRow]:
    lengths = {key: member.length for key, member in members.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{key!r}: {length}" for key, length in lengths.items())
        raise DataError(f"{flag}={path}: the lists of the columns differ in length ({shown})")
    if not any(lengths.values()):
        raise DataError(f"{flag}={path}: the lists of the columns are empty")
    bad = [key for key in members if not is_writable(key)]
    if bad:
        raise DataError(f"{flag}={path}: the name of the column {bad[0]!a} is not UTF-8")
    with ExitStack() as stack:
        # Every column has a reader of its own: only so is no column kept in full.
        scanners = [stack.enter_context(_open_list(path, flag, key)) for key in members]
        for number, _ in enumerate(zip(*(s.read_elements() for s in scanners), strict=True), 1):
            values, texts = zip(*(scanner.read_value() for scanner in scanners), strict=True)
            row, text = dict(zip(members, values, strict=True)), "\n".join(texts)
            flaw = scanners[0].find_bad_bytes(text) or find_flaw(row, text)
            yield RawRow(make_unreadable(flaw, text) if flaw else row, f"{path}, row {number}")


@contextmanager
def _open_list(path: Path, flag: str, name: str) -> Iterator[JsonScanner]:
    """Open the file again, at the list that stands under `name`."""
    with _open_scanner(path, flag) as scanner:
        for key in scanner.read_keys():
            if key == name:
                break
            if scanner.peek() != "[":
                scanner.read_value()
                continue
            for _ in scanner.read_elements():
                scanner.read_value()
        yield scanner


@contextmanager
def _open_scanner(path: Path, flag: str) -> Iterator[JsonScanner]:
    with open_input(path, flag) as file:
        yield JsonScanner(file)
