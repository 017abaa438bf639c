#!/bin/bash
# Made by `bigft launch --render torchrun`. Once on every host, with its number:
#
#   worker-1: bash torchrun.sh 0
#   worker-2: bash torchrun.sh 1
#
# torchrun returns 1 however the ranks ended; the last line of bigft says what it was. To go on
# after a stop, run the same again.
set -euo pipefail

node_rank=${1:?the number of this host, from 0 on}
slots=(8 8)
# Ranks that are told to stop finish their step and commit; torchrun would kill them after 30 s.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=600
export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1
# No restarts here: after one, torchrun does not tell a mistake in the settings from a lost host.
exec python -m torch.distributed.run \
    --nnodes=2 --node-rank="$node_rank" --nproc-per-node="${slots[$node_rank]}" \
    --rdzv-backend=static --master-addr="${MASTER_ADDR:-worker-1}" \
    --master-port="${MASTER_PORT:-29500}" --max-restarts=0 \
    -m bigft train \
    --config ds_configs/zero3.json \
    --model Qwen/Qwen3-8B \
    --data mine.jsonl \
    --output_dir runs/mine
