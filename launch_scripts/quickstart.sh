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

# Many short steps at a high rate: the model is tiny, and so is the time it gets. From random
# weights the questions are worth learning too, hence train_on all.
deepspeed launch_scripts/run.py --config ds_configs/zero3.json --output_dir "$output" \
    --max_length 256 --max_steps 400 --eval_steps 100 --data.train_on all \
    --learning_rate 1e-3 --optim.warmup_steps 0.05 --optim.adam_beta2 0.99 \
    --activation_checkpointing none "$@"

question='What does `os.path.join` do?'
echo
echo "The model's answer to: $question"
bigft generate "$output/model" --prompt "$question" --max_new_tokens 80 --temperature 0
