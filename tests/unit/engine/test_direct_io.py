"""Ranges of files past the page cache: what was written is what is read, or an error."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from bigft.engine import direct_io
from bigft.engine.direct_io import ALIGNMENT, DirectIO, allocate, round_up

SIZES = [1, 4095, 4096, 4097, 3 * 4096, (8 << 20) + 5000, 17 << 20]


@pytest.fixture
def files() -> DirectIO:
    return DirectIO()


def wait(futures) -> None:
    for future in futures:
        future.result()


def fill(size: int, seed: int = 0) -> np.ndarray:
    data = allocate(size)
    data[:] = np.random.default_rng(seed).integers(0, 256, size, np.uint8)
    return data


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("position", [0, 4096, 1000])
@pytest.mark.parametrize("shift", [0, 8])
def test_what_was_written_is_read(files, tmp_path, size, position, shift):
    path, data = tmp_path / "file", fill(size + shift)[shift:]
    path.write_bytes(b"\xab" * position)
    wait(files.write(path, position, data))
    assert path.read_bytes() == b"\xab" * position + data.tobytes()
    found = allocate(size + shift)[shift:]
    wait(files.read(path, position, found))
    assert np.array_equal(found, data)
    assert (files.bytes_written, files.bytes_read) == (size, size)


def test_neighbours_keep_what_they_have(files, tmp_path):
    """Also where they share a page."""
    path, whole = tmp_path / "file", fill(50_000)
    wait(files.write(path, 0, whole))
    part = fill(9_001, seed=1)
    wait(files.write(path, 12_288, part))
    expected = whole.copy()
    expected[12_288 : 12_288 + len(part)] = part
    assert path.read_bytes() == expected.tobytes()


@pytest.mark.parametrize("at", [0, 5_000_000, (8 << 20) + 17])
def test_one_flipped_bit_is_found(files, tmp_path, at):
    path, data = tmp_path / "file", fill(9 << 20)
    wait(files.write(path, 0, data))
    with path.open("r+b") as file:
        file.seek(at)
        file.write(bytes([data[at] ^ 4]))
    with pytest.raises(OSError, match="not what was written") as caught:
        wait(files.read(path, 0, data))
    assert caught.value.filename == str(path)


def test_a_file_that_was_cut_is_found(files, tmp_path):
    path, data = tmp_path / "file", fill(9 << 20)
    wait(files.write(path, 0, data))
    os.truncate(path, 4 << 20)
    with pytest.raises(OSError, match="shorter than what was written"):
        wait(files.read(path, 0, data))


@pytest.mark.parametrize("call", ["pwrite", "preadv"])
def test_an_error_of_the_disk_has_the_files_name(files, tmp_path, monkeypatch, call):
    path, data = tmp_path / "file", fill(4096)
    wait(files.write(path, 0, data))

    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, fail)
    move = files.write if call == "pwrite" else files.read
    with pytest.raises(OSError, match="No space left") as caught:
        wait(move(path, 0, data))
    assert caught.value.filename == str(path)


def test_a_file_system_without_direct_io_is_served(files, tmp_path, monkeypatch):
    real = os.open

    def refuse(path: Path, flags: int, *mode: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(path, flags, *mode)

    monkeypatch.setattr(direct_io.os, "open", refuse)
    path, data = tmp_path / "file", fill(3 * ALIGNMENT)
    wait(files.write(path, 0, data))
    found = allocate(len(data))
    wait(files.read(path, 0, found))
    assert np.array_equal(found, data)


def test_memory_begins_at_a_page():
    assert allocate(5).ctypes.data % ALIGNMENT == 0
    assert [round_up(n) for n in (0, 1, 4096, 4097)] == [0, 4096, 4096, 8192]
