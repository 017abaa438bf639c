"""Answers to names that do not exist: other programs' spellings, and the nearest name of ours.

The spellings are recognised only to be answered. bigft has one name per setting, so that logs,
recipes and documentation never disagree about what a run did.
"""

import difflib
from collections.abc import Collection, Iterable
from pathlib import Path

HINTS = {
    "lr": "bigft calls this --learning_rate",
    "model_name_or_path": "bigft calls this --model",
    "model_name": "bigft calls this --model",
    "model_id": "bigft calls this --model",
    "tokenizer_name": "bigft calls this --model.tokenizer",
    "tokenizer_name_or_path": "bigft calls this --model.tokenizer",
    "trust_remote_code": "bigft calls this --model.trust_remote_code",
    "attn_implementation": "bigft calls this --model.attention",
    "gradient_checkpointing": "bigft calls this --activation_checkpointing none|full",
    "dataset": "bigft calls this --data",
    "dataset_name": "bigft calls this --data",
    "train_file": "bigft calls this --data",
    "validation_file": "bigft calls this --eval_data",
    "max_seq_length": "bigft calls this --max_length",
    "max_seq_len": "bigft calls this --max_length",
    "cutoff_len": "bigft calls this --max_length",
    "block_size": "bigft calls this --max_length",
    "epochs": "bigft calls this --num_train_epochs",
    "batch_size": "bigft calls this --per_device_train_batch_size (sequences per rank)",
    "micro_batch_size": "bigft calls this --per_device_train_batch_size",
    "train_batch_size": "the whole global batch is DeepSpeed's: --ds.train_batch_size=N",
    "train_micro_batch_size_per_gpu": "bigft calls this --per_device_train_batch_size",
    "per_device_eval_batch_size": "bigft calls this --evaluation.per_device_eval_batch_size",
    "weight_decay": "bigft calls this --optim.weight_decay",
    "adam_beta1": "bigft calls this --optim.adam_beta1",
    "adam_beta2": "bigft calls this --optim.adam_beta2",
    "adam_epsilon": "bigft calls this --optim.adam_epsilon",
    "max_grad_norm": "bigft calls this --optim.max_grad_norm",
    "gradient_clipping": "bigft calls this --optim.max_grad_norm",
    "lr_scheduler_type": "bigft calls this --optim.lr_scheduler_type",
    "layer_decay": "bigft calls this --model.layer_decay",
    "optim.layer_decay": "bigft calls this --model.layer_decay",
    "llrd": "bigft calls this --model.layer_decay",
    "neftune_noise_alpha": "bigft calls this --model.neftune_alpha",
    "early_stopping_patience": "bigft calls this --trainer.early_stopping METRIC:PATIENCE",
    "load_best_model_at_end": "bigft calls this --checkpoint.best METRIC",
    "metric_for_best_model": "bigft calls this --checkpoint.best METRIC",
    "warmup_steps": "bigft calls this --optim.warmup_steps",
    "warmup_ratio": "bigft calls this --optim.warmup_steps (below 1: a fraction of all steps)",
    "optim.warmup_ratio": "bigft calls this --optim.warmup_steps (below 1: a fraction)",
    "save_total_limit": "bigft calls this --checkpoint.keep_last",
    "resume_from_checkpoint": "bigft calls this --resume auto|never|PATH",
    "report_to": "bigft calls this --monitor.sinks tensorboard,wandb",
    "run_name": "name the run by its folder: --output_dir",
    "deepspeed": "bigft calls this --config",
    "deepspeed_config": "bigft calls this --config",
    "bf16": "precision belongs to DeepSpeed: --ds.bf16.enabled=true",
    "fp16": "precision belongs to DeepSpeed: --ds.fp16.enabled=true",
    "zero_stage": "the stage belongs to DeepSpeed: --ds.zero_optimization.stage=3",
    "offload": "offload belongs to DeepSpeed: --config ds_configs/zero3_offload.json",
    "use_lora": "bigft trains all parameters; it has no adapters",
    "load_in_4bit": "bigft trains all parameters; a quantised model cannot be trained so",
    "load_in_8bit": "bigft trains all parameters; a quantised model cannot be trained so",
    "save_strategy": "bigft has --save_steps N only; 0 saves at the end",
    "eval_strategy": "bigft has --eval_steps N only; 0 evaluates at the end",
    "evaluation_strategy": "bigft has --eval_steps N only; 0 evaluates at the end",
}
"""Another program's spelling -> what to write instead."""


def find_nearest(name: str, known: Collection[str]) -> str | None:
    """Return the known name that is most like `name`, or None when none is near."""
    # The last part alone is tried too, so that `weight_decays` finds `optim.weight_decay`.
    lower = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.75)
    if near:
        return lower[near[0]]
    tails: dict[str, str] = {}
    for candidate in known:
        tails.setdefault(candidate.rsplit(".", 1)[-1].lower(), candidate)
    near = difflib.get_close_matches(name.rsplit(".", 1)[-1].lower(), tails, n=1, cutoff=0.75)
    return tails[near[0]] if near else None


def suggest(name: str, known: Collection[str], prefix: str = "") -> str:
    """Return `"; did you mean PREFIXname?"`, or nothing when no known name is near."""
    nearest = find_nearest(name, known)
    return f"; did you mean {prefix}{nearest}?" if nearest else ""


def suggest_file(missing: Path, names: Iterable[str]) -> str:
    """Return `"; did you mean FILE?"` where a file of this folder has a name like the missing one.

    Not by the last part alone, as of settings: all files of one kind have the same ending.
    """
    shown = [name for name in names if not name.startswith(".")]
    near = difflib.get_close_matches(missing.name, shown, n=1, cutoff=0.75)
    return f"; did you mean {missing.parent / near[0]}?" if near else ""


def explain_unknown(name: str, known: Collection[str]) -> str:
    """Say that a flag does not exist and what to write instead."""
    if name in HINTS:
        return f"--{name}: no such setting; {HINTS[name]}"
    nearest = find_nearest(name, known)
    if nearest:
        return f"--{name}: no such setting; bigft calls the nearest one --{nearest}"
    return f"--{name}: no such setting; `bigft explain` lists them all"
