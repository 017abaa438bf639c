"""Writes real DeepSpeed checkpoints of tiny Llamas, for the tests of consolidation.

    python -m torch.distributed.run --standalone --nproc_per_node 2 make_zero_checkpoints.py OUT

Odd sizes throughout, so that every stage has to pad; several groups and sub-groups.
"""

import json
import sys
from pathlib import Path

import deepspeed
import torch
import torch._dynamo  # a first import inside zero.Init fails with torch 2.13
import torch.distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM

from bigft.engine.communication import unlink_shared_buffers

IDS = torch.arange(1, 34).reshape(1, 33) * 7 % 257


def main() -> None:
    out = Path(sys.argv[1])
    deepspeed.init_distributed("gloo", verbose=False)
    unlink_shared_buffers()
    for stage in (1, 2, 3):
        for precision in ("bf16", "fp32"):
            for tie in (True, False):
                make_checkpoint(out, stage, precision, tie)
        make_checkpoint(out, stage, "bf16", tie=False, has_extras=True)
    make_checkpoint(out, 1, "bf16", tie=True, accumulation="fp32")
    make_checkpoint(out, 0, "fp32", tie=True)
    dist.destroy_process_group()


def make_checkpoint(
    out: Path,
    stage: int,
    precision: str,
    tie: bool,
    accumulation: str | None = None,
    has_extras: bool = False,
) -> None:
    name = f"stage{stage}_{precision}_{'tied' if tie else 'untied'}"
    name += "_extras" if has_extras else ""
    name += f"_{accumulation}_accumulation" if accumulation else ""
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=35,
        intermediate_size=59,
        num_hidden_layers=2,
        num_attention_heads=5,
        num_key_value_heads=1,
        head_dim=6,
        tie_word_embeddings=tie,
    )
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": stage, "sub_group_size": 4000},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "torch_adam": True}},
        "bf16": {"enabled": precision == "bf16"},
        "data_types": {"grad_accum_dtype": accumulation},
    }
    torch.manual_seed(7)
    with deepspeed.zero.Init(config_dict_or_path=settings, enabled=stage == 3):
        model = LlamaForCausalLM(config)
    # zero.Init casts float buffers to bf16 as well; rotary frequencies rounded to 8 bits give other
    # logits than the model that transformers builds.
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    if has_extras:
        add_extras(model)
    decayed = [p for n, p in model.named_parameters() if "norm" not in n]
    kept = [p for n, p in model.named_parameters() if "norm" in n]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": kept, "weight_decay": 0.0}]
    engine, *_ = deepspeed.initialize(model=model, model_parameters=groups, config=settings)
    for _ in range(2):
        ids = torch.randint(0, 257, (1, 17))
        engine.backward(engine(input_ids=ids, labels=ids).loss)
        engine.step()
    folder = out / name
    engine.save_checkpoint(str(folder), tag="final")
    engine.eval()
    with torch.no_grad():
        logits = engine(input_ids=IDS).logits
    if dist.get_rank() == 0:
        torch.save({"ids": IDS, "logits": logits}, folder / "logits.pt")
        model.config.save_pretrained(folder / "hf")
        (folder / "facts.json").write_text(json.dumps({"stage": stage}))


def add_extras(model: LlamaForCausalLM) -> None:
    """Frozen parameters, and buffers that belong in the state dict or do not."""
    model.model.embed_tokens.weight.requires_grad_(False)
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    model.register_buffer("seen_tokens", torch.tensor([3, 5, 2**40]))
    model.register_buffer("offsets", torch.linspace(0, 1, 5))
    model.register_buffer("scratch", torch.ones(3), persistent=False)


if __name__ == "__main__":
    main()
