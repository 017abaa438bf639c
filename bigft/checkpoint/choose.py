"""Choose the newest checkpoint that is whole, and set aside the damaged ones before it."""

from collections.abc import Callable, Sequence
from pathlib import Path

from bigft.checkpoint.manifest import set_aside
from bigft.errors import CheckpointError


def choose_whole(
    candidates: Sequence[Path], check: Callable[[Path], str | None], *, is_rank_zero: bool
) -> tuple[Path | None, list[str]]:
    """Return the first whole candidate, or None if there is none at all, and what is to be said.

    Damaged ones are renamed only once a whole one is found: a run whose checkpoints are all damaged
    must not start anew at its second try because nothing is left under its old name.

    Args:
        candidates: What `find_candidates` lists, the same on every rank.
        check: Says what is wrong with a folder, or None; the same answer on every rank.
        is_rank_zero: Whether this rank renames.

    Raises:
        CheckpointError: There are candidates, and all are damaged. They stay as they are.
        OSError: A damaged one cannot be renamed.

    Collective: every rank, if `check` is.
    """
    damaged: list[tuple[Path, str]] = []
    for candidate in candidates:
        problem = check(candidate)
        if problem is None:
            return candidate, [_put_away(*pair, is_rank_zero=is_rank_zero) for pair in damaged]
        damaged.append((candidate, problem))
    if damaged:
        problems = "\n".join(problem for _, problem in damaged)
        raise CheckpointError(
            f"{problems}\nno checkpoint in {damaged[0][0].parent} is whole; mend one from a copy,"
            " or start anew with --resume never"
        )
    return None, []


def _put_away(folder: Path, problem: str, *, is_rank_zero: bool) -> str:
    kept = f" It is kept as {set_aside(folder).name}." if is_rank_zero else ""
    return f"warning: {problem}.{kept} The checkpoint before it is used"
