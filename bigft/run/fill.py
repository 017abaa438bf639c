"""Fills every remaining "auto", and writes out the DeepSpeed defaults that surprise."""

from typing import Any

from bigft.config.deepspeed import AUTO, find_value, leaves, set_value
from bigft.run.draft import Draft
from bigft.run.settings import Run

_ZERO = "zero_optimization"
_OFFLOADS = ("offload_param", "offload_optimizer")
# DeepSpeed prints its own progress line every so many steps; bigft prints a better one.
_NEVER = 1_000_000_000
# 8-bit steps on the host need up to 20 transient bytes per element of a sub-group: 1 GB here.
_SUB_GROUP_8BIT = 50_000_000
# The step's granularity bounds pinned buffers (4 bytes per element and buffer); DeepSpeed's own
# default of 1e9 pins 16 GB per rank.
_SUB_GROUP = 100_000_000
LIVE = ("stage3_max_live_parameters", "stage3_max_reuse_distance")
"""How many gathered weights DeepSpeed may keep for later, in elements."""


def fill_json(draft: Draft, run: Run) -> None:
    """Fill what the JSON leaves open; an "auto" that nobody can fill becomes a problem."""
    _drop_own_autos(draft)
    _fill_precision(draft)
    _fill_zero(draft)
    _fill_offload(draft)
    _fill_own_optimizer(draft, run)
    _fill_accumulation_type(draft, run)
    for path, value in (("steps_per_print", _NEVER), ("wall_clock_breakdown", False)):
        if draft.is_open(path):
            draft.fill(path, value, "bigft prints its own progress")
    if draft.facts is None:
        return  # The model is wrong; what depends on it cannot be judged.
    for path, value in leaves(draft.ds):
        if value == AUTO and not path.endswith(".nvme_path") and not _is_reported(draft, path):
            draft.problems.append(
                f'{path} = "auto" ({draft.where(path)}): nothing knows a value for it. Write one, '
                "or drop the line"
            )


def training_type(draft: Draft) -> str:
    """Return the number format of the forward pass: `"bf16"`, `"fp16"` or `"fp32"`."""
    for name in ("bf16", "fp16"):
        if draft.get(f"{name}.enabled") is True:
            return name
    return "fp32"


def _is_reported(draft: Draft, path: str) -> bool:
    return any(problem.startswith(f"{path} ") for problem in draft.problems)


def _drop_own_autos(draft: Draft) -> None:
    # Here "auto" is DeepSpeed's own word, and its default.
    if find_value(draft.ds, "data_types.keep_in_fp32_modules") == AUTO:
        del draft.ds["data_types"]["keep_in_fp32_modules"]


def _fill_precision(draft: Draft) -> None:
    if draft.has("fp16") and draft.is_open("fp16.enabled"):
        draft.fill("fp16.enabled", False, "derived: bf16 is the default precision")
    if draft.is_open("bf16.enabled") and draft.has("bf16"):
        other = "fp16" if draft.get("fp16.enabled") else ""
        other = other or ("torch_autocast" if draft.get("torch_autocast.enabled") else "")
        why = f"derived: {other} is enabled" if other else "derived: the default precision"
        draft.fill("bf16.enabled", not other, why)


def _fill_zero(draft: Draft) -> None:
    if draft.is_open(f"{_ZERO}.stage"):
        if find_value(draft.ds, f"{_ZERO}.stage") == AUTO:
            return  # Reported with the other unknown places.
        draft.fill(f"{_ZERO}.stage", 0, "DeepSpeed's default")
        draft.warnings.append(
            f"{_ZERO}.stage is not in {draft.label}: stage 0, every rank holds the whole model, "
            "its gradients and its optimizer state"
        )
    hidden = draft.facts.hidden_size if draft.facts else None
    if hidden is not None:
        sizes = {
            "reduce_bucket_size": (hidden * hidden, "hidden_size^2"),
            "allgather_bucket_size": (hidden * hidden, "hidden_size^2"),
            "stage3_prefetch_bucket_size": (int(0.9 * hidden * hidden), "0.9 hidden_size^2"),
            "stage3_param_persistence_threshold": (10 * hidden, "10 hidden_size"),
        }
        for key, (value, formula) in sizes.items():
            _fill_auto(draft, f"{_ZERO}.{key}", value, f"derived: {formula}")
    _fill_auto(draft, f"{_ZERO}.sub_group_size", _SUB_GROUP, "derived: bounds pinned buffers")
    local = draft.local_size or draft.world_size
    is_wide = draft.world_size > local and draft.world_size % local == 0
    why = "derived: the ranks of a host" if is_wide else "derived: there is one host"
    _fill_auto(draft, f"{_ZERO}.zero_hpz_partition_size", local if is_wide else 1, why)


def _fill_offload(draft: Draft) -> None:
    for part in _OFFLOADS:
        section = f"{_ZERO}.{part}"
        if not isinstance(draft.get(section), dict):
            continue
        if draft.is_open(f"{section}.pin_memory"):
            draft.fill(f"{section}.pin_memory", True, "DeepSpeed's default")
        if draft.get(f"{section}.device") == "nvme" and draft.is_open(f"{section}.nvme_path"):
            # The run folder is not known yet; `with_output_dir` fills it in.
            set_value(draft.ds, f"{section}.nvme_path", AUTO)
        elif draft.get(f"{section}.device") != "nvme" and draft.is_open(f"{section}.nvme_path"):
            draft.ds[_ZERO][part].pop("nvme_path", None)
    if draft.get(f"{_ZERO}.offload_param.device") == "nvme":
        # Weights that stay gathered hold a buffer each, and DeepSpeed gives up when none is left.
        for key in LIVE:
            if draft.is_open(f"{_ZERO}.{key}"):
                draft.fill(f"{_ZERO}.{key}", 0, "derived: weights on NVMe go back after use")
    largest = draft.facts.largest_parameter if draft.facts else None
    if largest is not None:
        # A buffer holds this rank's slice of one parameter; 16 bits per element.
        slice_size = -(-largest // draft.world_size)
        why = "derived: this rank's slice of the largest parameter"
        _fill_auto(draft, f"{_ZERO}.offload_param.buffer_size", slice_size, why)
    _fill_auto(draft, f"{_ZERO}.offload_param.buffer_count", 5, "DeepSpeed's default")
    _fill_auto(draft, f"{_ZERO}.offload_param.max_in_cpu", 0, "derived: all parameters on NVMe")
    _fill_auto(draft, f"{_ZERO}.offload_optimizer.buffer_count", 4, "DeepSpeed's default")


def _fill_own_optimizer(draft: Draft, run: Run) -> None:
    """Let DeepSpeed take an optimizer that is not its own."""
    is_8bit = run.optim.name == "adamw_8bit"
    device = draft.get(f"{_ZERO}.offload_optimizer.device")
    if draft.has("optimizer") or not (is_8bit or device in ("cpu", "nvme")):
        return
    for path, value in (
        ("zero_allow_untested_optimizer", True),
        ("zero_force_ds_cpu_optimizer", False),
    ):
        if draft.get(path) is (not value):
            draft.problems.append(
                f"{path} = {str(not value).lower()} ({draft.where(path)}): --optim"
                f" {run.optim.name} needs {str(value).lower()}. Drop the line"
            )
        else:
            draft.fill(path, value, f"needed by --optim {run.optim.name}")
    size = draft.get(f"{_ZERO}.sub_group_size")
    if is_8bit and device in ("cpu", "nvme") and (size is None or size > _SUB_GROUP_8BIT):
        draft.fill(f"{_ZERO}.sub_group_size", _SUB_GROUP_8BIT, "bounds the 8-bit step's memory")
        before = f"{size:,}" if size else "absent"
        draft.announced.append(
            f"{_ZERO}.sub_group_size {_SUB_GROUP_8BIT:,} (was {before}): bounds the temporary "
            "memory of the 8-bit step on the host"
        )


def _fill_accumulation_type(draft: Draft, run: Run) -> None:
    path = "data_types.grad_accum_dtype"
    if not draft.is_open(path):
        return
    training = training_type(draft)
    steps = run.trainer.gradient_accumulation_steps
    stage = draft.get(f"{_ZERO}.stage") or 0
    if steps > 1 and stage > 0:
        draft.fill(path, "fp32", "derived: several micro-steps are summed")
    else:
        # Stage 0 takes no other format than the training one.
        draft.fill(path, training, "derived: the training format")


def _fill_auto(draft: Draft, path: str, value: Any, why: str) -> None:
    if find_value(draft.ds, path) == AUTO:
        draft.fill(path, value, why)
