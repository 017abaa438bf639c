"""Which rank this process is, whoever started it; nobody else reads the variables of starters.

DeepSpeed's launcher and torchrun say it in the usual words: RANK, WORLD_SIZE, LOCAL_RANK,
MASTER_ADDR, MASTER_PORT. Slurm, MPI and Kubernetes have words of their own; these are translated
once, when bigft begins, and after that everybody reads the usual ones. Where one starter runs
inside another (`srun torchrun`, `mpirun` in a Slurm job), the inner one counts.
"""

import re
import socket
import zlib
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from pathlib import Path

from bigft.distributed.children import find_free_port
from bigft.errors import LaunchError, raise_together

_USUAL = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")

RANK_NAMES = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")
"""Where the rank of another process may stand, the innermost starter first."""

_DEFAULT_PORT = 29500  # That of torchrun and DeepSpeed.
# Below the ports that Linux gives to outgoing connections (from 32768 on).
_FIRST_PORT, _PORTS = 15000, 15000


def complete_environment(environ: MutableMapping[str, str]) -> None:
    """Say in the usual words which rank this process is; nothing is changed for one that is none.

    Raises:
        LaunchError: Variables are missing, no numbers, or contradict each other; all are listed.
    """
    reader = _Reader(environ)
    translate = _find_starter(environ)
    if translate is None:
        return
    translate(reader)
    reader.check()
    environ.update(reader.found)


def be_alone(environ: MutableMapping[str, str]) -> None:
    """Make this process, which no starter has started, the only rank of its run.

    Raises:
        LaunchError: WORLD_SIZE asks for others.
    """
    size = environ.get("WORLD_SIZE", "1")
    if size != "1":
        _fail(
            [
                f"WORLD_SIZE={size}, but {_join(n for n in _USUAL if n not in environ)} not set;"
                " start the ranks with `deepspeed launch_scripts/run.py ...` or another starter, or"
                " unset it for a single process"
            ]
        )
    environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_SIZE="1")
    environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(find_free_port()))


class _Reader:
    """Reads numbers, and collects what is wrong with them."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ
        self.problems: list[str] = []
        self.found: dict[str, str] = {}
        self._sources: dict[str, str] = {}

    def number(self, name: str, low: int = 0, high: int = 1 << 31) -> int | None:
        """Return the number in a variable; None when there is none, and that is noted."""
        text = self.environ.get(name)
        if text is None:
            self.problems.append(f"{name} is not set, though its starter sets it; pass it on")
            return None
        if not re.fullmatch("[0-9]{1,10}", text) or not low <= int(text) <= high:
            limit = f"from {low} on" if high == 1 << 31 else f"from {low} to {high}"
            self.problems.append(
                f"{name}={text!r}: must be a whole number {limit}; do not set it yourself"
            )
            return None
        return int(text)

    def give(self, name: str, value: int | None, source: str) -> None:
        """Keep what a starter says; the same word of another one must not say something else."""
        if value is None:
            return
        text = str(value)
        given = self.environ.get(name, text)
        if given != text:
            self.problems.append(
                f"{name}={given!r}, but {source} says {text}; unset {name}, or start the ranks"
                " with one starter only"
            )
        self.found[name] = text
        self._sources[name] = source

    def meet(self, address: str | None, repair: str, seed: str | None = None) -> None:
        """Say where the ranks meet: MASTER_ADDR and MASTER_PORT, or what follows from the rest."""
        size, here = self.found.get("WORLD_SIZE"), self.found.get("LOCAL_SIZE")
        given = self.environ.get("MASTER_ADDR", "").strip()
        if given:
            address = given
        elif size is not None and size == here:
            address = "127.0.0.1"
        if address is None:
            self.problems.append(
                f"MASTER_ADDR is not set, and nothing else says where rank 0 is; {repair}"
            )
            return
        # The name of a node need not be one in the network, and torch would try for two hours.
        if not given and not _is_known(address):
            self.problems.append(
                f"rank 0 is on {address}, but no address of it is known here; export MASTER_ADDR"
            )
        self.found["MASTER_ADDR"] = address
        if "MASTER_PORT" in self.environ:
            self.give("MASTER_PORT", self.number("MASTER_PORT", 1, 65535), "MASTER_PORT")
        elif size == "1":
            self.found["MASTER_PORT"] = str(find_free_port())
        else:
            port = _FIRST_PORT + zlib.crc32(seed.encode()) % _PORTS if seed else _DEFAULT_PORT
            self.found["MASTER_PORT"] = str(port)

    def check(self) -> None:
        """Raise what has been found wrong, or does not fit together."""
        for low, high in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_SIZE")):
            self._compare(low, high, is_below=True)
        self._compare("LOCAL_SIZE", "WORLD_SIZE", is_below=False)
        if self.problems:
            _fail(self.problems)

    def _compare(self, low: str, high: str, *, is_below: bool) -> None:
        if low not in self.found or high not in self.found:
            return
        first, second = int(self.found[low]), int(self.found[high])
        if first >= second if is_below else first > second:
            names = [self._sources[low], self._sources[high]]
            relation = "less than" if is_below else "at most"
            self.problems.append(
                f"{names[0]}={first}, {names[1]}={second}: the first must be {relation} the second;"
                " unset what does not come from the starter"
            )


def _fail(problems: list[str]) -> None:
    try:
        raise_together(LaunchError, problems)
    except LaunchError as error:
        # Nobody knows yet who is rank 0: each has to say it.
        error.is_local = True
        raise


def _find_starter(environ: Mapping[str, str]) -> Callable[[_Reader], None] | None:
    """Tell by its variables who started this process; None: nobody."""
    has = environ.__contains__
    is_task = has("SLURM_STEP_ID") and has("SLURM_PROCID")
    is_on_terminal = has("SLURM_PTY_PORT") and _has_terminal()
    # `srun --mpi=pmi2` sets the first two as well; only a process manager of its own the others.
    is_managed = any(map(has, (*_LOCAL_RANKS, *_LOCAL_SIZES))) or not is_task
    order = (
        (all(map(has, _USUAL)), _read_usual),
        (has("OMPI_COMM_WORLD_RANK") or has("OMPI_COMM_WORLD_SIZE"), _read_openmpi),
        ((has("PMI_RANK") or has("PMI_SIZE")) and is_managed, _read_hydra),
        (is_task and not is_on_terminal, _read_slurm),
        (has("PET_NODE_RANK") or has("PET_NNODES"), _read_kubeflow),
        (has("RANK") or has("LOCAL_RANK"), _read_usual),
        # An indexed job may as well be many runs of one process each.
        (has("JOB_COMPLETION_INDEX") and (has("WORLD_SIZE") or has("MASTER_ADDR")), _read_indexed),
        (has("PMIX_RANK") and not is_task, _refuse_bare_pmix),
    )
    return next((translate for holds, translate in order if holds), None)


def _read_usual(reader: _Reader) -> None:
    """DeepSpeed's launcher, torchrun, `bigft launch`."""
    environ = reader.environ
    if missing := [name for name in _USUAL if name not in environ]:
        given = [name for name in _USUAL if name in environ]
        reader.problems.append(
            f"the launcher set {_join(given)} but not {_join(missing)}; start the run with"
            " `deepspeed launch_scripts/run.py ...`, or unset them all for a single process"
        )
    sizes = [name for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE") if name in environ]
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", *sizes):
        if name in environ:
            low = int(name.endswith("SIZE"))
            usual = "LOCAL_SIZE" if name in sizes else name
            reader.give(usual, reader.number(name, low), name)
    if not missing:
        if not sizes:
            reader.give("LOCAL_SIZE", reader.number("WORLD_SIZE", 1), "WORLD_SIZE")
        reader.meet(None, "set it to the address of the first host")


def _read_slurm(reader: _Reader) -> None:
    """A task of `srun`; the script of `sbatch` is none, and a shell on a terminal is none."""
    environ = reader.environ
    reader.give("RANK", reader.number("SLURM_PROCID"), "SLURM_PROCID")
    sizes = ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS")
    size = next((name for name in sizes if name in environ), sizes[0])
    reader.give("WORLD_SIZE", reader.number(size, 1), size)
    reader.give("LOCAL_RANK", reader.number("SLURM_LOCALID"), "SLURM_LOCALID")
    per_node = next((n for n in _TASKS_PER_NODE if n in environ), _TASKS_PER_NODE[0])
    node = reader.number("SLURM_NODEID")
    counts = _expand_counts(environ.get(per_node, ""))
    if node is not None and node < len(counts):
        reader.give("LOCAL_SIZE", counts[node], per_node)
    elif node is not None:
        reader.problems.append(
            f"{per_node}={environ.get(per_node, '')!r}: says nothing of node {node}"
            " (SLURM_NODEID); start the ranks with `srun`"
        )
    address = _find_first_host(environ.get("SLURM_STEP_NODELIST", ""))
    # Two steps of a job may run at once.
    seed = f"{environ.get('SLURM_JOB_ID', '')}.{environ['SLURM_STEP_ID']}"
    reader.meet(address, "start the ranks with `srun`, which sets SLURM_STEP_NODELIST", seed)


_TASKS_PER_NODE = ("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE")


def _read_openmpi(reader: _Reader) -> None:
    """`mpirun` of Open MPI."""
    reader.give("RANK", reader.number("OMPI_COMM_WORLD_RANK"), "OMPI_COMM_WORLD_RANK")
    reader.give("WORLD_SIZE", reader.number("OMPI_COMM_WORLD_SIZE", 1), "OMPI_COMM_WORLD_SIZE")
    for usual, low in (("LOCAL_RANK", 0), ("LOCAL_SIZE", 1)):
        name = f"OMPI_COMM_WORLD_{usual}"
        reader.give(usual, reader.number(name, low), name)
    address = _find_first_host(reader.environ.get("SLURM_JOB_NODELIST", ""))
    address = address or _find_mpirun(reader.environ)
    repair = "`mpirun -x MASTER_ADDR -x MASTER_PORT` passes them on; run it on the first host"
    reader.meet(address, repair, reader.environ.get("PMIX_NAMESPACE"))


def _read_hydra(reader: _Reader) -> None:
    """`mpirun` of MPICH, Intel MPI, and others with Hydra or PALS."""
    environ = reader.environ
    reader.give("RANK", reader.number("PMI_RANK"), "PMI_RANK")
    reader.give("WORLD_SIZE", reader.number("PMI_SIZE", 1), "PMI_SIZE")
    for usual, names, low in (("LOCAL_RANK", _LOCAL_RANKS, 0), ("LOCAL_SIZE", _LOCAL_SIZES, 1)):
        name = next((name for name in names if name in environ), names[0])
        reader.give(usual, reader.number(name, low), name)
    address = _find_first_host(environ.get("SLURM_JOB_NODELIST", ""))
    reader.meet(address, "`mpiexec -genvall` passes them on")


_LOCAL_RANKS = ("MPI_LOCALRANKID", "PMI_LOCAL_RANK", "PALS_LOCAL_RANKID")
_LOCAL_SIZES = ("MPI_LOCALNRANKS", "PMI_LOCAL_SIZE", "PALS_LOCAL_SIZE")


def _read_kubeflow(reader: _Reader) -> None:
    """A pod of Kubeflow's trainer whose program is a rank itself; else torchrun has read these."""
    environ = reader.environ
    ranks = environ.get("PET_NPROC_PER_NODE", "1")
    if ranks != "1":
        reader.problems.append(
            f"PET_NPROC_PER_NODE={ranks!r}: these ranks have to be started; put `torchrun` in front"
            " of the program, or ask for one rank per node"
        )
    reader.give("RANK", reader.number("PET_NODE_RANK"), "PET_NODE_RANK")
    nodes = reader.number("PET_NNODES", 1)
    if ranks == "1":
        # The older operator counts ranks in WORLD_SIZE and RANK, and these must agree.
        reader.give("WORLD_SIZE", nodes, "PET_NNODES")
        reader.give("LOCAL_RANK", 0, "PET_NPROC_PER_NODE")
        reader.give("LOCAL_SIZE", 1, "PET_NPROC_PER_NODE")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if f"PET_{name}" in environ and name not in environ:
            reader.environ = {**reader.environ, name: environ[f"PET_{name}"]}
    reader.meet(None, "the trainer sets PET_MASTER_ADDR")


def _read_indexed(reader: _Reader) -> None:
    """A pod of an indexed job or a JobSet whose program is a rank itself."""
    reader.give("RANK", reader.number("JOB_COMPLETION_INDEX"), "JOB_COMPLETION_INDEX")
    reader.give("WORLD_SIZE", reader.number("WORLD_SIZE", 1), "WORLD_SIZE")
    reader.give("LOCAL_RANK", 0, "one rank per pod")
    reader.give("LOCAL_SIZE", 1, "one rank per pod")
    reader.meet(None, "set it to the first pod's name in the headless service: `run-ranks-0-0.run`")


def _refuse_bare_pmix(reader: _Reader) -> None:
    rank = reader.environ["PMIX_RANK"]
    reader.problems.append(
        f"PMIX_RANK={rank!r} says that this is one of several ranks, but not of how many; start"
        " them with `mpirun` of Open MPI or with `srun`, or unset it for a single process"
    )


def _find_first_host(names: str) -> str | None:
    """Return the first host of Slurm's `gpu[03-05,9],login`."""
    found = re.match(r"(?:[^,\[\]]|\[[^\]]*\])+", names.strip())
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", found[0]) if found else None


def _expand_counts(text: str) -> list[int]:
    """Return the tasks of every node from Slurm's `2(x3),1`; nothing when it is none of that."""
    counts: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"([0-9]{1,6})(?:\(x([0-9]{1,6})\))?", part)
        if found is None:
            return []
        counts += [int(found[1])] * int(found[2] or 1)
    return counts


def _find_mpirun(environ: Mapping[str, str]) -> str | None:
    """Return the address of the host on which Open MPI 4's `mpirun` runs, if rank 0 is there.

    The other ranks cannot know whether it is; rank 0 does, and its error ends them all.
    """
    uri = environ.get("OMPI_MCA_orte_hnp_uri", "")
    is_elsewhere = environ.get("OMPI_MCA_orte_local_daemon_uri") != uri
    if environ.get("OMPI_COMM_WORLD_RANK") == "0" and is_elsewhere:
        return None
    found = re.search(r";tcp://([0-9.]+)[,:]", uri)
    return found[1] if found else None


def _is_known(host: str) -> bool:
    try:
        socket.getaddrinfo(host, None)
    except (OSError, UnicodeError):  # the second for what can be no name
        return False
    return True


def _has_terminal() -> bool:
    """Whether this process belongs to a terminal, as in `srun --pty bash` and nothing below it."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return fields[4] != "0"


def _join(names: Iterable[str]) -> str:
    return ", ".join(names)
