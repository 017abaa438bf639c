"""`mpirun` of Open MPI and of MPICH: the words that start all ranks of all hosts."""

import ipaddress
import shutil
from collections.abc import Sequence
from typing import Literal

from bigft.errors import LaunchError
from bigft.launch.hostfile import Host
from bigft.launch.remote import SSH_OPTIONS

Mpi = Literal["openmpi", "mpich"]

_SSH = " ".join(SSH_OPTIONS)  # mpirun splits it at the spaces.

_PROGRAMS = {
    # Debian has both, under names of their own.
    "openmpi": ("mpirun.openmpi", "mpirun"),
    "mpich": ("mpiexec.hydra", "mpirun"),
}


def find_mpirun(name: Mpi, path: str | None = None) -> str | None:
    """Return the program that starts ranks; None where it is not installed."""
    return next((p for p in _PROGRAMS[name] if shutil.which(p, path=path)), None)


def mpi_command(
    name: Mpi,
    hosts: Sequence[Host],
    program: Sequence[str],
    env: Sequence[str] = (),
    *,
    as_root: bool = False,
    here: str | None = None,
) -> list[str]:
    """Return the command that starts a program once for every slot.

    It is to be stopped by SIGUSR1, which both pass on to all ranks and then wait: Open MPI answers
    SIGTERM by killing its ranks one second later. Open MPI returns the code of the rank that left
    first with another than 0. MPICH's is all codes or-ed bit by bit, and over several hosts 0 after
    a signal (4.0.2), which is to be taken for 75.

    Args:
        name: Whose `mpirun` it is.
        hosts: As `read_hostfile` has let them pass.
        program: What every rank runs.
        env: Names of variables that are set here and passed on, MASTER_ADDR and MASTER_PORT among
            them: mpirun sends values over its own connection, they are on no command line.
        as_root: Whether root starts it, which Open MPI wants to be told.
        here: Address of this host, as the others reach it; MPICH takes its name when absent.

    Raises:
        LaunchError: It is not installed, or cannot start ranks on one of the hosts.
    """
    found = find_mpirun(name)
    if found is None:
        raise LaunchError(
            f"--launcher {name}: no {' or '.join(_PROGRAMS[name])} on PATH; install it here and on"
            " every host (Debian: openmpi-bin, mpich), or drop --launcher"
        )
    root = ["--allow-run-as-root"] if as_root and name == "openmpi" else []
    back = ["-localhost", here] if here and name == "mpich" else []
    count = ["-n", str(sum(host.slots for host in hosts))]
    options = [*render_options(name, hosts), *root, *back, *name_variables(name, env), *count]
    return [found, *options, *program]


def mpi_environment(name: Mpi) -> dict[str, str]:
    """Return what `mpirun` itself wants in its environment."""
    return {"HYDRA_LAUNCHER_EXTRA_ARGS": _SSH} if name == "mpich" else {}


def render_options(name: Mpi, hosts: Sequence[Host]) -> list[str]:
    """Return the options that do not depend on who starts it, and where."""
    for host in hosts:
        _check(host)
    listed = ",".join(f"{host.name}:{host.slots}" for host in hosts)
    if name == "mpich":
        # Hydra ends the others by SIGKILL when one fails; bigft says first which one, and why.
        return ["-hosts", listed, "-launcher", "ssh", "-disable-auto-cleanup"]
    options = ["--host", listed, "--mca", "plm_rsh_agent", f"ssh {_SSH}"]
    # Else each rank is bound to one core, and a step on the host takes as many times as long.
    options += ["--bind-to", "none"]
    # The first rank that leaves with 75 ends the job: time for the others to leave, too. The
    # default is 1; Open MPI 4.1 waits twice as long as it says, also when all have left.
    return [*options, "--mca", "odls_base_sigkill_timeout", "5"]


def name_variables(name: Mpi, env: Sequence[str]) -> list[str]:
    """Return the options that pass variables on by their names."""
    if name == "mpich":
        # Its -genvlist loses some of the last names (4.0.2): whoever starts it has to see to it
        # that nothing else is in its environment.
        return ["-genvall"] if env else []
    return [word for variable in env for word in ("-x", variable)]


def _check(host: Host) -> None:
    if _is_ipv6(host.name):
        raise LaunchError(
            f"{host.name}: mpirun's list of hosts has a colon before the slots, so no IPv6 address"
            " can stand there; write a name into the hostfile"
        )
    if host.devices:
        raise LaunchError(
            f"{host.name}: mpirun cannot choose devices; set CUDA_VISIBLE_DEVICES there, or leave"
            " out whole hosts"
        )


def _is_ipv6(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).version == 6
    except ValueError:
        return False
