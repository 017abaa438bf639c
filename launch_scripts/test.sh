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
[ $# -eq 0 ] || exec python -m pytest "$@"

# Runs of several processes wait for one another most of the time. Meanwhile tests of one process
# that look at no clock take what is left of the cores.
patient=(tests/house)
for folder in tests/unit/*; do
    case $folder in
        */distributed | */launch | */monitor | */doctor | */__pycache__) ;;
        *) patient+=("$folder") ;;
    esac
done
rest=$(mktemp)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -f "$rest"' EXIT
nice -n 10 python -m pytest "${patient[@]}" >"$rest" 2>&1 &
code=0
python -m pytest "${patient[@]/#/--ignore=}" || code=$?
wait $! || code=$?
cat "$rest"
exit $code
