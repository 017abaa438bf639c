"""Writes checkpoints of stock DeepSpeed with the optimizer offloaded, and the engine's weights.

    python -m torch.distributed.run --standalone --nproc_per_node 2 make_nvme_checkpoints.py OUT

`OUT/nvme_bf16`, `OUT/nvme_params_bf16`, `OUT/nvme_fp32`, `OUT/cpu_bf16`: sub-groups above and below
the 1 MiB under which DeepSpeed does not swap, a frozen and a shared parameter, two weight-decay
groups.
"""

import sys
from pathlib import Path

import deepspeed
import torch
import torch._dynamo  # a first import inside zero.Init fails with torch 2.13
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param
from transformers import LlamaConfig, LlamaForCausalLM

from bigft.engine.communication import unlink_shared_buffers


def main() -> None:
    out = Path(sys.argv[1])
    deepspeed.init_distributed("gloo", verbose=False)
    unlink_shared_buffers()
    make_checkpoint(out, "nvme_bf16", "nvme", None, "bf16")
    make_checkpoint(out, "nvme_params_bf16", "nvme", "nvme", "bf16")
    make_checkpoint(out, "nvme_fp32", "nvme", None, "fp32")
    make_checkpoint(out, "cpu_bf16", "cpu", "cpu", "bf16")
    dist.destroy_process_group()


def make_checkpoint(
    out: Path, name: str, optimizer: str, parameters: str | None, precision: str
) -> None:
    nvme = str(out / f"swap_{name}")
    offload = {"offload_optimizer": {"device": optimizer, "nvme_path": nvme, "pin_memory": False}}
    if parameters:
        offload["offload_param"] = {"device": parameters, "nvme_path": nvme, "pin_memory": False}
        offload["offload_param"] |= {"buffer_size": 2_000_000, "buffer_count": 12, "max_in_cpu": 0}
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 3, "sub_group_size": 400_000, **offload},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2}},
        "bf16": {"enabled": precision == "bf16"},
        "aio": {"block_size": 1 << 20, "queue_depth": 8},
    }
    config = LlamaConfig(
        vocab_size=2571,
        hidden_size=350,
        intermediate_size=593,
        num_hidden_layers=2,
        num_attention_heads=5,
        num_key_value_heads=1,
        head_dim=6,
        tie_word_embeddings=True,
    )
    torch.manual_seed(7)
    with deepspeed.zero.Init(config_dict_or_path=settings):
        model = LlamaForCausalLM(config)
    if parameters != "nvme":  # frozen slices would stay in swap files that are not saved
        model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    decayed = [p for n, p in model.named_parameters() if p.requires_grad and "norm" not in n]
    kept = [p for n, p in model.named_parameters() if "norm" in n]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": kept, "weight_decay": 0.0}]
    engine, *_ = deepspeed.initialize(model=model, model_parameters=groups, config=settings)
    for _ in range(2):
        ids = torch.randint(0, 2571, (1, 17))
        engine.backward(engine(input_ids=ids, labels=ids).loss)
        engine.step()
    engine.save_checkpoint(str(out / name), tag="final")
    save_weights(engine.module, out / name)


def save_weights(model: LlamaForCausalLM, folder: Path) -> None:
    """Save what the engine computes with, and its fp32 masters, in full."""
    masters, weights = {}, {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            masters[name] = safe_get_full_fp32_param(parameter).clone()
        with deepspeed.zero.GatheredParameters([parameter]):
            weights[name] = parameter.detach().cpu().clone()
    if dist.get_rank() == 0:
        torch.save({"masters": masters, "weights": weights}, folder / "weights.pt")
        model.config.save_pretrained(folder / "hf")


if __name__ == "__main__":
    main()
