"""Ranks with disks of their own look for a checkpoint; threads play the ranks."""

import contextlib
import threading
from pathlib import Path
from typing import Any

import pytest

from bigft.checkpoint import resume_apart
from bigft.checkpoint.elsewhere import PartsElsewhereError
from bigft.checkpoint.files import FileRecord, hash_file
from bigft.checkpoint.manifest import format_manifest
from bigft.checkpoint.resume_apart import Finder
from bigft.checkpoint.storages import Storages
from bigft.errors import BigftError


class Together:
    """Collectives of threads."""

    def __init__(self, count: int) -> None:
        self.values: list[Any] = [None] * count
        self.barrier = threading.Barrier(count, timeout=10)
        self.here = threading.local()

    def gather(self, value: Any) -> list[Any]:
        self.values[self.here.rank] = value
        self.barrier.wait()
        found = list(self.values)
        self.barrier.wait()
        return found

    def broadcast(self, value: Any, source: int = 0) -> Any:
        return self.gather(value)[source]

    @contextlib.contextmanager
    def share(self):
        error = None
        try:
            yield
        except BigftError as caught:
            error = caught
        if found := next(filter(None, self.gather(error)), None):
            raise found

    def run(self, storages: Storages, folders: list[Path]) -> list[Any]:
        results: list[Any] = [None] * len(folders)

        def find(rank: int) -> None:
            self.here.rank = rank
            try:
                results[rank] = Finder(rank, storages).find_auto(folders[rank])
            except Exception as error:  # noqa: BLE001
                results[rank] = error

        threads = [threading.Thread(target=find, args=(rank,)) for rank in range(len(folders))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


@pytest.fixture
def together(monkeypatch):
    made = Together(2)
    monkeypatch.setattr(resume_apart, "gather_objects", made.gather)
    monkeypatch.setattr(resume_apart, "broadcast_object", made.broadcast)
    monkeypatch.setattr(resume_apart, "errors_shared", made.share)
    return made


def save(folders: dict[str, Path], names: dict[str, str], step: int) -> None:
    """Save on three hosts, each of which writes one file; not all of them are looked at."""
    hosts = ("w1", "w2", "w3")
    for host, folder in folders.items():
        path = folder / names[host] / f"state/{host}"
        path.parent.mkdir(parents=True)
        path.write_text("x")
    digest = hash_file(path)
    records = [FileRecord(f"state/{host}", 1, digest) for host in hosts]
    parts = [{"hosts": [host], "path": "/run", "files": [f"state/{host}"]} for host in hosts]
    text = format_manifest({"step": step, "sequence": step, "storages": parts}, records)
    for host, folder in folders.items():
        (folder / names[host] / "manifest.json").write_text(text)


def test_a_commit_that_a_crash_left_half_named_is_read_where_it_has_its_name(together, tmp_path):
    """The first storage has only prepared it; the host that is missing is named all the same."""
    folders = {"w2": tmp_path / "w2", "w1": tmp_path / "w1"}
    save(folders, {"w2": ".tmp-step_00000007-x", "w1": "step_00000007"}, 7)
    results = together.run(Storages((0, 1), ("w2", "w1")), list(folders.values()))
    for error in results:
        assert isinstance(error, PartsElsewhereError)
        assert "state/w3 on w3 in /run" in str(error)
