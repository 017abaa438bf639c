"""What strace saw of a process: the calls that change a folder, with their times."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Everything with a path or a descriptor, so that no call is left out unseen.
OPTIONS = ("-f", "-ff", "-y", "-ttt", "-T", "-s", "4096", "-e", "trace=%file,%desc")

_LINE = re.compile(r"(\d+\.\d+) (\w+)\((.*)\)\s+= (-?\d+)(?:<.*>)?(?: .*)? <(\d+\.\d+)>$")
_PATH = re.compile(r'"((?:[^"\\]|\\.)*)"')
_DESCRIPTOR = re.compile(r"\d+<([^>]*)>")

# Calls that change nothing on a disk.
_READING = frozenset(
    "read pread64 readlink readlinkat stat lstat fstat newfstatat statx access faccessat faccessat2"
    " statfs fstatfs getdents64 lseek fcntl ioctl close getcwd dup mmap".split()
)


@dataclass(frozen=True)
class Event:
    """One call that succeeded."""

    start: float
    end: float
    name: str
    """As in `calls.py`."""
    path: str
    target: str = ""
    """Second path of a rename."""


def read_events(trace: Path, below: Path) -> list[Event]:
    """Read the calls of one process that change something in or below a folder.

    Raises:
        AssertionError: There is one of a kind that this does not know.
    """
    events = []
    for line in trace.read_text(errors="replace").splitlines():
        match = _LINE.match(line)
        if not match or int(match[4]) < 0:
            continue
        start, name, words, _, seconds = match.groups()
        paths = _find_paths(name, words)
        if not any(path.startswith(str(below)) for path in paths) or name in _READING:
            continue
        if name == "openat" and "O_CREAT" not in words and "O_WRONLY" not in words:
            continue
        begin = float(start)
        events.append(Event(begin, begin + float(seconds), _name(name, words), *paths[:2]))
    return events


def _find_paths(name: str, words: str) -> list[str]:
    folders = _DESCRIPTOR.findall(words)
    paths = _PATH.findall(words)
    if name in ("write", "pwrite64") or not paths:
        return [folder.removesuffix(" (deleted)") for folder in folders[:1]]
    if name in ("unlinkat", "openat", "mkdirat") and not paths[0].startswith("/") and folders:
        return [f"{folders[0]}/{paths[0]}"]
    return paths


def _name(name: str, words: str) -> str:
    if name == "unlinkat":
        return "rmdir" if "AT_REMOVEDIR" in words else "unlink"
    if name == "renameat2":
        return "exchange" if "RENAME_EXCHANGE" in words else "rename"
    known = {"openat": "open", "pwrite64": "pwrite", "renameat": "rename", "mkdirat": "mkdir"}
    short = known.get(name, name)
    assert short in ("open write pwrite ftruncate fsync rename mkdir rmdir unlink".split()), (
        f"{name}({words}) changes a checkpoint and is not counted"
    )
    return short


def explain_order(events: Sequence[Event], checkpoints: Path, board: Path) -> list[str]:
    """Say what a power cut could take away: calls of all writers that come in a wrong order.

    Everything that a checkpoint consists of is on disk before it gets its name; the name is on disk
    before anybody hears of it, and before `latest` and rotation.
    """
    commits = [
        event
        for event in events
        if event.name in ("rename", "exchange")
        and "/.tmp-step" in event.path
        and re.fullmatch(r".*/step_\d{8}", event.target)
    ]
    if len(commits) != 1:
        return [f"{len(commits)} commits"]
    commit = commits[0]
    problems = _explain_content(events, commit)
    synced = [
        event
        for event in events
        if event.name == "fsync" and event.path == str(checkpoints) and event.start >= commit.end
    ]
    if not synced:
        return [*problems, "the name of the checkpoint is not put on disk"]
    durable = min(event.end for event in synced)
    latest = [event for event in events if event.target == str(checkpoints / "latest")]
    told = [event for event in events if event.target.startswith(str(board))]
    told = [event for event in told if event.target.endswith("outcome")]
    # What is cleared at the start was left aside by others.
    moved = [event for event in events if re.search(r"/step_\d{8}$", event.path)]
    moved = [event for event in moved if "/.tmp-trash" in event.target]
    deleted = [event for event in events if event.name == "unlink" and event.start > commit.start]
    for what, later in (("latest", latest), ("announced", told), ("rotated", moved + deleted)):
        problems += [f"{what} before the name is on disk" for e in later if e.start < durable]
    if len(latest) != 1 or len(told) != 1:
        problems.append(f"latest was replaced {len(latest)} times, told {len(told)} times")
    content = [event for event in events if event.path == str(checkpoints / ".tmp-latest")]
    fsyncs = [event for event in content if event.name == "fsync"]
    writes = [event for event in content if event.name == "write"]
    if latest and not (fsyncs and writes[-1].end <= fsyncs[-1].start <= latest[0].start):
        problems.append("latest is replaced before its content is on disk")
    return problems


def _explain_content(events: Sequence[Event], commit: Event) -> list[str]:
    """Files and folders of the new checkpoint that are not on disk when it gets its name."""
    inside = [event for event in events if f"{event.path}/".startswith(f"{commit.path}/")]
    inside = [event for event in inside if event.start < commit.start]
    problems = []
    files = {event.path for event in inside if event.name == "open"}
    folders = {event.path for event in inside if event.name == "mkdir"}
    for path in sorted(files):
        written = max(e.end for e in inside if e.path == path and e.name in ("open", "write"))
        if not _is_synced(inside, path, written, commit.start):
            problems.append(f"the content of {Path(path).name} is not on disk")
    for path in sorted(folders):
        made = [e for e in inside if e.name in ("open", "mkdir")]
        names = [e.end for e in made if str(Path(e.path).parent) == path]
        if not _is_synced(inside, path, max(names, default=0.0), commit.start):
            problems.append(f"the names in {Path(path).name} are not on disk")
    if len(files) != 8 or len(folders) != 3:
        problems.append(f"{len(files)} files and {len(folders)} folders")
    return problems


def _is_synced(events: Sequence[Event], path: str, after: float, before: float) -> bool:
    return any(
        event.name == "fsync"
        and event.path == path
        and after <= event.start
        and event.end <= before
        for event in events
    )
