"""Disks: where the run folder, the swap files and the caches will be."""

import contextlib
import errno
import mmap
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bigft.distributed.claim import find_holder
from bigft.doctor.finding import WITH_FIX, Fault, Finding, failed, passed, skipped
from bigft.doctor.wanted import Wanted
from bigft.engine.swap import find_orphans
from bigft.units import format_bytes

_LEAST_BYTES = 1 << 30
_LEAST_INODES = 1000
_MEASURED_SECONDS = 0.5
_SLOW_NVME = 100e6
"""Bytes per second; a hard disk does that."""

_NOT_A_DISK = {
    "tmpfs": "memory",
    "ramfs": "memory",
    "overlay": "a container's layers",
    "nfs": "a network file system",
    "nfs4": "a network file system",
    "cifs": "a network file system",
    "smb3": "a network file system",
    "9p": "a network file system",
    "fuse.sshfs": "a network file system",
    "lustre": "a network file system",
    "beegfs": "a network file system",
    "ceph": "a network file system",
}
_NVME_FLAG = "--ds.zero_optimization.offload_optimizer.nvme_path=... (and offload_param)"


@dataclass(frozen=True)
class Place:
    """A folder of a run; before it exists, the folder that it will be made in counts."""

    name: str
    path: Path
    setting: str

    @property
    def existing(self) -> Path:
        """The folder itself or its nearest parent that is there."""
        path = self.path.absolute()
        return next(folder for folder in (path, *path.parents) if folder.is_dir())


def check_run_folder(wanted: Wanted) -> Iterator[Finding]:
    """Try what a run does in its folder, and compare its disk with the need."""
    place = Place("run_folder", wanted.output_dir, "--output_dir")
    problem = try_writing(place)
    yield problem or passed(place.name, str(place.path))
    if problem:
        return
    holder = find_holder(place.path)
    if holder is not None:
        yield failed(
            "run_folder_use",
            f"{place.path} is in use by {holder}",
            "two runs in one folder would overwrite each other's checkpoints",
            "wait for it, or choose another --output_dir",
            "settings",
        )
    else:
        yield passed("run_folder_use", "no other run is in it")
    yield check_space(place, "run_folder_space", wanted.need.output_bytes)
    yield _check_inodes(place)


def check_nvme(wanted: Wanted) -> Iterator[Finding]:
    """Judge the folders of swap files."""
    if not wanted.nvme_paths:
        yield skipped("nvme", "nothing is offloaded to NVMe")
    for path in wanted.nvme_paths:
        place = Place("nvme", path, _NVME_FLAG)
        problem = try_writing(place)
        yield problem or passed("nvme", str(path))
        if problem:
            continue
        yield check_kind(place)
        yield _check_direct(place)
        yield check_space(place, "nvme_space", wanted.need.nvme_bytes)
        yield _check_orphans(place)


def check_caches(wanted: Wanted) -> Iterator[Finding]:
    """Try to write where tokenised data and downloads are kept."""
    problem = try_writing(Place("cache", wanted.cache_dir, "--data.loading.cache_dir"))
    yield problem or passed("cache", str(wanted.cache_dir))
    home = Path(wanted.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    is_writable = try_writing(Place("hf_home", home, "HF_HOME")) is None
    is_offline = wanted.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    # A shared folder of downloads is often closed, and no fault: what is there can be used.
    state = "offline" if is_offline else "" if is_writable else "read-only"
    note = f" ({state}: only what is there already can be used)" if state else ""
    yield passed("hf_home", f"{home}{note}")


def check_disk_speed(wanted: Wanted) -> Iterator[Finding]:
    """Write and read each disk for a second; only a slow NVMe path is a fault."""
    for path in wanted.nvme_paths:
        place = Place("nvme_speed", path, _NVME_FLAG)
        rates = measure_disk(place.existing)
        if rates is None:
            yield skipped(place.name, "could not be measured")
            continue
        found = f"{rates[0] / 1e6:,.0f} MB/s written, {rates[1] / 1e6:,.0f} MB/s read"
        if min(rates) < _SLOW_NVME:
            yield failed(
                place.name,
                found,
                "every step reads and writes all states of the optimizer",
                f"name a local NVMe disk: {_NVME_FLAG}; or --config ds_configs/zero3_offload.json",
            )
        else:
            yield passed(place.name, found)
    if not wanted.nvme_paths:
        rates = measure_disk(Place("", wanted.output_dir, "").existing)
        if rates is None:
            yield skipped("disk_speed", "could not be measured")
        else:
            yield passed("disk_speed", f"{rates[0] / 1e6:,.0f} MB/s written to the run folder")


def try_writing(place: Place) -> Finding | None:
    """Write, sync and rename a file, and a folder's entry with it; None where all of it works."""
    doing = "be written to"
    try:
        with tempfile.TemporaryDirectory(prefix=".bigft-doctor-", dir=place.existing) as folder:
            first, second = Path(folder) / "a", Path(folder) / "b"
            with first.open("wb") as file:
                file.write(bytes(4096))
                file.flush()
                doing = "sync a file (fsync)"
                os.fsync(file.fileno())
            doing = "rename a file"
            first.replace(second)
            doing = "sync a folder (fsync)"
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    except OSError as error:
        fault: Fault = "space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "settings"
        return failed(
            place.name,
            f"{place.path} cannot {doing}: {error.strerror} ({place.existing})",
            "what a run leaves there would be lost, or it would not start",
            f"choose another folder with {place.setting}, or: chown -R $USER"
            f" {shlex.quote(str(place.existing))}",
            fault,
        )
    return None


def check_space(place: Place, name: str, needed: int | None) -> Finding:
    """Compare the free space of a disk with what will be written."""
    least = needed or _LEAST_BYTES
    free = shutil.disk_usage(place.existing).free
    found = f"{format_bytes(free)} free in {place.existing}"
    if free >= least:
        return passed(name, found)
    return failed(
        name,
        f"{found}, {format_bytes(least)} needed",
        "a checkpoint that does not fit is not saved, and swap files that do not fit end the run",
        f"du -xh --max-depth=2 {shlex.quote(str(place.existing))} | sort -h   shows what fills it;"
        f" or another folder with {place.setting}",
        "space",
    )


def _check_inodes(place: Place) -> Finding:
    status = os.statvfs(place.existing)
    # File systems without a fixed number of them say 0.
    if not status.f_files:
        return passed("run_folder_inodes", "without limit")
    found = f"{status.f_favail:,} files may still be made in {place.existing}"
    if status.f_favail >= _LEAST_INODES:
        return passed("run_folder_inodes", found)
    return failed(
        "run_folder_inodes",
        found,
        "a disk can be full of files while it has space",
        f"du --inodes -xd2 {shlex.quote(str(place.existing))} | sort -n   shows where they are",
        "space",
    )


def check_kind(place: Place) -> Finding:
    """Refuse what is no local disk."""
    kind = find_file_system(place.existing)
    what = _NOT_A_DISK.get(kind)
    if what is None:
        return passed("nvme_kind", kind)
    return failed(
        "nvme_kind",
        f"{place.path} is on {kind}: {what}",
        "swap files there fill the memory they should relieve"
        if what == "memory"
        else "swap files are read and written whole at every step",
        f"name a folder on a local NVMe disk: {place.setting}",
        "settings",
    )


def find_file_system(folder: Path) -> str:
    """Return the kind of file system a folder is on, as the kernel names it."""
    path, best = folder.resolve(), (-1, "unknown")
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        point = Path(before.split()[4].encode().decode("unicode_escape"))
        # Of two mounts in one place the later one is seen.
        if (path == point or point in path.parents) and len(point.parts) >= best[0]:
            best = len(point.parts), after.split()[0]
    return best[1]


def _check_direct(place: Place) -> Finding:
    try:
        _write_direct(place.existing)
    except OSError as error:
        return failed(
            "nvme_direct_io",
            f"{place.path}: {error.strerror}",
            "DeepSpeed opens its swap files with O_DIRECT; through the page cache every byte is"
            " copied once more and counts as memory",
            f"name a folder on ext4 or xfs: {place.setting}",
            "settings",
        )
    return passed("nvme_direct_io", "works")


def _write_direct(folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".bigft-doctor-", dir=folder) as made:
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_DIRECT", 0)
        descriptor = os.open(f"{made}/direct", flags, 0o600)
        try:
            with mmap.mmap(-1, 4096) as page:
                os.pwrite(descriptor, page, 0)
        finally:
            os.close(descriptor)


def _check_orphans(place: Place) -> Finding:
    orphans = find_orphans(place.path)
    if not orphans:
        return passed("swap_leftovers", "none")
    return failed(
        "swap_leftovers",
        f"{len(orphans)} in {place.path}, of runs that were killed:"
        f" {', '.join(folder.name for folder in orphans)}",
        "they take the space of the next run's swap files",
        WITH_FIX,
    )


def measure_disk(folder: Path) -> tuple[float, float] | None:
    """Return bytes per second written and read past the page cache; None where that cannot be."""
    from bigft.engine.direct_io import DirectIO, allocate  # With numpy.

    piece = allocate(32 << 20)
    most = min(shutil.disk_usage(folder).free // 4, 512 << 20)
    if most < len(piece):
        return None
    piece[:] = 37  # A disk that compresses or drops zeros is not measured with them.
    disk = DirectIO()
    try:
        with tempfile.TemporaryDirectory(prefix=".bigft-doctor-", dir=folder) as made:
            file = Path(made) / "speed"
            written, seconds = 0, 0.0
            start = time.perf_counter()
            while written < most and seconds < _MEASURED_SECONDS:
                for done in disk.write(file, written, piece):
                    done.result()
                written += len(piece)
                seconds = time.perf_counter() - start
            write_rate = written / seconds
            moved, seconds = 0, 0.0
            start = time.perf_counter()
            while moved < written and seconds < _MEASURED_SECONDS:
                for done in disk.read(file, moved, piece):
                    done.result()
                moved += len(piece)
                seconds = time.perf_counter() - start
            return write_rate, moved / seconds
    except OSError:
        return None
    finally:
        with contextlib.suppress(OSError):
            disk.close()
