"""Runs that other programs than DeepSpeed's launcher start: torchrun, MPI, Slurm."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from launched import checkpoints
from simulated_hosts import NETWORK, SimulatedHosts, can_simulate
from slurm_cluster import SlurmCluster, can_run_slurm
from small_runs import read_steps

from bigft.launch.hostfile import Host
from bigft.launch.mpi import find_mpirun, mpi_command, mpi_environment
from bigft.launch.render.build import RENDERERS
from bigft.launch.render.start import Start

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.distributed

needs_openmpi = pytest.mark.skipif(
    not shutil.which("mpirun.openmpi"), reason="needs Open MPI (Debian: openmpi-bin)"
)
needs_mpich = pytest.mark.skipif(
    not shutil.which("mpiexec.hydra"), reason="needs MPICH (Debian: mpich)"
)
needs_hosts = pytest.mark.skipif(not can_simulate(), reason="needs root, iproute2 and sshd")
needs_slurm = pytest.mark.skipif(
    not can_run_slurm(), reason="needs root and Slurm (Debian: slurm-wlm, munge)"
)


def make_words(shared: Path, folder: Path, steps: int) -> list[str]:
    words = [
        "train",
        "--config", ROOT / "ds_configs/zero3.json",
        "--model", shared / "model",
        "--data", shared / "chat.jsonl",
        "--data.loading.cache_dir", shared / "cache",
        "--data.eval_fraction", 0.1,
        "--evaluation.eval_on_start", "false",
        "--max_length", 64,
        "--max_steps", steps,
        "--output_dir", folder,
    ]  # fmt: skip
    return [str(word) for word in words]


def make_start(shared: Path, folder: Path, steps: int, **changes: Any) -> Start:
    return Start(
        make_words(shared, folder, steps),
        output_dir=str(folder),
        folder=str(folder.parent),
        python=sys.executable,
        on_gpus=False,
        **{"ranks_per_node": 2, **changes},
    )


def make_environment(**changes: str) -> dict[str, str]:
    """That of a user, who has not said how many ranks there are."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MASTER_PORT": port}
    environ["PATH"] = f"{Path(sys.executable).parent}:{environ['PATH']}"
    environ.pop("LOCAL_SIZE", None)
    return {**environ, **changes}


class Script:
    """A rendered script that runs, and is ended in any case."""

    def __init__(self, text: str, folder: Path, environ: dict[str, str], *words: str) -> None:
        self.output = folder.with_suffix(".out")
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                ["bash", "-c", text, "script", *words],
                env=environ,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.folder = folder

    def wait_for_step(self, step: int, seconds: float = 90) -> None:
        end = time.monotonic() + seconds
        while newest_step(self.folder) < step:
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < end, self.said()
            time.sleep(0.1)

    def said(self) -> str:
        return self.output.read_text(errors="replace")[-5000:]


def newest_step(folder: Path) -> int:
    """The last step of a run so far."""
    file = folder / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return max((json.loads(x).get("step", 0) for x in lines if x.endswith("}")), default=0)


@contextlib.contextmanager
def scripted(text: str, folder: Path, environ: dict[str, str], *words: str) -> Iterator[Script]:
    script = Script(text, folder, environ, *words)
    try:
        yield script
    finally:
        for pid in find_processes(str(folder)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        script.process.kill()
        script.process.wait()


def find_processes(word: str) -> list[int]:
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if word.encode() in file.read_bytes() and int(file.parent.name) != os.getpid():
                found.append(int(file.parent.name))
    return found


def read_ranks(folder: Path) -> int:
    return len([*(folder / "log").glob("rank_*.log")])


def test_torchrun(shared_folder, tmp_path):
    folder = tmp_path / "run"
    text = RENDERERS["torchrun"](make_start(shared_folder, folder, 3))
    with scripted(text, folder, make_environment(), "0") as script:
        assert script.process.wait(120) == 0, script.said()
    assert [row["step"] for row in read_steps(folder)] == [1, 2, 3]
    assert read_ranks(folder) == 2
    environment = json.loads((folder / "resolved/environment.json").read_text())
    assert environment["environment"]["WORLD_SIZE"] == "2"


@pytest.mark.nightly
def test_torchrun_gives_ranks_the_time_to_commit(shared_folder, tmp_path):
    folder = tmp_path / "run"
    text = RENDERERS["torchrun"](make_start(shared_folder, folder, 100_000))
    for number in (signal.SIGTERM, signal.SIGUSR1):
        with scripted(text, folder, make_environment(), "0") as script:
            script.wait_for_step(newest_step(folder) + 3)
            script.process.send_signal(number)
            # However its ranks end, torchrun itself returns 1.
            assert script.process.wait(60) == 1, script.said()
            assert "committed" in script.said()
    assert len(checkpoints(folder)) == 2


MPI = [
    pytest.param("openmpi", "mpirun.openmpi", marks=needs_openmpi, id="openmpi"),
    pytest.param("mpich", "mpiexec.hydra", marks=needs_mpich, id="mpich"),
]


@pytest.mark.parametrize(("name", "program"), MPI)
def test_mpirun_is_stopped_with_everything_committed(name, program, shared_folder, tmp_path):
    folder = tmp_path / "run"
    text = RENDERERS[name](make_start(shared_folder, folder, 100_000))
    with scripted(text, folder, make_environment(MPIRUN=program)) as script:
        script.wait_for_step(3)
        script.process.send_signal(signal.SIGTERM)
        assert script.process.wait(60) == 75, script.said()
        assert "committed" in script.said()
        assert find_processes(str(folder)) == []
    assert len(checkpoints(folder)) == 1
    assert read_ranks(folder) == 2


@pytest.mark.nightly
@pytest.mark.parametrize(("name", "program"), MPI)
def test_mpirun_ends_with_the_code_of_the_run(name, program, shared_folder, tmp_path):
    folder = tmp_path / "run"
    start = make_start(shared_folder, folder, 3)
    with scripted(RENDERERS[name](start), folder, make_environment(MPIRUN=program)) as script:
        assert script.process.wait(120) == 0, script.said()
    assert [row["step"] for row in read_steps(folder)] == [1, 2, 3]
    wrong = Start(**{**vars(start), "words": [*start.words, "--learning_rte", "1"]})
    with scripted(RENDERERS[name](wrong), folder, make_environment(MPIRUN=program)) as script:
        assert script.process.wait(60) == 2
    assert script.said().count("--learning_rte: no such setting") == 1


@pytest.mark.nightly
@needs_openmpi
def test_deepspeed_s_own_launcher_for_openmpi(shared_folder, tmp_path):
    folder = tmp_path / "run"
    (tmp_path / "hosts").write_text("localhost slots=2\n")
    environ = make_environment(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    # Its own choice is eth0, which a machine need not have.
    options = "--mca btl_tcp_if_include lo --oversubscribe -x DS_ACCELERATOR"
    words = ["deepspeed", "--hostfile", str(tmp_path / "hosts"), "--force_multi", "--no_ssh_check"]
    words += ["--master_addr", "127.0.0.1", "--launcher", "openmpi", "--launcher_args", options]
    words += [str(ROOT / "launch_scripts/run.py"), *make_words(shared_folder, folder, 3)[1:]]
    done = subprocess.run(words, env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row["step"] for row in read_steps(folder)] == [1, 2, 3]
    assert read_ranks(folder) == 2


@pytest.mark.nightly
@needs_hosts
@pytest.mark.parametrize(("name", "program"), MPI)
def test_mpirun_over_two_hosts(name, program, shared_folder, tmp_path):
    folder = tmp_path / "run"
    with SimulatedHosts(tmp_path / "hosts", 2) as hosts:
        path = hosts.write_tools(tmp_path / "tools")
        environ = make_environment(PATH=path, MASTER_ADDR=hosts.names[0], HF_TOKEN="hf_hidden")
        # Names of simulated hosts have no addresses.
        environ |= mpi_environment(name) | {"GLOO_SOCKET_IFNAME": "eth0"}
        names = ["PATH", "PYTHONPATH", "DS_ACCELERATOR", "OMP_NUM_THREADS", "MASTER_ADDR"]
        names += ["MASTER_PORT", "HF_TOKEN", "HF_HUB_OFFLINE", "GLOO_SOCKET_IFNAME"]
        words = [sys.executable, "-m", "bigft", *make_words(shared_folder, folder, 100_000)]
        pool = [Host(host, 1) for host in hosts.names]
        command = mpi_command(name, pool, words, names, as_root=True, here=f"{NETWORK}.254")
        assert command[0] == find_mpirun(name) == program
        with scripted('exec "$@"', folder, environ, *command) as script:
            script.wait_for_step(2)
            lines = b"".join(p.read_bytes() for p in find_command_lines())
            assert b"hf_hidden" not in lines
            script.process.send_signal(signal.SIGUSR1)
            # MPICH forgets the codes of ranks on several hosts after a signal.
            expected = (75,) if name == "openmpi" else (75, 0)
            assert script.process.wait(90) in expected, script.said()
        assert "committed" in script.said()
        for number in (1, 2):
            assert not hosts.processes(number, str(folder))
    assert read_ranks(folder) == 2


def find_command_lines() -> list[Path]:
    return [p for p in Path("/proc").glob("[0-9]*/cmdline") if p.exists()]


@pytest.fixture
def cluster() -> Iterator[SlurmCluster]:
    # A short path: sockets are in it.
    with (
        tempfile.TemporaryDirectory(prefix="bigft-slurm-") as folder,
        SlurmCluster(Path(folder) / "s") as found,
    ):
        yield found


def submit(cluster: SlurmCluster, start: Start, *words: str) -> str:
    script = cluster.folder / "slurm.sbatch"
    script.write_text(RENDERERS["slurm"](start))
    out = str(cluster.folder / "job.out")
    return cluster.submit("--mem=1000", "--output", out, *words, str(script), **slurm_environment())


def slurm_environment() -> dict[str, str]:
    environ = make_environment()
    names = ("PYTHONPATH", "OMP_NUM_THREADS", "DS_ACCELERATOR", "HF_HUB_OFFLINE")
    return {name: environ[name] for name in names}


def read_output(cluster: SlurmCluster) -> str:
    return (cluster.folder / "job.out").read_text(errors="replace")


def wait_for_step(cluster: SlurmCluster, folder: Path, step: int, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while newest_step(folder) < step:
        assert time.monotonic() < end, cluster.said()
        time.sleep(0.2)


def let_start(cluster: SlurmCluster, job: str) -> None:
    """Have a job begin that was queued again; Slurm would let it wait for two minutes."""
    # Nodes refuse what begins in the second in which it was ended.
    time.sleep(3)
    cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now")


@pytest.mark.nightly
@needs_slurm
def test_a_slurm_job_stops_in_time_is_queued_again_and_finishes(cluster, shared_folder, tmp_path):
    folder = tmp_path / "run"
    # Two nodes with a rank each.
    start = make_start(shared_folder, folder, 60, nodes=2, ranks_per_node=1)
    job = submit(cluster, start)
    wait_for_step(cluster, folder, 3)
    # What `--signal` does before the time limit.
    cluster.run("scancel", "--signal=USR1", job)
    cluster.wait_for_job(job, "PENDING", restarts=1)
    stopped = newest_step(folder)
    assert checkpoints(folder) == [f"step_{stopped:08d}"]
    assert stopped < 60
    let_start(cluster, job)
    cluster.wait_for_job(job, "COMPLETED", restarts=1, seconds=150)
    assert [row["step"] for row in read_steps(folder)] == [*range(1, 61)]
    assert (folder / "model/config.json").exists()
    said = read_output(cluster)
    assert f"stopped by SIGUSR1 at step {stopped} of 60, committed" in said
    assert "queued again" in said


@pytest.mark.nightly
@needs_slurm
def test_a_slurm_job_that_is_preempted_comes_back(cluster, shared_folder, tmp_path):
    folder = tmp_path / "run"
    job = submit(cluster, make_start(shared_folder, folder, 100_000, nodes=1))
    wait_for_step(cluster, folder, 3)
    wrap = ["--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null"]
    cluster.submit(*wrap, "--wrap", "sleep 5")
    cluster.wait_for_job(job, "PENDING", restarts=1)
    (first,) = checkpoints(folder)
    let_start(cluster, job)
    wait_for_step(cluster, folder, int(first[5:]) + 3)
    # Who cancels does not want it back.
    cluster.run("scancel", job)
    cluster.wait_for_job(job, "CANCELLED", restarts=1)
    assert len(checkpoints(folder)) == 2
    time.sleep(3)
    assert cluster.read_job(job)["JobState"] == "CANCELLED"


@pytest.mark.nightly
@needs_slurm
def test_slurm_returns_the_code_of_the_run(cluster, shared_folder, tmp_path):
    folder = tmp_path / "run"
    start = make_start(shared_folder, folder, 3)
    wrong = Start(**{**vars(start), "words": [*start.words, "--learning_rte", "1"]})
    job = submit(cluster, wrong)
    cluster.wait_for_job(job, "FAILED")
    assert cluster.read_job(job)["ExitCode"] == "2:0"
    assert read_output(cluster).count("--learning_rte: no such setting") == 1


@pytest.mark.nightly
@needs_slurm
def test_a_job_script_without_srun_is_one_process(cluster, shared_folder, tmp_path):
    folder = tmp_path / "run"
    words = [sys.executable, "-m", "bigft", *make_words(shared_folder, folder, 2)]
    script = cluster.folder / "plain.sbatch"
    script.write_text('#!/bin/bash\nexec "$@"\n')
    options = ["--ntasks=2", "--output", str(cluster.folder / "job.out")]
    job = cluster.submit(*options, str(script), *words, **slurm_environment())
    cluster.wait_for_job(job, "COMPLETED")
    assert read_ranks(folder) == 1
