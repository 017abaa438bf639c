#!/usr/bin/env bash
# From nothing to a trained model and a sample: sets bigft up, trains the built-in model on the
# built-in corpus under ZeRO-3, and lets the result speak. With or without a GPU.
#
#   bash launch_scripts/quickstart.sh [settings of bigft train]
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
set_up

output=runs/quickstart
# A quickstart starts anew; a run of your own would go on where it stopped.
rm -rf "$output"

# Few long steps at a high rate: the model is tiny, and so is the time it gets.
deepspeed launch_scripts/run.py --config ds_configs/zero3.json --output_dir "$output" \
    --max_steps 150 --learning_rate 2e-3 --optim.lr_scheduler_type cosine \
    --optim.warmup_steps 0.05 --activation_checkpointing none --eval_steps 50 "$@"

question='What does `os.path.join` do?'
echo
echo "The model's answer to: $question"
bigft generate "$output/model" --prompt "$question" --max_new_tokens 80 --temperature 0
