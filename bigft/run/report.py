"""The page that `bigft train --dry_run` prints: what would run, and why."""

from collections.abc import Iterator
from typing import Any

from bigft.config.deepspeed import find_value
from bigft.config.flags import to_flag
from bigft.config.help import show_value
from bigft.config.typed import fields_of
from bigft.run.resolve import describe_batch
from bigft.run.resolved import Resolved
from bigft.run.settings import Run
from bigft.units import format_count


def render_resolved(resolved: Resolved) -> str:
    """Return the readable form of a resolved run, one fact per line."""
    lines = [
        f"model      {describe_model(resolved)}",
        f"strategy   {describe_strategy(resolved)}",
        f"batch      {describe_batch(resolved)}",
        f"output     {resolved.run.output_dir or 'runs/<time>-<model>'}",
        "",
        "settings that are not at their default:",
        *_changed(resolved),
    ]
    if resolved.announced:
        lines += ["", "derived:", *(f"  {line}" for line in resolved.announced)]
    if resolved.warnings:
        lines += ["", "warnings:", *(f"  {line}" for line in resolved.warnings)]
    lines += ["", "`bigft explain SETTING` with the same flags says more about one of them."]
    return "\n".join(lines) + "\n"


def describe_model(resolved: Resolved) -> str:
    """Say which model is trained, from what, in one line."""
    facts = resolved.facts
    start = "trained weights" if facts.has_weights else "random weights"
    sizes = [
        f"{label} {value}"
        for label, value in (
            ("layers", facts.num_layers),
            ("hidden", facts.hidden_size),
            ("vocabulary", facts.vocab_size),
        )
        if value is not None
    ]
    return f"{facts.source}: {', '.join([facts.model_type, *sizes, start])}"


def describe_strategy(resolved: Resolved) -> str:
    """Say in one line what the DeepSpeed JSON comes to."""
    ds = resolved.ds
    zero = ds.get("zero_optimization", {})
    parts = [f"ZeRO stage {zero.get('stage', 0)}"]
    for part, what in (("offload_param", "parameters"), ("offload_optimizer", "optimizer")):
        device = find_value(zero, f"{part}.device")
        if device not in (None, "none"):
            parts.append(f"{what} on {device}")
    precision = next((n for n in ("bf16", "fp16") if find_value(ds, f"{n}.enabled")), "fp32")
    parts.append(
        f"{precision}, gradients summed in {find_value(ds, 'data_types.grad_accum_dtype')}"
    )
    optimizer = find_value(ds, "optimizer.type") or resolved.run.optim.name
    parts.append(f"optimizer {optimizer}")
    clipping = ds.get("gradient_clipping")
    parts.append(f"clipped at {clipping:g}" if clipping else "not clipped")
    if isinstance(zero.get("sub_group_size"), int):
        parts.append(f"sub-groups of {format_count(zero['sub_group_size'])}")
    return f"{', '.join(parts)} ({resolved.config or 'no JSON'})"


def read_setting(run: Run, path: str) -> Any:
    """Return the value of a dotted path."""
    value: Any = run
    for part in path.split("."):
        value = getattr(value, part)
    return value


def origin_of(resolved: Resolved, path: str) -> str:
    """Return where a setting came from; single keys of a mapping may have several sources."""
    below = [o for place, o in resolved.origin.items() if place.startswith(f"{path}.")]
    own = resolved.origin.get(path, "default")
    return ", ".join(below if own == "default" and below else [own, *below])


def _changed(resolved: Resolved) -> Iterator[str]:
    origins = {path: origin_of(resolved, path) for path, _ in fields_of(Run)}
    rows = [
        (to_flag(path), show_value(read_setting(resolved.run, path)), origin)
        for path, origin in origins.items()
        if origin != "default"
    ]
    rows += [
        (origin.removeprefix("flag "), show_value(find_value(resolved.ds, path[3:])), origin)
        for path, origin in resolved.origin.items()
        if path.startswith("ds.") and origin.startswith("flag ")
    ]
    if not rows:
        yield "  none"
        return
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for flag, value, origin in rows:
        yield f"  {flag:{widths[0]}}  {value:{widths[1]}}  {origin}"
