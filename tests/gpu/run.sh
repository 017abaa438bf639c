#!/usr/bin/env bash
# bash tests/gpu/run.sh [WHEELS_FOLDER] [options of suite.py]
# With a folder of wheels, what is in it is installed beside the machine's own Python packages,
# into a folder of its own, without any network. Without one, the current environment is used.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
python="${PYTHON:-python3}"
if [[ $# -gt 0 && -d "$1" ]]; then
    wheels="$1"
    shift
    site="$(mktemp -d)"
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir \
        --disable-pip-version-check --target "$site" "$wheels"/*.whl
    export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
    export PATH="$site/bin:$PATH"
fi
export PYTHONUNBUFFERED=1
"$python" "$here/suite.py" "$@"
