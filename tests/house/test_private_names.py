"""Private names of other packages: each in as few modules as it says here, and still there."""

import ast
import importlib
import inspect
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SUPPORTED = "torch 2.13, DeepSpeed 0.19.8, transformers 5.23, datasets 5.2"
PARTITION = "checkpoint/state/partition.py"
STAGE_3 = "deepspeed.runtime.zero.stage3"
SCHEDULER = "torch.optim.lr_scheduler"

# Name -> (where it is defined, where it is used). Methods that are overridden are held by
# tests/unit/engine/test_host_zero.py, with what is in them.
USED = {
    "_create_zero_param_parallel_group": ("deepspeed.utils.groups", ["engine/zero.py"]),
    "_get_zero_param_intra_parallel_group": ("deepspeed.utils.groups", ["engine/zero.py"]),
    "_fingerprint": ("datasets.arrow_dataset", ["data/sources/find.py"]),
    "_get_build_directory": ("torch.utils.cpp_extension", ["engine/operators.py"]),
    "_get_default_store": ("torch.distributed.distributed_c10d", ["distributed/board.py"]),
    "_global_grad_norm": ("deepspeed.runtime.engine", ["engine/nonfinite.py"]),
    "_hp_mapping": ("deepspeed.utils.mixed_precision_linkage", [PARTITION]),
    "_invalidate_trace": (
        "deepspeed.runtime.zero.partitioned_param_coordinator",
        ["engine/engine.py"],
    ),
    "_io_aligned_numel": (
        "deepspeed.runtime.swap_tensor.optimizer_utils",
        ["engine/swap_verify.py"],
    ),
    "_last_lr": (SCHEDULER, ["checkpoint/state/numbers.py"]),
    "_model_mapping": ("transformers.models.auto.auto_factory", ["models/load.py"]),
    "_non_persistent_buffers_set": ("torch.nn.modules.module", ["checkpoint/state/collect.py"]),
    "_prepare_sub_group": (STAGE_3, [PARTITION]),
    "_reassign_or_swap_out_partitioned_parameters": (STAGE_3, [PARTITION]),
    "_release_sub_group": (STAGE_3, [PARTITION]),
    "_step_count": (SCHEDULER, ["checkpoint/state/numbers.py"]),
    "_swappable_optimizer_subgroup": (STAGE_3, [PARTITION]),
    # A trial that was running when the sweep ended goes on as the same trial.
    "_trial_id": ("optuna.trial._frozen", ["search/study.py"]),
    "_wrapped_by_lr_sched": (SCHEDULER, ["engine/nonfinite.py"]),
}
OF_THE_STANDARD_LIBRARY = {"_current_frames", "_exit", "_replace"}


def find_used() -> dict[str, list[str]]:
    """Private attributes of what is not one's own, and private names that are imported."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in (ROOT / "bigft").rglob("*.py"):
        tree = ast.parse(path.read_text())
        place = path.relative_to(ROOT / "bigft").as_posix()
        own = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                    own.add(node.attr)
            elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("bigft"):
                for name in node.names:
                    if name.name.startswith("_"):
                        found[name.name].add(place)
        for node in ast.walk(tree):
            is_private = isinstance(node, ast.Attribute) and node.attr.startswith("_")
            if is_private and not node.attr.startswith("__") and node.attr not in own:
                found[node.attr].add(place)
    return {name: sorted(places) for name, places in found.items()}


def test_private_names_are_used_where_it_says_here():
    found = find_used()
    assert {n: p for n, p in found.items() if n not in OF_THE_STANDARD_LIBRARY} == {
        name: places for name, (_, places) in USED.items()
    }


@pytest.mark.parametrize("name", USED)
def test_a_private_name_is_still_there(name):
    module = importlib.import_module(USED[name][0])
    assert name in inspect.getsource(module), (
        f"{module.__name__} has no {name} any more; supported: {SUPPORTED}. Read what it has"
        f" become, and {USED[name][1]}"
    )
