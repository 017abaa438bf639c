"""A teacher is asked about all rows once, by all ranks, before there is a student in memory."""

import contextlib
import gc
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bigft.data.loading.collate import collate_padded
from bigft.data.store.rows import Rows
from bigft.data.store.store import TokenStore
from bigft.distributed.claim import claimed
from bigft.distributed.collectives import (
    barrier,
    broadcast_object,
    errors_shared,
    gather_on_first,
)
from bigft.distributed.world import World
from bigft.engine.frozen import free_frozen
from bigft.errors import ConfigError, LaunchError, PlanError
from bigft.log import Console
from bigft.tasks.stored import (
    AnswerWriter,
    Numbers,
    Question,
    StoredTeacher,
    compute_answers_digest,
    cut_batches,
    order_rows,
    pack,
)
from bigft.tasks.task import Ask, Forward
from bigft.units import format_bytes, format_seconds

_FLAG = "--task.distillation.logits"
_SECONDS_BETWEEN_LINES = 30.0


def open_answers(
    rows: Rows,
    folder: Path,
    question: Question,
    *,
    teacher: Callable[[], str],
    load: Callable[[], Forward],
    ask: Ask,
    max_tokens: int,
    name: str,
    world: World,
    console: Console,
) -> StoredTeacher:
    """Open a teacher's answers about all rows; ask for those that are missing.

    Args:
        rows: What it is asked about.
        folder: Where answers are kept, seen by all hosts.
        question: What it is asked.
        teacher: Returns the digest of everything that its logits follow from.
        load: Loads it. Collective.
        ask: What it says of a batch.
        max_tokens: Of a rank's batch, with padding.
        name: Of the teacher, for people.
        world: Of this rank.
        console: Says what is done.

    Raises:
        ConfigError: Another run fills the folder, or a host does not see it.
        DataError: What is stored is damaged.
        PlanError: There is no room on the disk.

    Collective: every rank.
    """
    with errors_shared():
        mine = _find(rows, folder, question, teacher) if world.is_rank_zero else []
    folders = [Path(found) for found in broadcast_object(mine)]
    # Of two parts with the same rows, the second has what was asked about the first.
    missing = {
        final: store
        for final, store in zip(folders, rows.stores, strict=True)
        if not broadcast_object(final.is_dir())
    }
    if missing:
        _announce(missing, question, name, console)
        info = {"teacher": name, **asdict(question)}
        _fill_all(missing, question, info, load, ask, max_tokens, world, console)
        # The teacher's modules and hooks refer to each other.
        gc.collect()
    console.say(
        f"{name}: its {question.count} most likely tokens are read from"
        f" {', '.join(map(str, dict.fromkeys(folders)))}; it is not loaded"
    )
    with errors_shared():
        return StoredTeacher(rows, folders, question)


def _fill_all(
    missing: dict[Path, TokenStore],
    question: Question,
    info: dict[str, Any],
    load: Callable[[], Forward],
    ask: Ask,
    max_tokens: int,
    world: World,
    console: Console,
) -> None:
    """Load the teacher, ask, and let go of it. Collective: every rank."""
    forward = load()
    for final, store in missing.items():
        with contextlib.ExitStack() as held:
            with errors_shared():
                if world.is_rank_zero:
                    held.enter_context(_claimed(final))
            if broadcast_object(final.is_dir()):
                continue  # Another run has just finished it.
            writer = _open(final, store, question, world)
            if writer is not None:
                held.callback(writer.close)
            filler = _Filler(store, forward, ask, writer, max_tokens, world, console)
            filler.fill()
            with errors_shared():
                if writer is not None:
                    writer.finish(final, {**info, "learned_tokens": filler.num_tokens})
    free_frozen(forward)
    barrier()


class _Filler:
    """Asks about the rows of one store that are not yet written."""

    def __init__(
        self,
        store: TokenStore,
        forward: Forward,
        ask: Ask,
        writer: AnswerWriter | None,
        max_tokens: int,
        world: World,
        console: Console,
    ) -> None:
        self._store = store
        self._forward = forward
        self._ask = ask
        self._writer = writer
        self._max_tokens = max_tokens
        self._world = world
        self._console = console
        self.num_tokens = int(store.supervised_counts.sum())

    def fill(self) -> None:
        first = broadcast_object(self._writer.rows if self._writer is not None else 0)
        order = order_rows(self._store)[first:]
        if first:
            self._console.say(f"{first:,} of {len(self._store):,} rows are there already")
        cuts = cut_batches(self._store.lengths[order], self._max_tokens)
        started = said = time.monotonic()
        for number in range(0, len(cuts), self._world.size):
            these = [order[cut] for cut in cuts[number : number + self._world.size]]
            # Ranks without rows take part all the same: stage 3 gathers the layers on all.
            these += [order[:0]] * (self._world.size - len(these))
            answers = gather_on_first(self._answer(these[self._world.rank]))
            done = cuts[min(number + self._world.size, len(cuts)) - 1].stop
            with errors_shared():
                if self._writer is not None:
                    for rows, records in zip(these, answers, strict=True):
                        self._writer.write(rows, records)
                    self._writer.advance(first + done)
            now = time.monotonic()
            if now - said > _SECONDS_BETWEEN_LINES:
                said, left = now, (now - started) * (len(order) - done) / done
                self._console.say(
                    f"asked about {first + done:,} of {len(self._store):,} rows,"
                    f" {format_seconds(left)} left"
                )

    def _answer(self, rows: Numbers) -> Any:
        items = [[self._store.load_row(number)] for number in rows.tolist()] or [[]]
        # Each row alone in its sequence: no neighbour can show through, whatever the model.
        batch = collate_padded(items, pad_id=0, max_length=self._max_tokens)
        return pack(self._ask(self._forward, batch.to(self._world.device)))


def _find(rows: Rows, folder: Path, question: Question, teacher: Callable[[], str]) -> list[str]:
    digest = teacher()
    return [str(folder / compute_answers_digest(question, digest, store)) for store in rows.stores]


def _announce(
    missing: dict[Path, TokenStore], question: Question, name: str, console: Console
) -> None:
    tokens = sum(int(store.supervised_counts.sum()) for store in missing.values())
    size = question.record.itemsize
    console.say(
        f"{name} is asked for its {question.count} most likely tokens at {tokens:,} learned tokens:"
        f" {size} bytes each, {format_bytes(size * tokens)} in {next(iter(missing)).parent}"
    )


@contextlib.contextmanager
def _claimed(final: Path) -> Iterator[None]:
    """Keep other runs from asking the same."""
    with contextlib.ExitStack() as held:
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(claimed(final.parent, f".{final.name}.lock"))
        except LaunchError as error:
            raise ConfigError(
                f"{_FLAG} {final.parent}: another run is asking this teacher about the same data;"
                " wait for it, or name another folder"
            ) from error
        except OSError as error:
            raise ConfigError(
                f"{_FLAG} {final.parent}: cannot be written ({error.strerror}); name another folder"
            ) from error
        yield


def _open(final: Path, store: TokenStore, question: Question, world: World) -> AnswerWriter | None:
    """Open the unfinished folder on rank 0; every host has to see it."""
    unfinished = final.with_name(f".unfinished-{final.name}")
    writer = None
    with errors_shared():
        if world.is_rank_zero:
            writer = _reserve(unfinished, store, question)
    with errors_shared():
        if not unfinished.is_dir():
            raise ConfigError(
                f"{_FLAG} {final.parent}: this host does not see what rank 0 wrote there; name a"
                " folder that all hosts share"
            )
    return writer


def _reserve(unfinished: Path, store: TokenStore, question: Question) -> AnswerWriter:
    try:
        return AnswerWriter(unfinished, store, question)
    except OSError as error:
        size = question.record.itemsize * int(store.supervised_counts.sum())
        free = shutil.disk_usage(unfinished.parent).free
        if not (unfinished / "progress.json").is_file():
            shutil.rmtree(unfinished, ignore_errors=True)
        raise PlanError(
            f"{_FLAG} {unfinished.parent}: {format_bytes(size)} are needed and cannot be had"
            f" ({error.strerror}; {format_bytes(free)} free); name a folder on a larger disk, or a"
            f" smaller --task.distillation.top_k than {question.count}"
        ) from error
