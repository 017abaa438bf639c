"""Host memory with everything offloaded: DeepSpeed's AdamW, bitsandbytes 8-bit, bigft's.

    python tests/benchmarks/host_memory.py [--size 500m] [--ranks 2] [--steps 2] [--stage 3]
    python tests/benchmarks/host_memory.py --size 2b --ranks 1 --ways "bigft adamw_8bit"

Each way is a fresh run of the launcher over the same random model in bf16 on the CPU: under stage 3
partitioned when it is built, optimizer and parameters offloaded to host memory; under stages 1 and
2 the optimizer offloaded, and weights whole on every rank. `--steps` steps of 128 tokens.
Counted is what all ranks have more than after their imports: resident after the last step, and at
the peak (of each rank, start-up included), from /proc. Shared pages count once per rank. Beside it
the bytes per parameter that the tensors themselves account for, and what the interpreter and its
imports take, which is not in the sums.
"""

import argparse
import json
import re
import tempfile
from pathlib import Path
from typing import Any

from launching import launch

WAYS = ("stock adamw", "stock 8-bit", "bigft adamw_8bit")
SIZES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4},
    "500m": {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 18},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 14},
    "2b": {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 18},
}


def read_memory() -> dict[str, int]:
    """Resident bytes now and at the peak."""
    text = Path("/proc/self/status").read_text()
    found = {key: re.search(rf"{key}:\s+(\d+) kB", text) for key in ("VmRSS", "VmHWM")}
    return {key: int(match[1]) * 1024 for key, match in found.items() if match}


def work(options: argparse.Namespace) -> None:
    """One rank of one run."""
    import bitsandbytes
    import deepspeed
    import torch
    from deepspeed.ops.adam import DeepSpeedCPUAdam
    from transformers import LlamaConfig, LlamaForCausalLM

    from bigft.engine.host_memory import (
        fix_malloc_limits,
        give_back_at_once,
        give_back_freed_memory,
    )
    from bigft.engine.host_zero import host_zero
    from bigft.optim.host import HostAdamW

    deepspeed.init_distributed()
    rank = torch.distributed.get_rank()
    ds = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": True},
        "gradient_clipping": 1.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": options.stage,
            "sub_group_size": 100_000_000,
            "reduce_bucket_size": 10_000_000,
            "stage3_prefetch_bucket_size": 10_000_000,
            "stage3_param_persistence_threshold": 10_000,
            "offload_optimizer": {"device": "cpu"},
            **({"offload_param": {"device": "cpu"}} if options.stage == 3 else {}),
        },
    }
    config = LlamaConfig(
        vocab_size=32000,
        num_attention_heads=16,
        num_key_value_heads=16,
        tie_word_embeddings=True,
        **SIZES[options.size],
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    before = read_memory()["VmRSS"]
    if options.way.startswith("bigft"):
        give_back_at_once()
    with deepspeed.zero.Init(
        config_dict_or_path=ds, dtype=torch.bfloat16, enabled=options.stage == 3
    ):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    model.gradient_checkpointing_enable()
    numel = sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters())
    makers = {
        "stock adamw": lambda p: DeepSpeedCPUAdam(p, lr=1e-4),
        "stock 8-bit": lambda p: bitsandbytes.optim.AdamW8bit(p, lr=1e-4),
        "bigft adamw_8bit": lambda p: HostAdamW(
            [{"params": list(p)}], lr=1e-4, betas=(0.9, 0.999), eps=1e-8
        ),
    }
    with host_zero():
        engine, *_ = deepspeed.initialize(
            model=model, optimizer=makers[options.way](model.parameters()), config=ds
        )
    if options.way.startswith("bigft"):
        give_back_freed_memory()
    fix_malloc_limits(numel)
    started = read_memory()
    for _ in range(options.steps):
        tokens = torch.randint(0, config.vocab_size, (1, 128))
        engine.backward(engine(input_ids=tokens, labels=tokens).loss)
        engine.step()
    after = read_memory()
    rows: list[Any] = [None] * torch.distributed.get_world_size()
    mine = {
        "interpreter": before,
        "start": started["VmHWM"] - before,
        "resident": after["VmRSS"] - before,
        "peak": after["VmHWM"] - before,
        "tensors": measure_tensors(engine),
    }
    torch.distributed.all_gather_object(rows, mine)
    if rank == 0:
        sums: dict[str, Any] = {
            key: sum(row[key] for row in rows) for key in mine if key != "tensors"
        }
        sums["tensors"] = {key: sum(row["tensors"][key] for row in rows) for key in mine["tensors"]}
        Path(options.result).write_text(json.dumps({"parameters": numel, **sums}))
    torch.distributed.destroy_process_group()


def measure_tensors(engine: Any) -> dict[str, int]:
    """Bytes of the tensors that make up the run's state, each storage once."""
    import torch

    from bigft.optim.host import HostAdamW

    outer, seen = engine.optimizer, set()

    def count(tensors: Any) -> int:
        total = 0
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                total += storage.nbytes()
        return total

    inner, rest = outer.optimizer, 0
    if hasattr(outer, "fp16_partitioned_groups_flat"):
        weights, masters = outer.fp16_partitioned_groups_flat, outer.fp32_partitioned_groups_flat
        gradients = [outer.grad_partitions_flat_buffer]
    else:
        weights, masters = outer.bit16_groups_flat, outer.single_partition_of_fp32_groups
        gradients = getattr(outer, "_gradients", [])
    found = {
        "weights": count(flat for flat in weights if flat is not None),
        "gradients": count(gradients),
        "masters": count(flat.data for flat in masters),
        "fp32 gradients": count(flat.grad for flat in masters if flat.grad is not None),
    }
    if isinstance(inner, HostAdamW):
        # What is kept lies in one run of bytes per vector.
        rest = sum(kept.num_bytes - kept.moment_bytes for kept in inner.flat_states)
        moments = [kept.kept for kept in inner.flat_states]
    else:
        states = list(inner.state.values())
        moments = [v for state in states for v in state.values() if torch.is_tensor(v)]
    found["masters"] += rest
    return {**found, "moments": count(moments) - rest}


def run(way: str, options: argparse.Namespace, parent: Path) -> dict[str, Any]:
    command = [__file__, "--size", options.size, "--steps", options.steps, "--stage", options.stage]
    return launch(way, options.ranks, command, parent)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="500m", choices=SIZES)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    parser.add_argument("--stage", type=int, default=3, choices=[1, 2, 3])
    for name in ("--way", "--result", "--local_rank"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        work(options)
        return
    with tempfile.TemporaryDirectory() as parent:
        for way in options.ways:
            found = run(way, options, Path(parent))
            numel = found["parameters"]
            parts = {name: size / numel for name, size in found["tensors"].items()}
            rest = found["resident"] / numel - sum(parts.values())
            print(
                f"{way}: {numel:,} parameters; bytes per parameter: {found['resident'] / numel:.2f}"
                f" resident, {found['peak'] / numel:.2f} at the peak ({found['start'] / numel:.2f}"
                " until the first step); "
                + ", ".join(f"{name} {size:.2f}" for name, size in parts.items())
                + f", everything else {rest:.2f}; the interpreter"
                f" {found['interpreter'] / numel:.2f} more",
                flush=True,
            )


if __name__ == "__main__":
    main()
