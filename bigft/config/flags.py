"""The twenty everyday settings that have a short flag; the rest is dotted.

The list is frozen by `tests/house/test_flags_are_frozen.py`: to add one, remove one.
"""

FLAGS = {
    "model": "model.name",
    "data": "data.train",
    "eval_data": "data.eval",
    "task": "task.name",
    "output_dir": "output_dir",
    "learning_rate": "optim.learning_rate",
    "num_train_epochs": "trainer.num_train_epochs",
    "max_steps": "trainer.max_steps",
    "per_device_train_batch_size": "trainer.per_device_train_batch_size",
    "gradient_accumulation_steps": "trainer.gradient_accumulation_steps",
    "seed": "trainer.seed",
    "max_length": "data.max_length",
    "packing": "data.packing",
    "optim": "optim.name",
    "activation_checkpointing": "model.activation_checkpointing",
    "resume": "checkpoint.resume",
    "save_steps": "checkpoint.save_steps",
    "eval_steps": "evaluation.eval_steps",
    "logging_steps": "monitor.logging_steps",
    "dry_run": "dry_run",
}
"""Short flag -> dotted path of the setting."""

_SHORT = {path: flag for flag, path in FLAGS.items()}


def to_path(name: str) -> str:
    """Return the dotted path a flag sets: `"optim"` -> `"optim.name"`; dotted names stay."""
    return FLAGS.get(name, name)


def to_flag(path: str) -> str:
    """Return the shortest flag of a dotted path: `"optim.name"` -> `"--optim"`."""
    return f"--{_SHORT.get(path, path)}"
