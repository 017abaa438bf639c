#!/usr/bin/env bash
# Sets bigft up and runs its tests, real two-rank DeepSpeed runs among them.
#
#   bash launch_scripts/test.sh [arguments of pytest]
#   bash launch_scripts/test.sh -m nightly        the slow sweeps
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
set_up test

# The ranks of a test share few cores: more threads than cores only fight.
export OMP_NUM_THREADS=1 DS_ACCELERATOR=cpu
# Build DeepSpeed's operators once, before several ranks ask for them at the same time.
echo "Building DeepSpeed's operators (the first time, that takes minutes)" >&2
python -m bigft.engine.prebuild
exec python -m pytest "$@"
