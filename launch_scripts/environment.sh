# Sourced by quickstart.sh and test.sh: makes .venv beside this folder and installs bigft into it.
# A second run finds everything in place and takes a second.
#
#   PYTHON       interpreter to start from (default python3; 3.10 or newer)
#   BIGFT_VENV   folder of the virtual environment (default .venv)
#
# usage: . launch_scripts/environment.sh; set_up [EXTRA]

set_up() {
    local root extra python venv stamp wanted
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    extra=${1:-}
    python=${PYTHON:-python3}
    venv=${BIGFT_VENV:-$root/.venv}

    command -v "$python" >/dev/null || _stop "no $python on PATH; install Python 3.10 or newer, or set PYTHON"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        _stop "$("$python" --version) is too old; bigft needs Python 3.10 or newer (set PYTHON)"
    _need_packages "$python" "$extra"

    stamp=$venv/bigft-installed
    wanted=$(cat "$root/setup.py" "$root/constraints.txt" | cksum)
    if [ "$(head -n 1 "$stamp" 2>/dev/null)" != "$wanted" ] ||
        { [ -n "$extra" ] && ! grep -qx "$extra" "$stamp"; }; then
        echo "Setting up $venv (this happens once)" >&2
        [ -x "$venv/bin/python" ] || "$python" -m venv "$venv" ||
            _stop "cannot make a virtual environment in $venv"
        # torch first, at the tested version: the other packages then find it and bring no other.
        "$venv/bin/python" -m pip install --quiet $(grep '^torch==' "$root/constraints.txt") &&
            "$venv/bin/python" -m pip install --quiet -c "$root/constraints.txt" \
                -e "$root${extra:+[$extra]}" ||
            _stop "pip could not install bigft; see its message above"
        { echo "$wanted"; echo "$extra"; } >"$stamp"
    fi
    export PATH=$venv/bin:$PATH
    cd "$root" || exit 1
}

_stop() {
    echo "bigft: $1" >&2
    exit 1
}

# A C++ compiler (DeepSpeed builds its host operators), libaio (NVMe offload), venv, and strace for
# the tests of killed saves: from the system's packages where that can be done without asking, else
# with a word on what to install.
_need_packages() {
    local missing=() apt=()
    command -v "${CXX:-c++}" >/dev/null || { missing+=("a C++ compiler"); apt+=(g++); }
    echo '#include <libaio.h>' | "${CXX:-c++}" -E -x c++ - >/dev/null 2>&1 ||
        { missing+=("libaio (for NVMe offload)"); apt+=(libaio-dev); }
    "$1" -c 'import venv, ensurepip' 2>/dev/null || { missing+=("Python's venv"); apt+=(python3-venv); }
    local headers
    headers=$("$1" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
    [ -f "$headers/Python.h" ] || { missing+=("Python's headers"); apt+=(python3-dev); }
    [ "$2" != test ] || command -v strace >/dev/null ||
        { missing+=("strace (for tests of killed saves)"); apt+=(strace); }
    [ ${#missing[@]} -eq 0 ] && return
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "Installing ${apt[*]}" >&2
        apt-get update -q >/dev/null && DEBIAN_FRONTEND=noninteractive \
            apt-get install -y -q "${apt[@]}" >/dev/null && return
    fi
    local text
    text=$(printf '%s, ' "${missing[@]}")
    echo "bigft: missing: ${text%, }; on Debian or Ubuntu: sudo apt-get install ${apt[*]}" >&2
    # Without libaio everything but NVMe offload works; without strace some tests are skipped.
    local package
    for package in "${apt[@]}"; do
        [ "$package" = libaio-dev ] || [ "$package" = strace ] || exit 1
    done
}
