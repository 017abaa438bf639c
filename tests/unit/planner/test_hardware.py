"""The machine of a plan: read from this host, and built from flags."""

import json
import os
from pathlib import Path

import pytest

from bigft.distributed.memory import read_available_bytes
from bigft.errors import ConfigError
from bigft.planner import local
from bigft.planner.hardware import Given, parse_machine, read_machine
from bigft.planner.known import KnownRates, load_known, number_disk, save_known
from bigft.planner.local import count_cores, read_cpu, read_free_disk, read_gpus, read_network_rate
from bigft.planner.machine import SliceMeasurement

GIB = 1 << 30

SMI = """#!/bin/sh
cat <<'END'
0, GPU-aaaa1111-2222, NVIDIA H100 80GB HBM3, 80000, 5, 16
1, GPU-bbbb1111-2222, NVIDIA H100 80GB HBM3, 70000, 5, 16
END
"""


@pytest.fixture(autouse=True)
def _nothing_is_known(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)


@pytest.fixture(autouse=True)
def without_choice(monkeypatch):
    """Nobody has said to leave GPUs out."""
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)


def _install_smi(tmp_path, text=SMI):
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir(exist_ok=True)
    tool.write_text(text)
    tool.chmod(0o755)


def parse(tmp_path, **flags):
    return parse_machine(Given(**flags), output_dir=tmp_path / "run" / "new")


def test_this_machine_is_read(tmp_path):
    _install_smi(tmp_path, "#!/bin/sh\nexit 9\n")
    found = read_machine(output_dir=tmp_path / "run" / "new", ranks=2)
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < found.host_bytes <= total
    assert (found.device, found.device_bytes, found.ranks) == ("cpu", 0, 2)
    assert 1 <= found.cores <= os.cpu_count()
    stat = os.statvfs(tmp_path)
    assert found.disk_bytes == pytest.approx(stat.f_bavail * stat.f_frsize, rel=0.05)
    assert found.nvme_bytes is None
    assert found.shared_memory_bytes > 0
    assert found.rates.matrix.origin == "typical"
    alone = read_machine(output_dir=tmp_path)
    assert alone.rates.matrix.per_second == pytest.approx(2 * found.rates.matrix.per_second)
    wide = read_machine(output_dir=tmp_path, precision="fp32")
    assert wide.rates.matrix.per_second != alone.rates.matrix.per_second


def test_gpus_are_what_the_driver_says(tmp_path, monkeypatch):
    _install_smi(tmp_path)
    found = read_machine(output_dir=tmp_path)
    assert (found.device, found.ranks_per_host) == ("cuda", 2)
    assert found.device_name == "NVIDIA H100 80GB HBM3"
    assert found.device_bytes == 70000 << 20, "the fuller one decides"
    assert found.rates.pcie.per_second == pytest.approx(55e9, rel=0.01)
    assert found.rates.matrix.per_second == pytest.approx(600e12, rel=0.01)
    for seen, names in (("1", ["1"]), ("GPU-aaaa1111", ["0"]), ("", []), ("1,0", ["0", "1"])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
        assert [gpu.free_bytes for gpu in read_gpus()] == [
            {"0": 80000, "1": 70000}[name] << 20 for name in names
        ]


@pytest.mark.parametrize(
    "text",
    ["#!/bin/sh\nsleep 30\n", "#!/bin/sh\necho No devices were found\n", "#!/bin/sh\nexit 1\n"],
)
def test_a_driver_that_does_not_answer_means_no_gpu(tmp_path, monkeypatch, text):
    monkeypatch.setattr(local, "_TIMEOUT_SECONDS", 0.2)
    _install_smi(tmp_path, text)
    assert read_gpus() == []


@pytest.mark.parametrize(
    ("text", "count", "memory", "matrix"),
    [
        ("4x24GB", 4, 24e9, 150e12),
        ("8xH100", 8, 80e9, 600e12),
        ("2x4090", 2, 24e9, 150e12),
        ("2 x RTX 4090", 2, 24e9, 150e12),
        ("1x80GB", 1, 80e9, 190e12),
        ("1x40GB", 1, 40e9, 190e12),
        ("1x23.5GiB", 1, 23.5 * GIB, 150e12),
        ("1xL4", 1, 24e9, 74e12),
        ("1xNVIDIA A100-SXM4-40GB", 1, 40e9, 190e12),
    ],
)
def test_gpus_by_flag(tmp_path, text, count, memory, matrix):
    found = parse(tmp_path, gpus=text)
    assert (found.device, found.ranks_per_host, found.hosts) == ("cuda", count, 1)
    assert found.device_bytes == memory
    assert found.rates.matrix.per_second == pytest.approx(matrix, rel=0.02)
    assert found.origins["device_bytes"] == "given"
    assert found.origins["host_bytes"] == "typical"
    assert found.disk_bytes is None, "of another machine"


def test_another_machine_as_a_whole(tmp_path):
    found = parse(
        tmp_path,
        gpus="4x24GB",
        host_memory="128GB",
        nvme="2TB@7/6",
        hosts=2,
        pcie="25GB",
        network="10Gb",
    )
    assert found.ranks == 8
    assert (found.host_bytes, found.nvme_bytes, found.disk_bytes) == (128e9, 2e12, 2e12)
    rates = found.rates
    given = {"disk_read": 7e9, "disk_write": 6e9, "pcie": 25e9, "network": 1.25e9}
    for name, rate in given.items():
        assert getattr(rates, name).per_second == rate
        assert getattr(rates, name).origin == "given"
    assert rates.matrix.origin == rates.peer.origin == "typical"
    assert found.origins["host_bytes"] == found.origins["hosts"] == "given"


def test_no_gpus_is_another_machine_too(tmp_path):
    _install_smi(tmp_path)
    found = parse_machine(Given(gpus="0"), output_dir=tmp_path, ranks=4)
    assert (found.device, found.device_bytes, found.ranks) == ("cpu", 0, 4)


def test_without_gpus_the_rest_is_this_machine(tmp_path):
    found = parse(tmp_path, host_memory="1GB", nvme="@3", network="1.25GB/s")
    assert found.host_bytes == 1e9
    assert found.disk_bytes is not None
    assert found.nvme_bytes is None
    assert (found.rates.disk_read.per_second, found.rates.disk_read.origin) == (3e9, "given")
    assert found.rates.disk_write.origin == "typical"
    assert found.rates.network.per_second == 1.25e9
    assert parse(tmp_path, nvme="500GB@/2").rates.disk_write.per_second == 2e9
    assert parse(tmp_path, nvme="500GB").nvme_bytes == 500e9


@pytest.mark.parametrize(
    ("flag", "text", "repair"),
    [
        ("gpus", "4", "4x24GB"),
        ("gpus", "0x24GB", "4x24GB"),
        ("gpus", "4xfast", "RTX 4090"),
        ("gpus", "4x24GB@", "5GB"),
        ("gpus", "-1", "4x24GB"),
        ("host_memory", "lots", "5GB"),
        ("host_memory", "0", "25GB"),
        ("nvme", "2TB@fast", "2TB@7/6"),
        ("nvme", "2TB@0/6", "2TB@7/6"),
        ("nvme", "big@7/6", "5GB"),
        ("nvme", "2TB@7/6/5", "2TB@7/6"),
        ("pcie", "x16", "5GB"),
        ("network", "10", "10Gb"),
        ("network", "0Gb", "10Gb"),
        ("network", "fast", "10Gb"),
    ],
)
def test_bad_text_is_named_with_its_flag_and_a_repair(tmp_path, flag, text, repair):
    with pytest.raises(ConfigError) as caught:
        parse(tmp_path, **{flag: text})
    assert f"--{flag} {text}:" in str(caught.value)
    assert repair in str(caught.value)


def test_all_bad_flags_are_named_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        parse(tmp_path, gpus="many", host_memory="x", nvme="@", pcie="?", network="y", hosts=0)
    assert len(caught.value.problems) == 5, caught.value
    assert "--hosts 0" in str(caught.value)


def test_free_memory_is_what_the_group_leaves(tmp_path):
    own, group = tmp_path / "own", tmp_path / "cg" / "job"
    own.write_text("0::/job\n")
    group.mkdir(parents=True)
    (group / "memory.max").write_text(f"{GIB}\n")
    (group / "memory.current").write_text(f"{GIB // 2}\n")
    assert read_available_bytes(tmp_path / "cg", own) == GIB // 2
    (group / "memory.stat").write_text(f"anon 5\nactive_file {GIB // 8}\ninactive_file 100\n")
    assert read_available_bytes(tmp_path / "cg", own) == GIB // 2 + GIB // 8 + 100
    (group / "memory.max").write_text("max\n")
    assert read_available_bytes(tmp_path / "cg", own) > GIB // 2


def test_cores_stop_at_the_quota(tmp_path):
    allowed = len(os.sched_getaffinity(0))
    assert count_cores(tmp_path) == allowed
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert count_cores(tmp_path) == allowed
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert count_cores(tmp_path) == 1
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("100000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert count_cores(tmp_path) == 1


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ("fma avx2 avx512f avx512bw avx512_bf16 amx_bf16", "amx"),
        ("fma avx2 avx512f avx512bw avx512_bf16", "avx512_bf16"),
        ("fma avx2 avx512f avx512bw", "avx512"),
        ("fma avx2", "avx2"),
        ("sse2", "plain"),
    ],
)
def test_the_widest_instructions_count(tmp_path, flags, name):
    (tmp_path / "info").write_text(f"processor : 0\nmodel name\t: A CPU\nflags\t: {flags}\n")
    found = read_cpu(tmp_path / "info")
    assert (found.name, found.instructions) == ("A CPU", name)


def test_the_fastest_interface_that_is_up(tmp_path):
    for name, state, speed in (
        ("lo", "unknown", "9"),
        ("eth0", "up", "10000"),
        ("eth1", "up", "-1"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "operstate").write_text(f"{state}\n")
        (tmp_path / name / "speed").write_text(f"{speed}\n")
    assert read_network_rate(tmp_path) == 1.25e9
    assert read_network_rate(tmp_path / "none") is None


def test_space_of_a_folder_that_is_not_there_yet(tmp_path):
    assert read_free_disk(tmp_path / "a" / "b") == pytest.approx(read_free_disk(tmp_path), rel=0.05)


class TestKnownRates:
    @staticmethod
    def _save(tmp_path, **rates):
        here = read_machine(output_dir=tmp_path)
        disk = {f"disk_read:{number_disk(tmp_path)}": 5e9}
        found = KnownRates({**disk, **rates}, {"a": SliceMeasurement(1, 2, 3, 4)})
        save_known(here.device_name, here.cores, found)
        return here

    def test_a_later_plan_uses_them(self, tmp_path):
        _install_smi(tmp_path, "#!/bin/sh\nexit 9\n")
        self._save(tmp_path, matrix_bf16=3e11, host_memory=4e10, step_adamw=1e9)
        rates = read_machine(output_dir=tmp_path / "new", ranks=2).rates
        assert (rates.matrix.per_second, rates.matrix.origin) == (1.5e11, "measured")
        assert (rates.host_memory.per_second, rates.pcie.per_second) == (4e10, 2e10)
        assert rates.disk_read.per_second == 5e9
        assert rates.disk_write.origin == "typical"
        assert rates.host_steps["adamw"].per_second == 1e9
        wide = read_machine(output_dir=tmp_path, precision="fp32").rates
        assert wide.matrix.origin == "typical", "another format was measured"

    def test_those_of_a_gpu_are_each_rank_s_own(self, tmp_path):
        _install_smi(tmp_path)
        self._save(tmp_path, matrix_bf16=7e14, pcie=5e10, host_memory=1e11)
        for precision in ("bf16", "fp16"):
            rates = read_machine(output_dir=tmp_path, precision=precision).rates
            assert (rates.matrix.per_second, rates.matrix.origin) == (7e14, "measured")
            assert (rates.pcie.per_second, rates.host_memory.per_second) == (5e10, 1e11)
            assert rates.device_memory.origin == "typical"

    def test_given_ones_win(self, tmp_path):
        self._save(tmp_path)
        assert parse(tmp_path, nvme="@9/9").rates.disk_read.per_second == 9e9

    def test_another_machine_does_not_know_them(self, tmp_path):
        self._save(tmp_path, matrix_bf16=3e11)
        assert parse(tmp_path, gpus="0").rates.matrix.origin == "typical"
        assert load_known("another device", 2) == KnownRates()

    def test_measurements_add_up(self, tmp_path):
        here = self._save(tmp_path, matrix_bf16=1.0, host_memory=2.0)
        save_known(here.device_name, here.cores, KnownRates({"matrix_bf16": 3.0}))
        known = load_known(here.device_name, here.cores)
        assert known.rates["matrix_bf16"] == 3.0
        assert known.rates["host_memory"] == 2.0
        assert known.slices["a"] == SliceMeasurement(1, 2, 3, 4)

    @pytest.mark.parametrize(
        "text", ["", "[]", "{", '{"format": 1}', '{"format": 2, "machines": {}}']
    )
    def test_a_damaged_file_is_as_good_as_none(self, tmp_path, text, caplog):
        here = self._save(tmp_path)
        file = tmp_path / "cache" / "bigft" / "rates.json"
        file.write_text(text)
        assert load_known(here.device_name, here.cores) == KnownRates()
        if "2" not in text:
            assert str(file) in caplog.text
        self._save(tmp_path)
        assert load_known(here.device_name, here.cores).slices

    def test_damaged_numbers_too(self, tmp_path, caplog):
        here = self._save(tmp_path)
        file = tmp_path / "cache" / "bigft" / "rates.json"
        whole = json.loads(file.read_text())
        for entry in whole["machines"].values():
            entry["rates"]["pcie"] = "fast"
        file.write_text(json.dumps(whole))
        assert load_known(here.device_name, here.cores) == KnownRates()
        assert "left out" in caplog.text
        assert not list(Path(file.parent).glob(".rates-*"))
