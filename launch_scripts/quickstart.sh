#!/usr/bin/env bash
# From nothing to a trained model and a sample: sets bigft up, trains the built-in model on the
# built-in corpus under ZeRO-3, and lets the result speak. With or without a GPU.
#
#   bash launch_scripts/quickstart.sh [settings of bigft train]
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
set_up
case " $* " in *" -h "* | *" --help "*) exec bigft train --help ;; esac

output=runs/quickstart
settings=(--config ds_configs/zero3.json --recipe launch_scripts/quickstart.yaml --output_dir "$output" "$@")
# What is wrong with the settings is said before anything is removed.
bigft train "${settings[@]}" --dry_run >/dev/null
# A quickstart starts anew; a run of your own would go on where it stopped.
rm -rf "$output"
deepspeed launch_scripts/run.py "${settings[@]}"

question='What does `os.path.join` do?'
echo
echo "The model's answer to: $question"
bigft generate "$output/model" --prompt "$question" --max_new_tokens 80 --temperature 0
