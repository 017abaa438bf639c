"""The flat surface is small and stays so: to add a short flag, remove one."""

from bigft.config.flags import FLAGS

# Held on purpose in two places. The contract (interface.md) lists these, plus --config, --recipe.
FROZEN = {
    "model",
    "data",
    "eval_data",
    "task",
    "output_dir",
    "learning_rate",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_length",
    "packing",
    "optim",
    "activation_checkpointing",
    "seed",
    "resume",
    "save_steps",
    "eval_steps",
    "logging_steps",
    "dry_run",
}


def test_short_flags_are_the_twenty_of_the_contract():
    assert set(FLAGS) == FROZEN
    assert len(FLAGS) == 20
