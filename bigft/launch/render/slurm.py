"""A job script for `sbatch`.

One task per rank: what Slurm sends reaches the ranks themselves, and their exit codes come back;
a launcher between would lose both. One node or many is the same script.
"""

import shlex

from bigft.launch.render.start import (
    NOTICE_SECONDS,
    Start,
    fill,
    find_equal_slots,
    render_folder,
    render_words,
)

_SCRIPT = r"""#!/bin/bash
# Made by `bigft launch --render slurm`. Options on the command line come before those here:
#
#   sbatch --partition=NAME --time=24:00:00 slurm.sbatch
#
#SBATCH --job-name=bigft
#SBATCH --nodes=@NODES@
#SBATCH --ntasks-per-node=@RANKS@
@GPUS@
# All cores and all memory of the nodes: an optimizer in host memory uses both.
#SBATCH --exclusive
#SBATCH --mem=0
# All ranks are told so many seconds before the time limit: they commit a checkpoint, and leave
# with 75. Without `B:` it is the ranks that are told, not this script.
#SBATCH --signal=USR1@@NOTICE@
#SBATCH --requeue
#SBATCH --open-mode=append
# Names only: values come from the shell that submits.
#SBATCH --export=@EXPORT@
set -euo pipefail
@FOLDER@

output_dir=@OUTPUT_DIR@
counted=$output_dir/log/requeued_without_progress

# A folder with this name is a complete checkpoint.
newest() {
    local folder found=none
    for folder in "$output_dir"/checkpoints/step_*/; do
        if [ -d "$folder" ]; then found=$folder; fi
    done
    printf '%s\n' "$found"
}

# scancel and preemption end a job with SIGTERM. The ranks get it, too, and commit. Who has
# cancelled does not want the job back, and after preemption Slurm itself puts it back.
is_ended=false
trap 'is_ended=true' TERM

before=$(newest)
code=0
# A rank that fails is named by the others, which takes them a moment: srun must not end them.
# While rank 0 exports the model the others have left already: srun must not wait for that only
# so long. No binding: every rank may use all cores, and every device of its node.
srun --export=ALL --kill-on-bad-exit=0 --wait=0 --cpu-bind=none@BIND@ \
    @WORDS@ || code=$?

if [ "$code" -ne 75 ] || [ "$is_ended" = true ]; then
    exit "$code"
fi
idle=0
if [ "$(newest)" = "$before" ]; then
    if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] && [ -r "$counted" ]; then read -r idle <"$counted"; fi
    idle=$((idle + 1))
fi
mkdir -p "$output_dir/log"
printf '%s\n' "$idle" >"$counted"
if [ "$idle" -ge 3 ]; then
    echo "slurm.sbatch: $idle starts in a row brought no new checkpoint; not queued again" >&2
    exit "$code"
fi
echo "slurm.sbatch: stopped with everything committed; queued again" >&2
scontrol requeue "$SLURM_JOB_ID"
exit "$code"
"""


def render_slurm(start: Start) -> str:
    """Return a job script that is queued again for as long as it makes progress.

    Raises:
        ConfigError: The hosts have different numbers of ranks.
    """
    ranks = find_equal_slots(start, "slurm")
    return fill(
        _SCRIPT,
        nodes=len(start.slots),
        ranks=ranks,
        gpus=f"#SBATCH --gpus-per-node={ranks}" if start.on_gpus else "",
        bind=" --gpu-bind=none" if start.on_gpus else "",
        notice=NOTICE_SECONDS,
        export=",".join(start.names),
        folder=render_folder(start),
        output_dir=shlex.quote(start.output_dir),
        words=render_words(start.program),
    )
