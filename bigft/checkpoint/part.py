"""One save as each rank sees it: what it writes, what it says about that, what went wrong."""

import contextlib
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bigft.checkpoint.agree import Ranks, join_problems, shared_error
from bigft.checkpoint.files import FileRecord, Files
from bigft.checkpoint.manifest import MANIFEST_NAME
from bigft.checkpoint.pace import Written
from bigft.errors import BigftError, CheckpointError
from bigft.units import format_bytes

_UNTOUCHED = "Older checkpoints are untouched"
_UNSETTLED = (
    "Older checkpoints are untouched; this one may be there all the same: the next save or start"
    " finds out"
)


@dataclass(frozen=True)
class Save:
    """One save, seen from one rank."""

    ranks: Ranks
    checkpoints: Path
    final: Path
    partial: Path
    write: Callable[[Files], None]
    best: Path | None = None
    """The run's best checkpoint, which may be this one."""

    heard: Callable[[list[Written]], None] | None = None
    """Called on rank 0 with what all ranks have written."""

    def explain(self, problems: list[str], *, is_decided: bool = False) -> str:
        """Put the problems of some ranks into the words that every rank raises.

        Args:
            problems: Of these ranks.
            is_decided: Whether the checkpoint has its name on a storage.
        """
        rest = _UNSETTLED if is_decided else _UNTOUCHED
        return f"{self.final}: the checkpoint was not saved ({join_problems(problems)}). {rest}"


@dataclass
class Part:
    """What one rank has to say after it wrote its files."""

    records: list[FileRecord] = field(default_factory=list)
    problem: str = ""
    bug: BaseException | None = None
    seconds: float = 0.0
    """From the first byte until all is on the disk."""

    @property
    def written(self) -> Written:
        """How much that was, and how long it took."""
        return Written(self.seconds, sum(entry.size for entry in self.records))

    def to_text(self) -> str:
        """Return the message that `from_text` reads."""
        files = [asdict(entry) for entry in self.records]
        return json.dumps({"problem": self.problem, "files": files, "seconds": self.seconds})

    @classmethod
    def from_text(cls, text: str) -> "Part":
        """Read the message of another rank."""
        found = json.loads(text)
        files = [FileRecord(**entry) for entry in found["files"]]
        return cls(files, found["problem"], seconds=found["seconds"])


def write_part(save: Save) -> Part:
    """Write this rank's files. The others wait for its report: it never raises."""
    files = Files(save.partial)
    started = time.monotonic()
    try:
        if not save.partial.is_dir():
            raise CheckpointError(
                f"{save.partial} was made and is not there on this host: the disk under"
                " --output_dir is another one than at the start of the run. Start it again"
            )
        save.write(files)
        files.sync_folders()
    except (OSError, BigftError) as error:
        return Part(problem=explain(error, save))
    except BaseException as error:  # noqa: BLE001 (raised again once the others know)
        return Part(problem=explain(error, save), bug=error)
    return Part(files.records, seconds=time.monotonic() - started)


def agree(save: Save, mine: Part) -> list[list[FileRecord]]:
    """Collect the reports of all ranks: the files of each, or the error of all."""
    reports, problems = save.ranks.collect("part")
    if mine.bug:
        raise mine.bug
    parts = [mine, *map(Part.from_text, reports)]
    problems += [part.problem for part in parts if part.problem]
    records = [entry for part in parts for entry in part.records]
    counts = Counter([MANIFEST_NAME, *(entry.path for entry in records)])
    problems += [f"{name} was written twice" for name, count in counts.items() if count > 1]
    if problems:
        raise shared_error(save.explain(problems))
    if save.heard is not None:
        save.heard([part.written for part in parts])
    return [part.records for part in parts]


@contextlib.contextmanager
def silence_explained(save: Save) -> Iterator[None]:
    """Turn a wait that was in vain into an error that this rank has to say itself."""
    try:
        yield
    except CheckpointError as error:
        if error.is_shared:
            raise
        silence = CheckpointError(save.explain([str(error)]))
        silence.is_local = True
        raise silence from error


def explain(error: BaseException, save: Save) -> str:
    """Say what failed, on which rank and where, and how much space there is."""
    if isinstance(error, OSError):
        place = error.filename or save.checkpoints
        text = f"{place}: {error.strerror or error} (errno {error.errno}), {_free(save)}"
    elif isinstance(error, BigftError):
        text = str(error)
    else:
        text = f"{type(error).__name__}: {error}"
    return f"rank {save.ranks.rank}: {text}"


def _free(save: Save) -> str:
    try:
        parents = (save.checkpoints, *save.checkpoints.parents)
        folder = next(path for path in parents if path.exists())
        return f"{format_bytes(shutil.disk_usage(folder).free)} free there"
    except (OSError, StopIteration):
        return "free space unknown"
