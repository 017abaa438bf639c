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

    "$python" -c '' 2>/dev/null || _stop "$python does not run; install Python 3.10 or newer, or set PYTHON"
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

# From the system's packages where that can be done without asking, else with a word on what to
# install.
_need_packages() {
    local missing needed helpful packages package options text
    _find_missing "$@"
    [ ${#missing[@]} -eq 0 ] && return
    packages=("${needed[@]}" "${helpful[@]}")
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "Installing ${packages[*]}" >&2
        if apt-get update -q >/dev/null; then
            # One by one: what a distribution does not have must not keep out the others.
            for package in "${packages[@]}"; do
                options=()
                # It recommends compilers.
                [ "$package" != mpich ] || options=(--no-install-recommends)
                DEBIAN_FRONTEND=noninteractive apt-get install -y -q "${options[@]}" "$package" \
                    >/dev/null || true
            done
        fi
        _find_missing "$@"
        [ ${#missing[@]} -eq 0 ] && return
    fi
    packages=("${needed[@]}" "${helpful[@]}")
    text=$(printf '%s, ' "${missing[@]}")
    echo "bigft: missing: ${text%, }; on Debian or Ubuntu: sudo apt-get install ${packages[*]}" >&2
    # Without libaio everything but NVMe offload works; without a tool of the tests some are skipped.
    [ ${#needed[@]} -eq 0 ] || exit 1
}

# Fills `missing` with words, `needed` and `helpful` with packages.
_find_missing() {
    missing=() needed=() helpful=()
    # DeepSpeed builds its host operators.
    command -v "${CXX:-c++}" >/dev/null || { missing+=("a C++ compiler"); needed+=(g++); }
    echo '#include <libaio.h>' | "${CXX:-c++}" -E -x c++ - >/dev/null 2>&1 ||
        { missing+=("libaio (for NVMe offload)"); helpful+=(libaio-dev); }
    "$1" -c 'import venv, ensurepip' 2>/dev/null || { missing+=("Python's venv"); needed+=(python3-venv); }
    local headers
    headers=$("$1" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
    [ -f "$headers/Python.h" ] || { missing+=("Python's headers"); needed+=(python3-dev); }
    [ "$2" != test ] || _find_missing_test_tools
}

_find_missing_test_tools() {
    # Together 25 MB to fetch and half a minute; the Slurm cluster of the tests is root's.
    { command -v mpirun.openmpi && command -v mpiexec.hydra; } >/dev/null ||
        { missing+=("Open MPI and MPICH (for tests of their mpirun)"); helpful+=(openmpi-bin mpich); }
    [ "$(id -u)" != 0 ] || PATH=$PATH:/usr/sbin command -v slurmctld >/dev/null ||
        { missing+=("Slurm (for tests of job scripts)"); helpful+=(slurm-wlm munge); }
    local shell
    for shell in zsh ksh tcsh fish; do
        command -v "$shell" >/dev/null ||
            { missing+=("$shell (for tests of words that login shells read)"); helpful+=("$shell"); }
    done
    # Only root can simulate hosts.
    [ "$(id -u)" != 0 ] ||
        { PATH=$PATH:/usr/sbin:/sbin command -v sshd && PATH=$PATH:/usr/sbin:/sbin command -v ip &&
            command -v pdsh && command -v rsync; } >/dev/null ||
        { missing+=("sshd, ip, pdsh and rsync (for tests of several hosts)")
            helpful+=(openssh-server iproute2 pdsh rsync); }
    command -v strace >/dev/null || { missing+=("strace (for tests of killed saves)"); helpful+=(strace); }
    # Only root can mount what it makes.
    [ "$(id -u)" != 0 ] || command -v mkfs.ext4 >/dev/null ||
        { missing+=("mkfs.ext4 (for the test of a full disk)"); helpful+=(e2fsprogs); }
    # 116 MB to fetch, ten seconds to install; elsewhere the step for ARM is tested as it is.
    [ "$(uname -m)" != x86_64 ] ||
        { command -v aarch64-linux-gnu-g++ && command -v qemu-aarch64-static; } >/dev/null ||
        { missing+=("a compiler and an emulator of ARM (for the test of its optimizer step)")
            helpful+=(g++-aarch64-linux-gnu qemu-user-static); }
}
