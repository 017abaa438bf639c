#!/bin/bash
# Made by `bigft launch --render openmpi`. Once, on the first host; `ssh` reaches the others.
# SIGTERM, SIGUSR1 and Ctrl-C stop the run with a committed checkpoint and exit code 75.
set -euo pipefail

# mpirun tells ranks their numbers, but not where to meet: the first host, where rank 0 is.
export MASTER_ADDR=${MASTER_ADDR:-worker-1} MASTER_PORT=${MASTER_PORT:-29500}

# By their names, and only those that are set.
names=()
for name in $(compgen -e); do
    case $name in
    PATH | HOME | LD_LIBRARY_PATH | PYTHONPATH | VIRTUAL_ENV | CUDA_HOME | CXX | DS_ACCELERATOR | \
        DEEPSPEED_TIMEOUT | OMP_NUM_THREADS | TORCH_EXTENSIONS_DIR | XDG_CACHE_HOME | HF_HOME | \
        HF_HUB_OFFLINE | PYTORCH_ALLOC_CONF | NCCL_SOCKET_IFNAME | NCCL_IB_HCA | NCCL_DEBUG | \
        GLOO_SOCKET_IFNAME | HF_TOKEN | MASTER_ADDR | MASTER_PORT)
        names+=("$name")
        ;;
    esac
done
options=()
for name in "${names[@]}"; do options+=(-x "$name"); done
# In a container everybody is root.
[ "$(id -u)" != 0 ] || options+=(--allow-run-as-root)
# In a session of its own: a terminal's Ctrl-C must reach the ranks, and not end mpirun.
setsid "${MPIRUN:-mpirun}" "${options[@]}" -n 16 \
    --host worker-1:8,worker-2:8 \
    --mca plm_rsh_agent 'ssh -oBatchMode=yes -oConnectTimeout=5 -oServerAliveInterval=5 -oServerAliveCountMax=3 -oControlMaster=no -oControlPath=none -T' \
    --bind-to none \
    --mca odls_base_sigkill_timeout 5 \
    python -m bigft train \
    --config ds_configs/zero3.json \
    --model Qwen/Qwen3-8B \
    --data mine.jsonl \
    --output_dir runs/mine &
mpirun=$!

# Both kinds of mpirun pass SIGUSR1 on to all ranks, and wait for them.
is_stopped=false
trap 'is_stopped=true; kill -USR1 "$mpirun" 2>/dev/null || true' TERM INT HUP USR1
code=0
wait "$mpirun" || code=$?
# What a signal has interrupted is waited for again.
while [ "$is_stopped" = true ]; do
    is_stopped=false
    again=0
    wait "$mpirun" || again=$?
    [ "$again" -eq 127 ] || code=$again
done
exit "$code"
