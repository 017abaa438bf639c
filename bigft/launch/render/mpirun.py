"""A script that starts the ranks of all hosts with `mpirun` of Open MPI or of MPICH."""

import shlex
import textwrap

from bigft.launch.hostfile import Host
from bigft.launch.mpi import Mpi, mpi_environment, render_options
from bigft.launch.render.start import PORT, Start, fill, render_folder, render_words

_SCRIPT = r"""#!/bin/bash
# Made by `bigft launch --render @NAME@`. Once, on the first host; `ssh` reaches the others.
# SIGTERM, SIGUSR1 and Ctrl-C stop the run with a committed checkpoint and exit code 75.
set -euo pipefail
@FOLDER@

# mpirun tells ranks their numbers, but not where to meet: the first host, where rank 0 is.
export MASTER_ADDR=${MASTER_ADDR:-@ADDRESS@} MASTER_PORT=${MASTER_PORT:-@PORT@}
@EXTRA@

# By their names, and only those that are set.
names=()
for name in $(compgen -e); do
    case $name in
    @NAMES@)
        names+=("$name")
        ;;
    esac
done
@PASS_ON@
# In a session of its own: a terminal's Ctrl-C must reach the ranks, and not end mpirun.
setsid @MPIRUN@ "${options[@]}" -n @COUNT@ \
    @OPTIONS@ \
    @WORDS@ &
mpirun=$!

# Both kinds of mpirun pass SIGUSR1 on to all ranks, and wait for them.
is_stopped=false
@NOT_YET@
trap 'is_stopped=true; @NOTED@kill -USR1 "$mpirun" 2>/dev/null || true' TERM INT HUP USR1
code=0
wait "$mpirun" || code=$?
# What a signal has interrupted is waited for again.
while [ "$is_stopped" = true ]; do
    is_stopped=false
    again=0
    wait "$mpirun" || again=$?
    [ "$again" -eq 127 ] || code=$again
done
@CODE@
exit "$code"
"""

# Debian's names for both are others: MPIRUN says which one it is.
_PROGRAMS: dict[Mpi, str] = {
    "openmpi": '"${MPIRUN:-mpirun}"',
    "mpich": '"${MPIRUN:-mpiexec.hydra}"',
}

_PASS_ON: dict[Mpi, str] = {
    "openmpi": """options=()
for name in "${names[@]}"; do options+=(-x "$name"); done
# In a container everybody is root.
[ "$(id -u)" != 0 ] || options+=(--allow-run-as-root)""",
    "mpich": """# All variables: -genvlist loses some of the last names (4.0.2).
options=(-genvall)""",
}

# Over several hosts Hydra (4.0.2) forgets the codes of ranks that it has sent a signal.
_MPICH_CODE = """# mpiexec forgets the codes of ranks on other hosts after a signal. To run the same
# again is right in any case: a run that had ended just then has nothing left to do.
[ "$was_stopped" = false ] || [ "$code" -ne 0 ] || code=75"""


def render_openmpi(start: Start) -> str:
    """Return a script with `mpirun` of Open MPI.

    Raises:
        LaunchError: It cannot start ranks on one of the hosts.
    """
    return _render("openmpi", start)


def render_mpich(start: Start) -> str:
    """Return a script with `mpiexec.hydra` of MPICH, which is Intel MPI's, too.

    Raises:
        LaunchError: It cannot start ranks on one of the hosts.
    """
    return _render("mpich", start)


def _wrap(names: list[str]) -> str:
    lines = textwrap.wrap(" ".join(names), 80)
    return " | \\\n        ".join(line.replace(" ", " | ") for line in lines)


def _render(name: Mpi, start: Start) -> str:
    hosts = start.hosts or [Host("localhost", start.ranks_per_node)]
    extra = [f"export {n}={shlex.quote(text)}" for n, text in mpi_environment(name).items()]
    forgets = name == "mpich"
    names = [*start.names, "MASTER_ADDR", "MASTER_PORT"]
    return fill(
        _SCRIPT,
        name=name,
        folder=render_folder(start),
        address="127.0.0.1" if len(hosts) == 1 else hosts[0].name,
        port=PORT,
        extra="\n".join(extra),
        names=_wrap(names),
        pass_on=_PASS_ON[name],
        not_yet="was_stopped=false" if forgets else "",
        noted="was_stopped=true; " if forgets else "",
        code=_MPICH_CODE if forgets else "",
        mpirun=_PROGRAMS[name],
        options=render_words(render_options(name, hosts)),
        count=sum(host.slots for host in hosts),
        words=render_words(start.program),
    )
