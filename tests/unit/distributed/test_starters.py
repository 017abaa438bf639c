"""Ranks and addresses from the variables of every starter, and what is wrong with them."""

import pytest

from bigft.distributed import starters
from bigft.distributed.children import leave_launcher
from bigft.distributed.starters import be_alone, complete_environment
from bigft.errors import LaunchError

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")
MEETING = {"MASTER_ADDR": "a", "MASTER_PORT": "29501"}
USUAL = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", **MEETING}

# As `env` shows them in a task of Slurm 22.05 on two nodes, 3 + 1 tasks.
SLURM = {
    "SLURM_JOB_ID": "17",
    "SLURM_JOB_NODELIST": "bf[1-2]",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "bf[1-2]",
    "SLURM_STEP_TASKS_PER_NODE": "3,1",
    "SLURM_NTASKS": "4",
    "SLURM_NODEID": "0",
    "SLURM_LOCALID": "2",
    "SLURM_PROCID": "2",
}
# Open MPI 4.1.4, two hosts with two ranks each.
OPENMPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_MCA_orte_hnp_uri": "1277362176.0;tcp://192.0.2.2,10.0.0.1:44059;tcp6://[fd00::2]:39713",
    "OMPI_MCA_orte_local_daemon_uri": "1277362176.1;tcp://192.0.2.3:39123",
    "PMIX_NAMESPACE": "1277362177",
    "PMIX_RANK": "3",
}
# MPICH 4.0.2 on one host; Intel MPI has the same names.
HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
KUBEFLOW = {
    "PET_NNODES": "2",
    "PET_NPROC_PER_NODE": "1",
    "PET_NODE_RANK": "1",
    "PET_MASTER_ADDR": "run-node-0-0.run",
    "PET_MASTER_PORT": "29400",
}


is_known = starters._is_known


@pytest.fixture(autouse=True)
def _names_are_known(monkeypatch):
    monkeypatch.setattr(starters, "_is_known", lambda host: host != "unknown")


def place(*environ, **changes):
    """What a process with these variables takes itself for."""
    found = {name: text for part in environ for name, text in part.items()} | changes
    complete_environment(found)
    return tuple(found.get(name) for name in NAMES)


def problems(*environ, **changes):
    with pytest.raises(LaunchError) as caught:
        place(*environ, **changes)
    assert caught.value.exit_code == 6
    assert caught.value.is_local
    return list(caught.value.problems) or [str(caught.value)]


def test_a_process_that_nobody_started_stays_as_it_is():
    environ = {"PATH": "p", "SLURM_JOB_ID": "17"}
    complete_environment(environ)
    assert environ == {"PATH": "p", "SLURM_JOB_ID": "17"}
    be_alone(environ)
    assert [environ[name] for name in NAMES[:5]] == ["0", "1", "0", "1", "127.0.0.1"]
    assert int(environ["MASTER_PORT"]) > 0


def test_ranks_that_are_only_planned_for_are_no_launch():
    environ = {"WORLD_SIZE": "8", "LOCAL_SIZE": "4"}
    complete_environment(environ)
    assert environ == {"WORLD_SIZE": "8", "LOCAL_SIZE": "4"}
    with pytest.raises(LaunchError, match="WORLD_SIZE=8, but RANK, LOCAL_RANK"):
        be_alone(environ)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        pytest.param(USUAL, ("1", "4", "1", "4", "a", "29501"), id="usual words"),
        pytest.param(
            {**USUAL, "LOCAL_SIZE": "2"}, ("1", "4", "1", "2", "a", "29501"), id="deepspeed"
        ),
        pytest.param(
            {**USUAL, "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x", "GROUP_RANK": "0"},
            ("1", "4", "1", "2", "a", "29501"),
            id="torchrun",
        ),
        pytest.param({**SLURM, **MEETING}, ("2", "4", "2", "3", "a", "29501"), id="slurm"),
        pytest.param(
            {**SLURM, "SLURM_NODEID": "1", "SLURM_PROCID": "3", "SLURM_LOCALID": "0", **MEETING},
            ("3", "4", "0", "1", "a", "29501"),
            id="slurm, the smaller node",
        ),
        pytest.param({**OPENMPI, **MEETING}, ("3", "4", "1", "2", "a", "29501"), id="openmpi"),
        pytest.param({**HYDRA, **MEETING}, ("1", "2", "1", "2", "a", "29501"), id="mpich"),
        pytest.param(
            {"PMI_RANK": "1", "PMI_SIZE": "2", "PMI_LOCAL_RANK": "0", "PMI_LOCAL_SIZE": "1"}
            | MEETING,
            ("1", "2", "0", "1", "a", "29501"),
            id="pals",
        ),
        pytest.param(KUBEFLOW, ("1", "2", "0", "1", "run-node-0-0.run", "29400"), id="kubeflow"),
        pytest.param(
            # The operator before it counts in the usual words, too.
            {**KUBEFLOW, "RANK": "1", "WORLD_SIZE": "2", **MEETING},
            ("1", "2", "0", "1", "a", "29501"),
            id="kubeflow's training operator",
        ),
        pytest.param(
            {"JOB_COMPLETION_INDEX": "1", "WORLD_SIZE": "2", **MEETING},
            ("1", "2", "0", "1", "a", "29501"),
            id="indexed job",
        ),
    ],
)
def test_every_starter_is_understood(environ, expected):
    assert place(environ) == expected
    # Ranks are read once more where the world is opened.
    once = dict(environ)
    complete_environment(once)
    assert place(once) == expected


@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        pytest.param({**SLURM, "SLURM_STEP_NUM_TASKS": "2"}, USUAL, id="srun torchrun"),
        pytest.param(OPENMPI, USUAL, id="mpirun, a launcher on every host"),
        pytest.param({"JOB_COMPLETION_INDEX": "3"}, USUAL, id="torchrun in a pod"),
    ],
)
def test_the_inner_starter_counts(outer, inner):
    assert place(outer, inner) == place(inner)


def test_mpirun_in_a_slurm_job_counts_ranks_and_not_daemons():
    daemon = {**SLURM, "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_NODEID": "1"}
    assert place(daemon, OPENMPI)[:5] == ("3", "4", "1", "2", "bf1")
    assert place(daemon, HYDRA, PMI_SIZE="4", PMI_RANK="3")[:5] == ("3", "4", "1", "2", "bf1")


def test_srun_with_pmi2_is_slurm():
    assert place(SLURM, {"PMI_RANK": "2", "PMI_SIZE": "4"}, MEETING) == place(SLURM, MEETING)


def test_a_job_script_is_no_task():
    """The script of sbatch has SLURM_PROCID=0 and SLURM_NTASKS, but no step."""
    script = {name: text for name, text in SLURM.items() if "_STEP_" not in name}
    assert place(script) == (None,) * 6


def test_a_shell_on_a_terminal_is_no_task_and_what_it_starts_is(monkeypatch):
    shell = {**SLURM, "SLURM_PTY_PORT": "41587"}
    monkeypatch.setattr(starters, "_has_terminal", lambda: True)
    assert place(shell) == (None,) * 6
    # `srun` in that shell leaves the variable, but its tasks are not on the terminal.
    monkeypatch.setattr(starters, "_has_terminal", lambda: False)
    assert place(shell)[:2] == ("2", "4")


@pytest.mark.parametrize(
    ("names", "first"),
    [
        ("bf[1-2]", "bf1"),
        ("gpu[03-05,9],login", "gpu03"),
        ("gpu[7,3-5]", "gpu7"),
        ("a,b[1-2]", "a"),
        ("r[1-2]n[08-09]-ib0,x", "r1n08-ib0"),
        ("node-1.example.org", "node-1.example.org"),
        ("", None),
    ],
)
def test_the_first_host_of_a_slurm_list(names, first):
    environ = {**SLURM, "SLURM_STEP_NODELIST": names}
    if first is None:
        assert "SLURM_STEP_NODELIST" in problems(environ)[0]
    else:
        assert place(environ)[4] == first


def test_a_node_that_has_no_address_here_is_said_at_once():
    (problem,) = problems(SLURM, SLURM_STEP_NODELIST="unknown,bf2")
    assert problem.startswith("rank 0 is on unknown")
    assert "MASTER_ADDR" in problem
    assert place(SLURM, MEETING, SLURM_STEP_NODELIST="unknown,bf2")[4] == "a"


@pytest.mark.parametrize("name", ["a" * 70, "a..b", ".a"])
def test_what_can_be_no_name_is_not_known(name):
    assert not is_known(name)


@pytest.mark.parametrize(
    ("text", "counts"),
    [("3,1", [3, 1]), ("2(x3),1", [2, 2, 2, 1]), ("4", [4]), ("", []), ("2(x", []), ("a", [])],
)
def test_tasks_per_node(text, counts):
    assert starters._expand_counts(text) == counts


def test_the_port_of_a_slurm_job_is_that_of_all_its_tasks_and_of_no_other_step():
    ports = {place(SLURM, SLURM_PROCID=str(rank), SLURM_LOCALID="0")[5] for rank in range(4)}
    assert len(ports) == 1
    assert 15000 <= int(ports.pop()) < 30000
    steps = {place(SLURM, SLURM_STEP_ID=str(step))[5] for step in range(20)}
    jobs = {place(SLURM, SLURM_JOB_ID=str(job))[5] for job in range(1000, 1020)}
    assert len(steps) == len(jobs) == 20


def test_mpi_on_one_host_needs_no_address():
    one_host = {"OMPI_COMM_WORLD_LOCAL_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "3"}
    assert place(OPENMPI, one_host)[4] == "127.0.0.1"
    assert place(OPENMPI, one_host)[5] != place(OPENMPI, one_host, PMIX_NAMESPACE="2")[5]
    assert place(HYDRA)[4:] == ("127.0.0.1", "29500")


def test_open_mpi_s_ranks_meet_where_mpirun_is_if_rank_zero_is_there():
    assert place(OPENMPI)[4] == "192.0.2.2"
    first = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
    uri = {"OMPI_MCA_orte_local_daemon_uri": OPENMPI["OMPI_MCA_orte_hnp_uri"]}
    assert place(OPENMPI, first, uri)[4] == "192.0.2.2"
    (problem,) = problems(OPENMPI, first)
    assert "mpirun -x MASTER_ADDR" in problem


def test_all_problems_are_said_at_once():
    found = problems(SLURM, SLURM_PROCID="two", SLURM_LOCALID="-1", SLURM_STEP_TASKS_PER_NODE="x")
    assert len(found) == 3
    assert found[0].startswith("SLURM_PROCID='two': must be a whole number from 0 on")
    assert found[1].startswith("SLURM_LOCALID='-1'")
    assert found[2].startswith("SLURM_STEP_TASKS_PER_NODE='x'")


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        pytest.param(
            {"RANK": "1", "WORLD_SIZE": "2"},
            ["set RANK, WORLD_SIZE but not LOCAL_RANK, MASTER_ADDR, MASTER_PORT"],
            id="half of the usual words",
        ),
        pytest.param({**USUAL, "RANK": "4"}, ["RANK=4, WORLD_SIZE=4"], id="rank beyond the size"),
        pytest.param({**USUAL, "RANK": "x"}, ["RANK='x'"], id="no number"),
        pytest.param({**USUAL, "RANK": "٣"}, ["RANK='٣'"], id="no number that others read"),
        pytest.param({**USUAL, "WORLD_SIZE": "0"}, ["WORLD_SIZE='0'"], id="nobody"),
        pytest.param({**USUAL, "MASTER_PORT": "70000"}, ["MASTER_PORT='70000'"], id="no port"),
        pytest.param(
            {**USUAL, "LOCAL_SIZE": "2", "MASTER_ADDR": " "},
            ["MASTER_ADDR is not set"],
            id="no address",
        ),
        pytest.param({**USUAL, "LOCAL_SIZE": "8"}, ["LOCAL_SIZE=8, WORLD_SIZE=4"], id="too many"),
        pytest.param(
            {**USUAL, "LOCAL_SIZE": "2", "LOCAL_WORLD_SIZE": "4"},
            ["LOCAL_SIZE='2', but LOCAL_WORLD_SIZE says 4"],
            id="two answers",
        ),
        pytest.param({**SLURM, "RANK": "3"}, ["RANK='3', but SLURM_PROCID says 2"], id="stale"),
        pytest.param(
            {**SLURM, "WORLD_SIZE": "8"}, ["WORLD_SIZE='8', but SLURM_STEP_NUM_TASKS"], id="gpus"
        ),
        pytest.param(
            {**HYDRA, "PMI_SIZE": "4"}, ["MASTER_ADDR is not set", "-genvall"], id="two hosts"
        ),
        pytest.param({"PMI_RANK": "1"}, ["PMI_SIZE is not set", "MPI_LOCALRANKID"], id="half"),
        pytest.param({"OMPI_COMM_WORLD_RANK": "1"}, ["OMPI_COMM_WORLD_SIZE"], id="half, openmpi"),
        pytest.param({**KUBEFLOW, "PET_NPROC_PER_NODE": "8"}, ["torchrun"], id="no torchrun"),
        pytest.param({**KUBEFLOW, "PET_NNODES": "1:4"}, ["PET_NNODES='1:4'"], id="elastic"),
        pytest.param({"PMIX_RANK": "1"}, ["PMIX_RANK='1'", "mpirun"], id="bare pmix"),
        pytest.param(
            {"JOB_COMPLETION_INDEX": "1", "WORLD_SIZE": "2"}, ["headless service"], id="no service"
        ),
    ],
)
def test_what_does_not_fit_is_named_with_its_value_and_a_repair(environ, words):
    text = " ".join(problems(environ))
    for word in words:
        assert word in text


@pytest.mark.parametrize("environ", [USUAL, SLURM, OPENMPI, HYDRA, KUBEFLOW])
def test_a_child_of_a_rank_is_a_run_of_its_own(environ):
    rank = {**environ, "PATH": "p", "SLURM_JOB_ID": "17"}
    complete_environment(rank)
    child = leave_launcher(rank)
    assert child["SLURM_JOB_ID"] == "17"
    complete_environment(child)
    assert "RANK" not in child
    be_alone(child)
