"""Planted faults, each found by its name and alone; and healthy set-ups, in which nothing is."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from planting import (
    ROOT,
    MemoryGroup,
    Situation,
    add_cuda_torch,
    add_gpu,
    add_hosts,
    build_clock,
    can_mount,
    config,
    examine,
    find_memory_group,
    has_disk,
    start,
)
from simulated_hosts import NETWORK, SimulatedHosts, can_simulate

from bigft.distributed.claim import claimed
from bigft.optim.native.build import NAME, digest_sources

MOUNTS = pytest.mark.skipif(not can_mount(), reason="mounts can only be planted by root")
DISK = pytest.mark.skipif(not has_disk(), reason="there is no local disk to offload to")
GROUPS = pytest.mark.skipif(find_memory_group() is None, reason="no control group can be made here")


@pytest.fixture
def situation(tmp_path: Path) -> Situation:
    return Situation(tmp_path)


@dataclass(frozen=True)
class Fault:
    name: str
    """Of the finding."""

    area: str
    code: int
    plant: Callable[[Situation], None]
    word: str = ""
    """What the finding says."""

    others: frozenset[str] = frozenset()
    """What else fails of the same cause."""


# --- Plants ---


def old_deepspeed(it: Situation) -> None:
    it.add_package("deepspeed", "0.15.1")


def old_torch(it: Situation) -> None:
    it.add_package("torch", "2.9.1+cu126")


def old_transformers(it: Situation) -> None:
    it.add_package("transformers", "5.2.0")


def no_compiler(it: Situation) -> None:
    it.environ["CXX"] = "/nowhere/c++"


def no_ninja(it: Situation) -> None:
    folders = [str(Path(sys.executable).parent), *os.environ["PATH"].split(":")]
    for folder in dict.fromkeys(folders):
        if Path(folder, "ninja").exists():
            it.mounts.append(f"mount --bind /dev/null {folder}/ninja")


def no_libaio(it: Situation) -> None:
    real = shutil.which("c++")
    it.add_program("c++", f'case "$*" in *-laio*) exit 1 ;; esac\nexec {real} "$@"')
    it.words += config("zero3_nvme")


def native_step_of_another_machine(it: Situation) -> None:
    it.write(f"cache/bigft/native/{digest_sources()}/{NAME}", "not a library")
    it.environ["XDG_CACHE_HOME"] = str(it.folder / "cache")
    it.words += config("zero3_offload")


def operators_not_built(it: Situation) -> None:
    it.environ["TORCH_EXTENSIONS_DIR"] = str(it.folder / "extensions")
    it.words += config("zero3")


def operators_cut_short(it: Situation) -> None:
    operators_not_built(it)
    it.write("extensions/deepspeed_shm_comm/deepspeed_shm_comm.so", "half a library")


def lock_left_behind(it: Situation) -> None:
    lock = it.write("extensions/deepspeed_shm_comm/lock", "")
    os.utime(lock, (0, 0))
    it.environ["TORCH_EXTENSIONS_DIR"] = str(it.folder / "extensions")


def little_locked_memory(it: Situation) -> None:
    it.before = ["prlimit", "--memlock=8388608:8388608"]
    it.environ["DS_PIN_MEMORY_BACKEND"] = "native"


def few_open_files(it: Situation) -> None:
    it.before = ["prlimit", "--nofile=256"]


def few_processes(it: Situation) -> None:
    it.before = ["prlimit", "--nproc=200"]


def small_shared_memory(it: Situation) -> None:
    it.mounts.append("mount -t tmpfs -o size=64m tmpfs /dev/shm")


def _with_meminfo(it: Situation, **bytes_of: int) -> None:
    lines = {
        line.partition(":")[0]: line for line in Path("/proc/meminfo").read_text().splitlines()
    }
    for name, size in bytes_of.items():
        lines[name] = f"{name}: {size >> 10} kB"
    it.write("meminfo", "\n".join(lines.values()) + "\n")
    it.mounts.append(f"mount --bind {it.folder}/meminfo /proc/meminfo")


def memory_on_a_disk(it: Situation) -> None:
    _with_meminfo(it, SwapTotal=2**40, SwapFree=2**39)


def strict_overcommit(it: Situation) -> None:
    _with_meminfo(it, CommitLimit=16 << 30, Committed_AS=15 << 30)
    it.write("overcommit", "2\n")
    it.mounts.append(f"mount --bind {it.folder}/overcommit /proc/sys/vm/overcommit_memory")


def old_processor(it: Situation) -> None:
    it.write("cpuinfo", "processor: 0\nflags: fpu sse sse2 ssse3 sse4_1 sse4_2 avx\n")
    it.mounts.append(f"mount --bind {it.folder}/cpuinfo /proc/cpuinfo")


def ranks_on_one_core(it: Situation) -> None:
    it.before = ["taskset", "-c", str(min(os.sched_getaffinity(0)))]
    it.words += ["--num_gpus", "2"]


def run_folder_read_only(it: Situation) -> None:
    it.words += ["--output_dir", "/proc/bigft-run"]


def run_disk_full(it: Situation) -> None:
    (it.folder / "run").mkdir()
    it.mounts.append(f"mount -t tmpfs -o size=64m tmpfs {it.folder}/run")


def run_disk_full_of_files(it: Situation) -> None:
    (it.folder / "run").mkdir()
    it.mounts.append(f"mount -t tmpfs -o size=2g,nr_inodes=200 tmpfs {it.folder}/run")


def _nvme_path(it: Situation, path: Path | str) -> None:
    it.words += config("zero3_nvme")
    for part in ("optimizer", "param"):
        it.words += [f"--ds.zero_optimization.offload_{part}.nvme_path", str(path)]


def swap_in_memory(it: Situation) -> None:
    (it.folder / "nvme").mkdir()
    it.mounts.append(f"mount -t tmpfs -o size=4g tmpfs {it.folder}/nvme")
    _nvme_path(it, it.folder / "nvme")


def swap_not_writable(it: Situation) -> None:
    _nvme_path(it, "/proc/nvme")


def swap_of_a_killed_run(it: Situation) -> None:
    it.write("nvme/bigft-swap-0123456789ab/owner", f"{os.uname().nodename} 4194303")
    _nvme_path(it, it.folder / "nvme")


def cache_not_writable(it: Situation) -> None:
    it.words += ["--data.loading.cache_dir", "/proc/cache"]


def driver_mismatch(it: Situation) -> None:
    said = "Failed to initialize NVML: Driver/library version mismatch"
    it.add_program("nvidia-smi", f"echo '{said}'; exit 18")
    it.environ["DS_ACCELERATOR"] = "cuda"


def gpu_memory_taken(it: Situation) -> None:
    add_gpu(it, free=40_000)
    add_cuda_torch(it)


def gpu_shared(it: Situation) -> None:
    add_gpu(it, apps='echo "4711, 512"')
    add_cuda_torch(it)


def too_few_gpus(it: Situation) -> None:
    add_gpu(it)
    add_cuda_torch(it)
    it.words += ["--num_gpus", "2"]


def torch_without_cuda(it: Situation) -> None:
    add_gpu(it)
    it.write("packages/torch.py", _TORCH_OF_A_CPU)
    it.environ["PYTHONPATH"] = f"{it.folder / 'packages'}:{ROOT}"


_TORCH_OF_A_CPU = """
__version__ = "2.13.0+cpu"
class version: cuda = None
class cuda: is_available = staticmethod(lambda: False)
"""


def clock_of_last_year(it: Situation) -> None:
    it.environ["LD_PRELOAD"] = str(build_clock(it.folder))
    it.environ["CLOCK_OFFSET"] = str(-400 * 86_400)


def host_not_there(it: Situation) -> None:
    add_hosts(it, h1="", h2=None)


def host_without_the_folder(it: Situation) -> None:
    add_hosts(it, h1="", h2='cmd="cd /nowhere && ${cmd#*&&}"')


def host_with_other_code(it: Situation) -> None:
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "bigft", it.folder / "other/bigft", ignore=ignored)
    it.write("other/bigft/units.py", (ROOT / "bigft/units.py").read_text() + "# Changed.\n")
    swap = f'cmd=$(echo "$cmd" | sed "s#PYTHONPATH=[^ ]*#PYTHONPATH={it.folder}/other#")'
    add_hosts(it, h1="", h2=swap, h3="")


def host_with_other_versions(it: Situation) -> None:
    it.add_package("scipy", "1.12.0")
    path = it.environ.pop("PYTHONPATH")
    swap = f'cmd=$(echo "$cmd" | sed "s#PYTHONPATH=[^ ]*#PYTHONPATH={path}#")'
    add_hosts(it, h1="", h2=swap, h3="")


def host_with_other_settings(it: Situation) -> None:
    for folder, stage in ((".", 2), ("elsewhere", 3)):
        it.write(f"{folder}/ds.json", f'{{"zero_optimization": {{"stage": {stage}}}}}')
    swap = f'cmd="cd {it.folder}/elsewhere && ${{cmd#*&&}}"'
    it.words += ["--config", "ds.json"]
    add_hosts(it, h1="", h2=swap, h3="")


def host_in_the_past(it: Situation) -> None:
    library = build_clock(it.folder)
    swap = f"export LD_PRELOAD={library} CLOCK_OFFSET=-90"
    add_hosts(it, h1="", h2=swap, h3="")


def ranks_that_do_not_meet(it: Situation) -> None:
    # The second rank's messages go nowhere; the others wait for it.
    drop = 'case "$cmd" in *doctor.meeting*) cmd="sleep 3; echo refused >&2; exit 1" ;; esac'
    add_hosts(it, h1="", h2=drop)


FAULTS = [
    Fault("deepspeed", "versions", 6, old_deepspeed, "0.15.1"),
    Fault("torch", "versions", 6, old_torch, "2.9.1"),
    Fault("transformers", "versions", 6, old_transformers, "5.2.0"),
    Fault("compiler", "tools", 6, no_compiler, "/nowhere/c++"),
    Fault("libaio", "tools", 6, no_libaio, "-laio"),
    Fault("native_step", "tools", 6, native_step_of_another_machine, NAME),
    Fault("operators", "operators", 6, operators_not_built, "not built yet: ShareMemComm"),
    Fault("memlock", "limits", 4, little_locked_memory, "8.00 MiB"),
    Fault("open_files", "limits", 6, few_open_files, "256"),
    Fault("cores", "cpu", 6, ranks_on_one_core, "1 of"),
    Fault("run_folder", "storage", 2, run_folder_read_only, "/proc/bigft-run"),
    Fault("nvme", "storage", 2, swap_not_writable, "/proc/nvme"),
    Fault("cache", "storage", 2, cache_not_writable, "/proc/cache"),
    Fault("gpu_driver", "gpu", 6, driver_mismatch, "version mismatch"),
    Fault("gpu_memory", "gpu", 4, gpu_memory_taken, "40,000 of 81,559 MiB"),
    Fault("gpu_processes", "gpu", 6, gpu_shared, "pid 4711"),
    Fault("gpu", "gpu", 6, too_few_gpus, "1 for 2 ranks"),
    Fault("gpu_torch", "gpu", 6, torch_without_cuda, "built without CUDA"),
    Fault("clock", "clock", 6, clock_of_last_year, "days before this program"),
    Fault("ssh", "limits", 6, host_not_there, "No route to host"),
    Fault("settings", "limits", 6, host_with_other_settings, "elsewhere"),
]
MOUNTED = [
    Fault("ninja", "tools", 6, no_ninja, "not on PATH"),
    Fault("processes", "limits", 6, few_processes, "200"),
    Fault("shared_memory", "memory", 4, small_shared_memory, "64.00 MiB"),
    Fault("swap", "memory", 4, memory_on_a_disk, "512.00 GiB of 1.00 TiB"),
    Fault("overcommit", "memory", 4, strict_overcommit, "mode 2, 1.00 GiB"),
    Fault("instructions", "cpu", 6, old_processor, "neither AVX2"),
    Fault("run_folder_space", "storage", 4, run_disk_full, "64.00 MiB free"),
    Fault("run_folder_inodes", "storage", 4, run_disk_full_of_files, "files may still"),
    # Before Linux 6.6, memory has no direct I/O either.
    Fault("nvme_kind", "storage", 2, swap_in_memory, "tmpfs", frozenset({"nvme_direct_io"})),
]
SLOW = [
    Fault("clock_skew", "limits", 6, host_in_the_past, "behind the others"),
    Fault("paths", "limits", 6, host_without_the_folder, "/nowhere"),
    Fault("operators", "operators", 6, operators_cut_short, "does not load"),
    Fault("build_lock", "operators", 6, lock_left_behind, "deepspeed_shm_comm/lock"),
    # The changed copy is in a folder of its own.
    Fault("code", "limits", 6, host_with_other_code, "elsewhere", frozenset({"paths"})),
    Fault("versions", "limits", 6, host_with_other_versions, "scipy 1.12.0, elsewhere"),
    Fault("all_reduce", "network", 6, ranks_that_do_not_meet, "1/2 clients joined"),
]


def check(fault: Fault, situation: Situation, *words: str) -> None:
    """Find it by its name, with a reason and a repair, and nothing else."""
    fault.plant(situation)
    told = examine(situation, *(words or ("--checks", fault.area)))
    assert fault.name in told.faults, told.report
    assert told.faults <= {fault.name} | fault.others, told.report
    assert told.code == fault.code, told.err
    assert not told.report["ok"]
    finding = told.find(fault.name)
    assert fault.word in finding["found"]
    assert finding["why"]
    assert finding["repair"]
    assert fault.name in told.err


def ids(faults: list[Fault]) -> list[str]:
    return [fault.plant.__name__ for fault in faults]


@pytest.mark.parametrize("fault", FAULTS, ids=ids(FAULTS))
def test_a_planted_fault_is_found(fault, situation):
    check(fault, situation)


@MOUNTS
@pytest.mark.parametrize("fault", MOUNTED, ids=ids(MOUNTED))
def test_a_mounted_fault_is_found(fault, situation):
    check(fault, situation)


@pytest.mark.nightly
@pytest.mark.parametrize("fault", SLOW, ids=ids(SLOW))
def test_a_slow_fault_is_found(fault, situation):
    check(fault, situation)


@pytest.mark.nightly
def test_operators_are_built_and_a_dead_lock_is_removed(situation):
    lock_left_behind(situation)
    situation.words += config("zero3")
    told = examine(situation, "--checks", "operators")
    assert told.faults == {"build_lock", "operators"}
    assert (situation.folder / "extensions/deepspeed_shm_comm/lock").exists()
    told = examine(situation, "--checks", "operators", "--fix", timeout=500)
    assert (told.code, told.faults) == (0, set()), told.err
    assert {"build_lock", "operators"} <= told.well


@DISK
def test_swap_files_of_a_killed_run_are_found_and_removed(situation, tmp_path_factory):
    swap_of_a_killed_run(situation)
    told = examine(situation, "--checks", "storage")
    assert told.faults == {"swap_leftovers"}
    assert told.code == 6
    # Nothing was changed without --fix.
    left = situation.folder / "nvme/bigft-swap-0123456789ab"
    assert left.is_dir()
    told = examine(situation, "--checks", "storage", "--fix")
    assert (told.code, told.faults) == (0, set())
    assert not left.exists()


def test_a_run_folder_in_use_is_found(situation):
    (situation.folder / "run").mkdir()
    with claimed(situation.folder / "run"):
        told = examine(situation, "--checks", "storage")
    assert told.faults == {"run_folder_use"}
    assert told.code == 2
    assert f"pid {os.getpid()}" in told.find("run_folder_use")["found"]


@GROUPS
def test_a_memory_limit_below_what_a_run_needs_is_found(situation):
    with MemoryGroup(1 << 30) as before:
        situation.before = before
        told = examine(situation, "--checks", "memory")
    assert told.faults == {"host_memory"}
    assert told.code == 4
    assert "of 1.00 GiB (a control group)" in told.find("host_memory")["found"]


@pytest.mark.nightly
def test_a_port_in_use_is_found(situation):
    add_hosts(situation, h1="", h2="")
    with socket.socket() as taken:
        try:
            taken.bind(("", 29500))
            taken.listen()
        except OSError:
            pass  # Somebody else has it: all the same.
        told = examine(situation, "--checks", "limits")
    assert told.faults == {"rendezvous_port"}
    assert "--master_port" in told.find("rendezvous_port")["repair"]


# --- Healthy set-ups ---


def in_general(it: Situation) -> None:
    pass


def stage_2(it: Situation) -> None:
    it.words += config("zero2")


def stage_3_in_host_memory(it: Situation) -> None:
    it.words += config("zero3_offload")


def eight_bit_optimizer(it: Situation) -> None:
    it.words += [*config("zero2_offload"), "--optim", "adamw_8bit"]


def run_folder_far_from_there(it: Situation) -> None:
    it.words += [*config("zero1"), "--output_dir", str(it.folder / "a/b/c d/run")]


def other_language_and_umask(it: Situation) -> None:
    it.environ |= {"LC_ALL": "de_DE.UTF-8", "LANG": "de_DE.UTF-8", "PYTHONUTF8": "0"}
    it.before = ["sh", "-c", 'umask 077; exec "$@"', "sh"]


def no_language(it: Situation) -> None:
    it.environ |= {"LC_ALL": "C", "LANG": "C", "TERM": "dumb"}


def downloads_of_others(it: Situation) -> None:
    it.environ |= {"HF_HOME": "/proc/huggingface", "HF_HUB_OFFLINE": "1"}


def as_a_launcher_starts_it(it: Situation) -> None:
    it.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "4", "OMP_NUM_THREADS": "1"}
    it.words += config("zero3")


def one_gpu(it: Situation) -> None:
    add_gpu(it)
    add_cuda_torch(it)
    it.words += [*config("zero3"), "--checks", "versions,tools,cpu,limits,memory,storage,gpu"]


def two_hosts(it: Situation) -> None:
    it.words += [*config("zero3"), "--checks", "limits,cpu,network"]
    add_hosts(it, h1="", h2="")


QUICK = "versions,tools,cpu,limits,memory,storage,gpu,clock"
HEALTHY = [stage_3_in_host_memory, other_language_and_umask, two_hosts]
MORE_HEALTHY = [
    in_general,
    stage_2,
    eight_bit_optimizer,
    run_folder_far_from_there,
    no_language,
    downloads_of_others,
    as_a_launcher_starts_it,
    one_gpu,
]


def check_healthy(plant: Callable[[Situation], None], it: Situation, areas: str) -> set[str]:
    """Find nothing; returns what was looked at."""
    # What the machine of the tests lacks is not what is tested.
    it.before = ["prlimit", "--nofile=4096"]
    it.mounts = ["mount -t tmpfs -o size=2g tmpfs /dev/shm"] if can_mount() else []
    before = it.before
    plant(it)
    it.before = before + (it.before if it.before != before else [])
    words = [] if "--checks" in it.words or not areas else ["--checks", areas]
    told = examine(it, *words)
    assert told.faults == set(), told.report
    assert (told.code, told.report["ok"], told.err) == (0, True, "")
    return told.well


@pytest.mark.parametrize("plant", HEALTHY, ids=lambda plant: plant.__name__)
def test_a_healthy_set_up_has_no_faults(plant, situation):
    assert len(check_healthy(plant, situation, QUICK)) > 4


@pytest.mark.nightly
@pytest.mark.parametrize("plant", MORE_HEALTHY, ids=lambda plant: plant.__name__)
def test_more_healthy_set_ups_have_no_faults(plant, situation):
    assert len(check_healthy(plant, situation, QUICK)) > 4


@DISK
def test_offload_to_a_disk_has_no_faults(situation):
    def nvme(it: Situation) -> None:
        it.words += config("zero3_nvme")

    well = check_healthy(nvme, situation, QUICK)
    assert {"nvme", "nvme_kind", "nvme_direct_io", "nvme_speed", "libaio"} <= well
    # What was written to measure has gone, and no folder was made.
    assert list(situation.folder.iterdir()) == []


@GROUPS
def test_a_memory_limit_that_is_enough_is_no_fault(situation):
    with ExitStack() as stack:

        def limited(it: Situation) -> None:
            it.before = stack.enter_context(MemoryGroup(4 << 30))

        check_healthy(limited, situation, QUICK)


ELSEWHERE = tuple("host_ ranks_that native_ swap_ little_ too_ gpu_ torch_ driver_".split())
"""Plants in what a run on one host, without a GPU and NVMe, has no use for."""


def test_every_planted_fault_is_looked_at_in_health(situation):
    """A finding that a healthy host has not cannot be told from a check that never runs."""
    it = situation
    well = check_healthy(in_general, it, "")
    faults = [*FAULTS, *MOUNTED, *SLOW]
    of_one_host = {f.name for f in faults if not f.plant.__name__.startswith(ELSEWHERE)}
    assert of_one_host <= well
    assert {"host_memory", "memory_speed", "disk_speed", "run_folder_use"} <= well


# --- Hosts with an sshd of their own ---

SIMULATED = pytest.mark.skipif(
    not can_simulate(), reason="hosts need root, iproute2 and openssh-server"
)


@pytest.mark.nightly
@SIMULATED
def test_two_simulated_hosts_are_healthy(situation, tmp_path_factory):
    with SimulatedHosts(tmp_path_factory.mktemp("hosts"), 2, {}) as hosts:
        _use(situation, hosts, hosts.names)
        situation.words += config("zero3_offload")
        told = examine(situation)
    assert told.faults == set(), told.report
    found = told.find("network_interface")["found"]
    assert found == "eth0 (GLOO_SOCKET_IFNAME=eth0)"
    assert {"all_reduce", "operators", "clock_skew", "rendezvous_port"} <= told.well


@pytest.mark.nightly
@SIMULATED
def test_the_network_is_measured_with_the_ranks_of_a_run_and_kept_for_plans(
    situation, tmp_path_factory
):
    with SimulatedHosts(tmp_path_factory.mktemp("hosts"), 2, {}) as hosts:
        situation.add_program("ssh", hosts.write_ssh())
        file = hosts.write_hostfile(situation.folder / "hostfile", [2, 2])
        situation.words += ["--hostfile", str(file), *config("zero3"), "--checks", "network"]
        situation.environ["XDG_CACHE_HOME"] = str(situation.folder / "cache")
        told = examine(situation)
        names = hosts.names
    found = told.find("all_reduce")["found"]
    assert "2 hosts, 2 ranks on each: " in found
    assert "for a small sum (gloo)" in found
    (kept,) = json.loads((situation.folder / "cache/bigft/networks.json").read_text())["networks"]
    assert (kept["hosts"], kept["ranks_per_host"], kept["interface"]) == (names, 2, "eth0")
    # Two ranks of one machine, by way of a bridge: more than a slow disk, less than memory.
    assert 30e6 < kept["bytes_per_second"] < 20e9
    assert 20e-6 < kept["small_sum_seconds"] < 0.1
    words = [sys.executable, "-m", "bigft", "plan", "--hosts", "2", "--num_gpus", "2"]
    words += ["--config", str(ROOT / "ds_configs/zero3.json")]
    environ = {**os.environ, **situation.environ}
    done = subprocess.run(words, env=environ, capture_output=True, text=True, cwd=ROOT)
    assert f"measured rate, {kept['when'][:10]} between {', '.join(names)} (gloo" in done.stdout


@pytest.mark.nightly
@SIMULATED
def test_faults_of_simulated_hosts_are_found_together(situation, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hosts")
    clock = {"LD_PRELOAD": str(build_clock(folder)), "CLOCK_OFFSET": "600"}
    with SimulatedHosts(folder, 3, {2: clock}) as hosts:
        _use(situation, hosts, [*hosts.names, f"{NETWORK}.99"])
        told = examine(situation, "--checks", "limits,network")
    faults = {(f["name"], f["host"]) for f in told.report["findings"] if not f["ok"]}
    assert faults == {("clock_skew", hosts.names[1]), ("ssh", f"{NETWORK}.99")}
    assert "600 s ahead" in told.find("clock_skew")["found"]
    assert told.code == 6


def _use(situation: Situation, hosts: SimulatedHosts, names: list[str]) -> None:
    situation.add_program("ssh", hosts.write_ssh())
    lines = "".join(f"{name} slots=1\n" for name in names)
    situation.words += ["--hostfile", str(situation.write("hostfile", lines))]


# --- The page, the words, the exit code ---


def test_the_page_says_what_why_and_how(situation):
    few_open_files(situation)
    done = start(situation, "--checks", "limits,versions")
    assert done.returncode == 6
    assert "FAIL  open_files" in done.stdout
    assert "repair  ulimit -n 4096" in done.stdout
    assert done.stdout.rstrip().endswith("checks failed")
    assert done.stderr.startswith("bigft: not ready, 1 fault: open_files")


def test_a_bad_hostfile_is_refused_before_anything_is_done(situation):
    situation.write("hostfile", "-oProxyCommand=touch${IFS}here slots=1\nb slots=0\n")
    done = start(situation, "--hostfile", str(situation.folder / "hostfile"))
    assert done.returncode == 6
    assert "line 1" in done.stderr
    assert "line 2" in done.stderr
    assert not (situation.folder / "here").exists()


def test_wrong_settings_are_answered_as_in_training(situation):
    done = start(situation, "--checks", "limit", "--learnig_rate", "1")
    assert done.returncode == 2
    assert "learning_rate" in done.stderr
    assert "--checks" in done.stderr


def test_settings_reach_the_hosts_but_no_command_line(situation):
    """A secret in a setting would be seen by every user of a host."""
    add_hosts(situation, h1=f'echo "$cmd" >> {situation.folder}/seen', h2="")
    situation.words += ["--monitor.project", "https://me:planted-pw-4711@host/x"]
    told = examine(situation, "--checks", "limits")
    assert told.code == 0, told.report
    seen = (situation.folder / "seen").read_text()
    assert "planted-pw-4711" not in seen
    assert seen.count("\n") == 2
