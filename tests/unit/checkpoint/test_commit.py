"""Saves of four ranks, here threads of one process; kills and errors are in `tests/faults`."""

import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from bigft.checkpoint.commit import write_checkpoint
from bigft.checkpoint.content import verify_files
from bigft.checkpoint.files import Files
from bigft.checkpoint.folder import clean_up
from bigft.checkpoint.manifest import find_committed, list_files, read_manifest
from bigft.distributed.board import LocalBoard
from bigft.distributed.claim import claimed
from bigft.errors import CheckpointError

Writer = Callable[[Files, int], None]


def write_shard(files: Files, rank: int) -> None:
    with files.create(f"state/rank_{rank:05d}.safetensors") as file:
        file.write(b"x" * (rank + 1))


def save(checkpoints: Path, step: int = 5, write: Writer = write_shard, **kwargs):
    """Results of the ranks, in order: a folder, or what was raised."""
    settings = {
        "facts": {},
        "world_size": 4,
        "board": LocalBoard(),
        "timeout_seconds": 20,
        "keep_last": 2,
        "protected": None,
        "save_id": "id",
    }
    settings |= kwargs
    ranks = settings.pop("ranks", range(settings["world_size"]))
    results = {}

    def run(rank: int) -> None:
        try:
            results[rank] = write_checkpoint(
                checkpoints, step=step, write=lambda f: write(f, rank), rank=rank, **settings
            )
        except BaseException as error:  # noqa: BLE001
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[rank] for rank in ranks]


def failure(results) -> str:
    """The one text that all ranks raised."""
    assert all(isinstance(result, CheckpointError) for result in results), results
    assert all(result.is_shared for result in results)
    (text,) = {str(result) for result in results}
    assert "Older checkpoints are untouched" in text
    return text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def test_files_of_all_ranks_are_committed_together(tmp_path: Path):
    checkpoints = tmp_path / "run/checkpoints"
    facts = {"tokens": 12, "state": {"epoch": 0.5}, "eval_loss": float("nan"), "step": 99}
    folder = checkpoints / "step_00000005"
    assert save(checkpoints, facts=facts) == [folder] * 4
    manifest = read_manifest(folder)
    verify_files(folder, manifest)
    assert (manifest["step"], manifest["tokens"], manifest["state"]) == (5, 12, {"epoch": 0.5})
    assert manifest["sequence"] == 1
    assert [(entry.path, entry.size) for entry in list_files(manifest)] == [
        (f"state/rank_{rank:05d}.safetensors", rank + 1) for rank in range(4)
    ]
    assert names(checkpoints) == ["latest", "step_00000005"]
    assert (checkpoints / "latest").read_text() == "step_00000005\n"


def test_one_rank_saves_without_others(tmp_path: Path):
    assert save(tmp_path, world_size=1) == [tmp_path / "step_00000005"]
    assert len(read_manifest(tmp_path / "step_00000005")["files"]) == 1


def test_the_best_is_named_and_kept_beside_the_newest(tmp_path: Path):
    best = tmp_path / "step_00000020"
    for number, step in enumerate((10, 20, 30, 40)):
        save(tmp_path, step, keep_last=1, save_id=f"{number}", best=best if step >= 20 else None)
    assert names(tmp_path) == ["best", "latest", "step_00000020", "step_00000040"]
    assert (tmp_path / "best").read_text() == "step_00000020\n"
    # One of another run's folder is not named in this one.
    save(tmp_path, 50, keep_last=1, best=tmp_path.parent / "step_00000001")
    assert names(tmp_path) == ["best", "latest", "step_00000050"]
    assert (tmp_path / "best").read_text() == "step_00000020\n"


def test_newest_checkpoints_are_kept_in_the_order_of_their_commits(tmp_path: Path):
    """A run that went back to step 10 leaves the steps of the course it has left behind."""
    for number, step in enumerate((10, 20, 30)):
        save(tmp_path, step, keep_last=9, save_id=f"{number}")
    save(tmp_path, 15, keep_last=2, protected=tmp_path / "step_00000010")
    assert names(tmp_path) == ["latest", *(f"step_000000{n}" for n in (10, 15, 30))]
    save(tmp_path, 17, keep_last=2, protected=Path(os.path.relpath(tmp_path / "step_00000010")))
    assert [path.name for path in find_committed(tmp_path)] == [
        "step_00000010",
        "step_00000015",
        "step_00000017",
    ]


def test_damaged_checkpoint_is_neither_counted_nor_removed(tmp_path: Path):
    for step in (1, 2, 3):
        save(tmp_path, step, keep_last=9, save_id=f"{step}")
    (tmp_path / "step_00000002/state/rank_00001.safetensors").unlink()
    save(tmp_path, 4, keep_last=2)
    assert names(tmp_path) == ["latest", "step_00000002", "step_00000003", "step_00000004"]


@pytest.mark.parametrize("has_exchange", [True, False])
def test_same_step_again_replaces_the_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_exchange: bool
):
    if not has_exchange:
        monkeypatch.setattr("bigft.checkpoint.folder.exchange", lambda first, second: False)
    save(tmp_path, facts={"course": 1})
    save(tmp_path, facts={"course": 2}, save_id="other")
    manifest = read_manifest(tmp_path / "step_00000005")
    assert (manifest["course"], manifest["sequence"]) == (2, 2)
    assert names(tmp_path) == ["latest", "step_00000005"]


def test_same_step_keeps_a_damaged_one_aside(tmp_path: Path):
    save(tmp_path)
    (tmp_path / "step_00000005/manifest.json").write_text("damaged")
    save(tmp_path, save_id="other")
    assert names(tmp_path) == ["damaged-step_00000005", "latest", "step_00000005"]
    read_manifest(tmp_path / "step_00000005")


def test_rank_that_never_answers_is_named(tmp_path: Path):
    save(tmp_path, 1)
    results = save(tmp_path, 2, ranks=(0, 2), timeout_seconds=0.3)
    assert "ranks 1, 3 did not report within 0.3 s" in failure(results)
    assert names(tmp_path) == ["latest", "step_00000001"]


def test_rank_zero_that_never_answers_is_named(tmp_path: Path):
    results = save(tmp_path, ranks=(1, 2), timeout_seconds=0.2)
    for rank, error in zip((1, 2), results, strict=True):
        assert isinstance(error, CheckpointError)
        assert f"rank 0 did not answer rank {rank} within 0.2 s" in str(error)
        # Nobody else says it: rank 0 is gone.
        assert error.is_local
        assert not error.is_shared


def test_errors_of_several_ranks_are_told_together(tmp_path: Path):
    def write(files: Files, rank: int) -> None:
        if rank:
            raise OSError(28, "No space left on device", str(files.folder / f"{rank}"))
        write_shard(files, rank)

    text = failure(save(tmp_path, write=write))
    assert all(f"rank {rank}: " in text for rank in (1, 2, 3))
    assert "No space left on device (errno 28)" in text
    assert "free there" in text
    assert names(tmp_path) == []


def test_error_of_bigft_is_told_in_its_own_words(tmp_path: Path):
    def write(files: Files, rank: int) -> None:
        if rank == 2:
            raise CheckpointError("swap file 7 is gone")
        write_shard(files, rank)

    assert "(rank 2: swap file 7 is gone)" in failure(save(tmp_path, write=write))


@pytest.mark.parametrize("rank", [0, 2])
def test_bug_keeps_its_traceback_and_the_others_hear_of_it(tmp_path: Path, rank: int):
    def write(files: Files, mine: int) -> None:
        if mine == rank:
            raise ZeroDivisionError("oh")
        write_shard(files, mine)

    results = save(tmp_path, write=write)
    assert isinstance(results.pop(rank), ZeroDivisionError)
    assert f"rank {rank}: ZeroDivisionError: oh" in failure(results)
    assert names(tmp_path) == []


def test_two_ranks_cannot_write_one_file(tmp_path: Path):
    def write(files: Files, rank: int) -> None:
        with files.create("state/one" if rank in (1, 3) else f"state/{rank}") as file:
            file.write(b"x")

    assert "state/one: File exists" in failure(save(tmp_path, write=write))


def test_file_adopted_twice_or_left_unrecorded_is_an_error(tmp_path: Path):
    def adopt_all(files: Files, rank: int) -> None:
        write_shard(files, rank)
        if rank == 0:
            files.adopt("state/rank_00000.safetensors")

    def forget(files: Files, rank: int) -> None:
        write_shard(files, rank)
        (files.folder / "state/forgotten").write_text("x")

    text = failure(save(tmp_path, write=adopt_all))
    assert "state/rank_00000.safetensors was written twice" in text
    text = failure(save(tmp_path, write=forget))
    assert "state/forgotten: not of this checkpoint" in text


def test_manifest_belongs_to_rank_zero(tmp_path: Path):
    def write(files: Files, rank: int) -> None:
        with files.create("manifest.json" if rank == 1 else f"state/{rank}") as file:
            file.write(b"{}")

    assert "manifest.json was written twice" in failure(save(tmp_path, write=write))


def test_file_that_rank_zero_does_not_see_is_an_error(tmp_path: Path):
    """Hosts with a disk of their own each write into a folder of their own."""

    def write(files: Files, rank: int) -> None:
        write_shard(files, rank)
        if rank == 3:
            (files.folder / "state/rank_00003.safetensors").unlink()

    text = failure(save(tmp_path, write=write))
    assert "rank_00003.safetensors: missing" in text


def test_folder_that_is_not_shared_is_named(tmp_path: Path):
    board = LocalBoard()
    arguments = {
        "step": 5,
        "facts": {},
        "world_size": 2,
        "board": board,
        "timeout_seconds": 5,
        "keep_last": 1,
        "protected": None,
        "save_id": "id",
    }
    errors = []

    def run(rank: int) -> None:
        try:
            write_checkpoint(tmp_path / f"host{rank}", rank=rank, write=lambda f: None, **arguments)
        except CheckpointError as error:
            errors.append(str(error))

    other = threading.Thread(target=run, args=(1,))
    other.start()
    run(0)
    other.join()
    assert len(errors) == 2
    assert all("is not there on this host" in text for text in errors)
    assert all("--output_dir" in text for text in errors)


def test_second_save_in_the_same_folder_is_refused(tmp_path: Path):
    """A save under way is not taken for debris."""
    begun, may_end = threading.Event(), threading.Event()

    def wait(files: Files, rank: int) -> None:
        write_shard(files, rank)
        begun.set()
        may_end.wait(20)

    results = []
    first = threading.Thread(target=lambda: results.extend(save(tmp_path, 1, wait)))
    first.start()
    begun.wait(20)
    text = failure(save(tmp_path, 2, save_id="second"))
    may_end.set()
    first.join()
    assert f"{tmp_path}: already in use by this process" in text
    assert results == [tmp_path / "step_00000001"] * 4
    assert names(tmp_path) == ["latest", "step_00000001"]


def test_clean_up_leaves_nothing_of_a_crash(tmp_path: Path):
    save(tmp_path, 1, keep_last=9)
    save(tmp_path, 2, keep_last=9)
    (tmp_path / "step_00000001").rename(tmp_path / ".aside-step_00000001")
    (tmp_path / ".tmp-step_00000003-x/state").mkdir(parents=True)
    (tmp_path / ".tmp-latest").write_text("half")
    (tmp_path / ".tmp-link").symlink_to(tmp_path / "step_00000002")
    (tmp_path / ".aside-step_00000002").mkdir()
    clean_up(tmp_path)
    assert names(tmp_path) == ["latest", "step_00000001", "step_00000002"]
    assert len(find_committed(tmp_path)) == 2
    clean_up(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_clean_up_waits_for_nobody(tmp_path: Path):
    (tmp_path / ".tmp-step_00000003-x").mkdir()
    with claimed(tmp_path), pytest.raises(Exception, match="already in use"):
        clean_up(tmp_path)
    assert (tmp_path / ".tmp-step_00000003-x").is_dir()


def test_clean_up_that_fails_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(path: Path) -> None:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr("bigft.checkpoint.folder.sync", refuse)
    with pytest.raises(CheckpointError, match=f"{tmp_path}: .*Input/output error"):
        clean_up(tmp_path)


@pytest.mark.parametrize("save_id", ["", "a/b", "../x", "-x", "a b", "x" * 65])
def test_save_id_is_part_of_a_name(tmp_path: Path, save_id: str):
    with pytest.raises(ValueError, match="save_id"):
        write_checkpoint(
            tmp_path,
            step=1,
            facts={},
            write=lambda files: None,
            rank=0,
            world_size=1,
            board=LocalBoard(),
            timeout_seconds=1,
            keep_last=1,
            protected=None,
            save_id=save_id,
        )


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o027, 0o077])
def test_permissions_follow_the_umask(tmp_path: Path, umask: int):
    before = os.umask(umask)
    try:
        results = save(tmp_path / "run/checkpoints", keep_last=1)
    finally:
        os.umask(before)
    assert results == [tmp_path / "run/checkpoints/step_00000005"] * 4
    modes = {
        path.relative_to(tmp_path): stat.S_IMODE(path.stat().st_mode)
        for path in tmp_path.rglob("*")
    }
    assert len(modes) == 11
    for path, mode in modes.items():
        wanted = 0o777 if (tmp_path / path).is_dir() else 0o666
        assert mode == wanted & ~umask, path


def test_links_in_a_folder_that_others_may_write_to_are_not_followed(tmp_path: Path):
    """What another user put under the names that a save takes is removed, replaced or refused."""
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir(mode=0o777)
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("precious")
    (checkpoints / "latest").symlink_to(victim / "file")
    (checkpoints / ".tmp-latest").symlink_to(victim / "file")
    (checkpoints / ".tmp-step_00000005-id").symlink_to(victim)
    assert save(checkpoints) == [checkpoints / "step_00000005"] * 4
    (checkpoints / ".lock").unlink()
    (checkpoints / ".lock").symlink_to(victim / "file")
    assert ".lock" in failure(save(checkpoints, 6))
    assert (victim / "file").read_text() == "precious"
    assert names(victim) == ["file"]
    assert not (checkpoints / "latest").is_symlink()
