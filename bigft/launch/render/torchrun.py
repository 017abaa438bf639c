"""A script that starts the ranks of one node with `torchrun`."""

import shlex

from bigft.launch.render.start import (
    NOTICE_SECONDS,
    PORT,
    Start,
    fill,
    render_folder,
    render_words,
)

_SCRIPT = r"""#!/bin/bash
# Made by `bigft launch --render torchrun`. Once on every host, with its number:
#
@LINES@
#
# torchrun returns 1 however the ranks ended; the last line of bigft says what it was. To go on
# after a stop, run the same again.
set -euo pipefail
@FOLDER@

node_rank=${1:?the number of this host, from 0 on}
slots=(@SLOTS@)
# Ranks that are told to stop finish their step and commit; torchrun would kill them after 30 s.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=@NOTICE@
export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1
# No restarts here: after one, torchrun does not tell a mistake in the settings from a lost host.
exec @TORCHRUN@ \
    --nnodes=@NODES@ --node-rank="$node_rank" --nproc-per-node="${slots[$node_rank]}" \
    --rdzv-backend=static --master-addr="${MASTER_ADDR:-@ADDRESS@}" \
    --master-port="${MASTER_PORT:-@PORT@}" --max-restarts=0 \
    -m bigft @WORDS@
"""


def render_torchrun(start: Start) -> str:
    """Return a script for every host, told by its number which one it is."""
    hosts = [host.name for host in start.hosts]
    if not hosts:
        hosts = ["localhost"] if start.nodes == 1 else [f"host-{n}" for n in range(start.nodes)]
    return fill(
        _SCRIPT,
        lines="\n".join(f"#   {name}: bash torchrun.sh {n}" for n, name in enumerate(hosts)),
        folder=render_folder(start),
        slots=" ".join(map(str, start.slots)),
        notice=NOTICE_SECONDS,
        torchrun=shlex.join([start.python, "-m", "torch.distributed.run"]),
        nodes=len(hosts),
        address=hosts[0],
        port=PORT,
        words=render_words(start.words),
    )
