"""Measured rates: right in size, limited in time, and nothing left behind."""

import json
import time
from pathlib import Path

import pytest
import torch

from bigft.errors import LaunchError
from bigft.planner.hardware import read_machine
from bigft.probe import disk, links, measure
from bigft.probe.disk import NoRoomError, measure_disk
from bigft.probe.measure import probe
from bigft.probe.timing import Reading, measure_rate, summarize

CPU = torch.device("cpu")


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_a_rate_is_the_amount_over_the_time_of_a_round():
    calls = []

    def action():
        calls.append(time.perf_counter())
        time.sleep(0.02)

    found = measure_rate(action, 100.0, seconds=0.2)
    assert 100 / 0.06 < found.per_second <= 100 / 0.02
    assert 4 <= len(calls) <= 12


def test_slow_rounds_are_repeated_three_times_and_no_more():
    calls = []
    measure_rate(lambda: calls.append(time.sleep(0.01)), 1.0, seconds=0.0)
    assert len(calls) == 4, "one warms up"


def test_waiting_belongs_to_a_round():
    found = measure_rate(lambda: None, 1.0, seconds=0.0, wait=lambda: time.sleep(0.02))
    assert found.per_second <= 50


def test_the_median_and_its_spread():
    assert summarize([1.0, 2.0, 3.0, 4.0, 100.0]) == Reading(3.0, 2 / 3)
    assert summarize([5.0]) == Reading(5.0, 0.0)


def test_units_of_this_machine_are_of_a_sane_size():
    assert 1e8 < links.measure_host_memory(0.05).per_second < 5e12
    for dtype in (torch.float32, torch.bfloat16):
        assert 1e8 < links.measure_matrix(CPU, dtype, 0.05).per_second < 1e15


def test_the_measured_step_is_the_real_one(monkeypatch):
    monkeypatch.setattr(links, "_STEP_PARAMETERS", 1 << 18)
    seen, update = [], links.HostAdamW.lay_out

    def lay_out(optimizer, flat, regions):
        state = update(optimizer, flat, regions)
        seen.append((flat, flat.clone(), state))
        return state

    monkeypatch.setattr(links.HostAdamW, "lay_out", lay_out)
    for name in ("adamw", "adamw_8bit"):
        assert 1e5 < links.measure_host_step(name, 0.02).per_second < 1e13
    for flat, before, _ in seen:
        assert not torch.equal(flat, before)
    assert [state.moment_bytes // (1 << 18) for *_, state in seen] == [8, 2]


class TestDisk:
    def test_it_is_measured_both_ways(self, tmp_path, monkeypatch):
        monkeypatch.setattr(disk, "_ROUND", 8 << 20)
        names, finish = [], disk._finish

        def look(futures):
            names.extend(names_in(tmp_path))
            finish(futures)

        monkeypatch.setattr(disk, "_finish", look)
        read, written, is_direct = measure_disk(tmp_path, 0.1)
        assert 1e5 < written.per_second < 1e12
        assert 1e5 < read.per_second < 1e12
        assert isinstance(is_direct, bool)
        assert names == [], "the file has no name even while it is written"
        assert names_in(tmp_path) == []

    def test_the_file_has_a_limit(self, tmp_path, monkeypatch):
        monkeypatch.setattr(disk, "_ROUND", 1 << 20)
        monkeypatch.setattr(disk, "LARGEST_FILE", 3 << 20)
        sizes, write = [], disk.DirectIO.write
        monkeypatch.setattr(
            disk.DirectIO,
            "write",
            lambda io, file, position, data: (
                sizes.append(position + len(data)) or write(io, file, position, data)
            ),
        )
        measure_disk(tmp_path, 100.0)
        assert max(sizes) == 3 << 20

    def test_a_full_disk_is_left_alone(self, tmp_path, monkeypatch):
        class Full:
            f_bavail, f_frsize = 500_000, 4096

        monkeypatch.setattr(disk.os, "statvfs", lambda _: Full)
        with pytest.raises(NoRoomError, match=r"2\.0 GB free"):
            measure_disk(tmp_path, 0.1)

    def test_a_failure_leaves_nothing(self, tmp_path, monkeypatch):
        def fail(*_):
            raise OSError(28, "No space left on device")

        descriptors = len(names_in(Path("/proc/self/fd")))
        monkeypatch.setattr(disk, "_finish", fail)
        with pytest.raises(OSError, match="No space"):
            measure_disk(tmp_path, 0.1)
        assert names_in(tmp_path) == []
        assert len(names_in(Path("/proc/self/fd"))) == descriptors


class TestProbe:
    @pytest.fixture(autouse=True)
    def _quick(self, monkeypatch, tmp_path):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr(disk, "_ROUND", 4 << 20)
        monkeypatch.setattr(links, "_STEP_PARAMETERS", 1 << 18)
        monkeypatch.setattr(links, "_HOST_BUFFER", 1 << 20)

    def test_later_plans_know_it(self, tmp_path):
        (tmp_path / "runs").mkdir()
        threads, said = torch.get_num_threads(), []
        found = probe(output_dir=tmp_path / "runs" / "new", seconds=0.02, report=said.append)
        assert torch.get_num_threads() == threads
        names = {name.partition(":")[0] for name in found.readings}
        assert names >= {"host_memory", "matrix_bf16", "matrix_fp32", "disk_read", "disk_write"}
        assert names >= {"step_adamw", "step_adamw_8bit"}
        assert len(said) == len(found.readings) + len(found.notes)
        assert any("--network" in note for note in found.notes)
        assert names_in(tmp_path / "runs") == []
        rates = read_machine(output_dir=tmp_path / "runs" / "new").rates
        wanted = found.readings["matrix_bf16"].per_second
        assert (rates.matrix.per_second, rates.matrix.origin) == (wanted, "measured")
        assert rates.disk_write.origin == rates.host_memory.origin == "measured"
        assert rates.network.origin == "typical"
        assert set(rates.host_steps) == {"adamw", "adamw_8bit"}

    def test_what_cannot_be_measured_is_said(self, tmp_path, monkeypatch):
        def fail(*_):
            raise LaunchError("no compiler")

        def refuse(*_):
            raise NoRoomError("full")

        monkeypatch.setattr(measure, "measure_host_step", fail)
        monkeypatch.setattr(measure, "measure_disk", refuse)
        blocked = tmp_path / "file"
        blocked.write_text("")
        found = probe(output_dir=tmp_path, seconds=0.01, cache=blocked / "rates.json")
        text = "\n".join(found.notes)
        for part in ("no compiler", "full", "later plans will not know"):
            assert part in text
        assert found.known.rates["matrix_fp32"] > 0

    def test_the_file_is_readable_by_people(self, tmp_path):
        cache = tmp_path / "deep" / "rates.json"
        probe(output_dir=tmp_path, seconds=0.01, cache=cache)
        whole = json.loads(cache.read_text())
        (entry,) = whole["machines"].values()
        assert entry["rates"]["host_memory"] > 0
        assert names_in(cache.parent) == ["rates.json"]
