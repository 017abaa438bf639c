"""Judges a DeepSpeed JSON: unknown keys, wrong types, and what bigft cannot train with.

DeepSpeed accepts `{"zero_optimisation": ...}` and trains with stage 0. Nothing of that kind
passes here: a key must be in the table of `bigft.config.deepspeed_keys`, or be found in the
installed DeepSpeed's own configuration source (as text; DeepSpeed is not imported).
"""

import importlib.util
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from bigft.config.deepspeed import AUTO, find_value, has_value, set_value
from bigft.config.deepspeed_keys import (
    ADAM_PARAMS,
    KEYS,
    REMOVED,
    WARMUP_PARAMS,
    ZERO_SYNONYMS,
)
from bigft.config.hints import suggest

# A name that stands in more places than this (`enabled`) gives no hint.
_FEW = 3

Where = Callable[[str], str]
"""Dotted path -> where its value came from, e.g. `"ds_configs/zero3.json"`."""


def _is_set(value: Any) -> bool:
    return value not in (None, False, {}, [])


def _is_enabled(value: Any) -> bool:
    return value is True or (isinstance(value, dict) and value.get("enabled", False) is not False)


def _is_parallel(value: Any) -> bool:
    return isinstance(value, int | float) and value > 1


def _is_not_one(value: Any) -> bool:
    return value not in (None, 1, 1.0)


_TOKEN_MEAN = "bigft divides the loss by the tokens of the whole global batch, and this would scale"

REFUSED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "tensor_parallel": (_is_set, "bigft shards with ZeRO only. Drop the block"),
    "expert_parallel": (_is_enabled, "bigft shards with ZeRO only. Drop the block"),
    "sequence_parallel_size": (_is_parallel, "bigft gives every rank its own sequences. Drop it"),
    "data_parallel_size": (_is_set, "all ranks are data-parallel in bigft. Drop it"),
    "pipeline": (_is_set, "bigft has no pipeline stages. Drop the block"),
    "managed_gradient_accumulation": (
        lambda value: value is False,
        "bigft counts micro-steps through the engine. Drop it",
    ),
    "prescale_gradients": (lambda value: value is True, f"{_TOKEN_MEAN} the gradients. Drop it"),
    "gradient_allreduce_op": (
        lambda value: str(value).lower() == "sum",
        f'{_TOKEN_MEAN} the gradients by the number of ranks. Write "mean", or drop it',
    ),
    "gradient_predivide_factor": (_is_not_one, f"{_TOKEN_MEAN} the gradients. Drop it"),
    "zero_optimization.zenflow": (
        _is_set,
        "ZenFlow does not save the optimizer's moments in a checkpoint. Drop the block",
    ),
    "zero_optimization.offload_optimizer.super_offload": (
        _is_set,
        "SuperOffload does not save the optimizer's moments in a checkpoint. Drop it",
    ),
    "checkpoint.load_universal": (
        _is_set,
        "bigft resumes from its own checkpoints. Drop it and use --resume",
    ),
    "checkpoint.writer": (
        _is_set,
        "checkpoints of this writer cannot be resumed (DeepSpeed issue 8500). Drop it",
    ),
    "datastates_ckpt": (_is_set, "bigft writes checkpoints itself. Drop it"),
    "data_efficiency": (_is_enabled, "bigft owns the order of the data. Drop the block"),
    "autotuning": (_is_enabled, "it would end the training process. Drop the block"),
    "hybrid_engine": (_is_enabled, "it serves RLHF generation, which bigft does not do. Drop it"),
    "weight_quantization": (_is_enabled, "it serves inference. Drop the block"),
}
"""Path -> (which values are refused, why and what to do)."""

WITHOUT_EFFECT = {
    "activation_checkpointing": "it has no effect on Hugging Face models; use "
    "--activation_checkpointing none|full|full_cpu_offload",
    "tensorboard": "bigft writes TensorBoard files itself; see --monitor.sinks",
    "wandb": "bigft writes to Weights & Biases itself; see --monitor.sinks",
    "csv_monitor": "bigft writes metrics.jsonl itself",
    "comet": "bigft writes metrics.jsonl and TensorBoard files itself",
}
"""Section -> what a user of it should know."""


@dataclass
class Verdict:
    """What is wrong with a JSON, and what a reader should know."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def check_config(tree: dict[str, Any], where: Where) -> Verdict:
    """Check every key and value of a DeepSpeed JSON.

    Args:
        tree: The JSON. Numbers written as text become numbers, and second names of ZeRO keys
            their first name, in place.
        where: Names the source of a path in messages.
    """
    verdict = Verdict()
    _rename_synonyms(tree, where, verdict)
    _check_section(tree, KEYS, "", where, verdict)
    _check_params(tree, where, verdict)
    for path, (is_refused, reason) in REFUSED.items():
        if has_value(tree, path) and is_refused(find_value(tree, path)):
            value = find_value(tree, path)
            shown = "" if isinstance(value, dict) else f" = {json.dumps(value)}"
            verdict.problems.append(f"{path}{shown} ({where(path)}): {reason}")
    for path, reason in WITHOUT_EFFECT.items():
        if _is_set(tree.get(path)):
            verdict.warnings.append(f"{path} ({where(path)}): {reason}")
    return verdict


def _rename_synonyms(tree: dict[str, Any], where: Where, verdict: Verdict) -> None:
    zero = tree.get("zero_optimization")
    if not isinstance(zero, dict):
        return
    for second, first in ZERO_SYNONYMS.items():
        if second in zero and first in zero:
            verdict.problems.append(
                f"zero_optimization.{second} and {first} ({where('zero_optimization')}) are one "
                "setting. Drop one of them"
            )
        elif second in zero:
            zero[first] = zero.pop(second)


def _check_section(
    section: dict[str, Any], known: dict[str, Any], prefix: str, where: Where, verdict: Verdict
) -> None:
    for key in list(section):
        path = f"{prefix}{key}"
        if path in REMOVED:
            verdict.problems.append(f"{path} ({where(path)}): {REMOVED[path]}")
        elif key not in known:
            _check_unknown(path, known, where, verdict)
        elif isinstance(known[key], dict):
            if isinstance(section[key], dict):
                _check_section(section[key], known[key], f"{path}.", where, verdict)
            elif section[key] is not None:
                shown = json.dumps(section[key])
                verdict.problems.append(
                    f"{path} = {shown} ({where(path)}): must be a section, {{...}}"
                )
        else:
            section[key] = _check_value(section[key], known[key], path, where, verdict)


def _check_value(value: Any, kind: str, path: str, where: Where, verdict: Verdict) -> Any:
    """Return the value as its type; report it when it has another one."""
    if value == AUTO or kind == "any" or (value is None and kind.endswith("?")):
        return value
    kind = kind.rstrip("?").rstrip("|")
    if isinstance(value, str) and kind in ("int", "float", "bool"):
        # Hand-written files hold "8" for 8; DeepSpeed compares it as text in some places.
        number = _number_from_text(value, kind)
        if number is not None:
            verdict.warnings.append(f'{path} = "{value}" ({where(path)}) is text; read as {number}')
            value = number
    if kind == "int" and isinstance(value, float) and value.is_integer():
        return int(value)
    if not _fits(value, kind):
        expected = kind.replace("|", " or ") if "|" in kind else _KIND_NAMES[kind]
        verdict.problems.append(f"{path} = {json.dumps(value)} ({where(path)}): must be {expected}")
    return value


_KIND_NAMES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "a list, [...]",
    "dict": "a section, {...}",
}


def _fits(value: Any, kind: str) -> bool:
    if "|" in kind:
        return value in kind.split("|")
    if isinstance(value, bool):
        return kind == "bool"
    kinds: dict[str, type | tuple[type, ...]] = {
        "int": int,
        "float": (int, float),
        "bool": bool,
        "str": str,
        "list": list,
        "dict": dict,
    }
    return isinstance(value, kinds[kind])


def _number_from_text(text: str, kind: str) -> bool | float | None:
    if kind == "bool":
        return {"true": True, "false": False}.get(text.lower())
    try:
        number = float(text)
    except ValueError:
        return None
    return int(number) if kind == "int" and number.is_integer() else number


def _check_unknown(path: str, known: dict[str, Any], where: Where, verdict: Verdict) -> None:
    key = path.rsplit(".", 1)[-1]
    elsewhere = [p for p in _all_paths(KEYS) if p.rsplit(".", 1)[-1] == key]
    parent = path.rpartition(".")[0]
    if elsewhere:
        hint = f"; did you mean {elsewhere[0]}?" if len(elsewhere) <= _FEW else ""
        verdict.problems.append(f"{path} ({where(path)}): DeepSpeed has no such key here{hint}")
    elif _found_in_deepspeed(key):
        verdict.warnings.append(
            f"{path} ({where(path)}): not known to bigft; passed on, because the installed "
            "DeepSpeed mentions it"
        )
    else:
        near = suggest(key, known, prefix=f"{parent}." if parent else "")
        verdict.problems.append(f"{path} ({where(path)}): DeepSpeed has no such key{near}")


def _all_paths(known: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, kind in known.items():
        yield f"{prefix}{key}"
        if isinstance(kind, dict):
            yield from _all_paths(kind, f"{prefix}{key}.")


def _found_in_deepspeed(key: str) -> bool:
    # As a constant ("key") or as a field of a configuration model (    key: type).
    pattern = rf'(?m)["\']{re.escape(key)}["\']|^    {re.escape(key)}:'
    return re.search(pattern, _deepspeed_source()) is not None


@cache
def _deepspeed_source() -> str:
    """Return the text of DeepSpeed's configuration modules; "" when it is not installed."""
    spec = importlib.util.find_spec("deepspeed")
    if spec is None or not spec.submodule_search_locations:
        return ""
    root = Path(spec.submodule_search_locations[0])
    # Only these files declare keys. The rest of the source quotes everyday words, which would let
    # misspelt keys through.
    files = [*root.rglob("*config*.py"), *root.rglob("constants.py")]
    trained_with = (f for f in files if not {"inference", "model_implementations"} & set(f.parts))
    return "\n".join(f.read_text(encoding="utf-8", errors="replace") for f in trained_with)


def _check_params(tree: dict[str, Any], where: Where, verdict: Verdict) -> None:
    """Check the arguments of an optimizer or schedule whose arguments are known."""
    optimizer = str(find_value(tree, "optimizer.type") or "")
    schedule = str(find_value(tree, "scheduler.type") or "")
    known = {
        "optimizer": ADAM_PARAMS if optimizer.lower() in ("adam", "adamw") else None,
        "scheduler": WARMUP_PARAMS.get(schedule),
    }
    for block, names in known.items():
        params = find_value(tree, f"{block}.params")
        if isinstance(tree.get(block), dict) and not tree[block].get("type"):
            verdict.problems.append(f'{block} ({where(block)}): has no "type"')
        if names is None or not isinstance(params, dict):
            continue
        for key, value in params.items():
            path = f"{block}.params.{key}"
            if path in REMOVED:
                verdict.problems.append(f"{path} ({where(path)}): {REMOVED[path]}")
            elif key not in names:
                near = suggest(key, names, prefix=f"{block}.params.")
                verdict.problems.append(
                    f"{path} ({where(path)}): {tree[block]['type']} has no such argument{near}"
                )
            elif isinstance(value, str) and _number_from_text(value, "float") is not None:
                set_value(tree, path, _number_from_text(value, "float"))
