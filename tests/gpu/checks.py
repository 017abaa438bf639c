"""What the suite checks in processes of their own; prints one JSON object, fails by its exit code.

python tests/gpu/checks.py packing sdpa       packed loss and gradients = unpacked ones
python tests/gpu/checks.py reload RUN         exported folder, plain transformers = engine
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

VOCAB = 512


def pick_device() -> torch.device:
    on_cpu = os.environ.get("DS_ACCELERATOR") == "cpu" or not torch.cuda.is_available()
    return torch.device("cpu" if on_cpu else "cuda")


def check_packing(attention: str) -> dict[str, Any]:
    """Compare a batch of two packed sequences with the same examples one by one."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    from bigft.data.loading.collate import collate_packed, collate_padded
    from bigft.data.tokens.tokenize import Row
    from bigft.tasks.causal_lm import CausalLM

    device = pick_device()
    # FlashAttention knows no fp32.
    dtype, tolerance = (torch.bfloat16, 2e-2) if "flash" in attention else (torch.float32, 1e-5)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=256, intermediate_size=512, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=VOCAB, max_position_embeddings=256,
        initializer_range=0.2, use_cache=False,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    model = model.to(device).train()
    chooser = np.random.default_rng(0)
    rows = []
    for length in (37, 20, 9, 50, 11, 30):
        supervised = chooser.random(length) < 0.7
        supervised[0] = False
        rows.append(Row(chooser.integers(0, VOCAB, length).astype(np.int32), supervised))
    packed = [collate_packed([rows[:3], rows[3:]], pad_id=0, max_length=128)]
    single = [collate_padded([[row]], pad_id=0, max_length=128) for row in rows]
    task = CausalLM()

    def measure(batches: list[Any]) -> tuple[float, torch.Tensor]:
        model.zero_grad()
        total = 0.0
        for batch in batches:
            loss = task.loss(model, batch.to(device)).total
            loss.backward()
            total += float(loss)
        gradients = [p.grad.float().flatten() for p in model.parameters() if p.grad is not None]
        return total, torch.cat(gradients).cpu()

    (loss_packed, grad_packed), (loss_single, grad_single) = measure(packed), measure(single)
    loss_error = abs(loss_packed - loss_single) / loss_single
    grad_error = float((grad_packed - grad_single).norm() / grad_single.norm())
    ok = loss_error < tolerance and grad_error < 10 * tolerance
    return {
        "ok": ok, "loss": loss_packed / 157, "device": str(device),
        "note": f"loss differs by {loss_error:.1e}, gradients by {grad_error:.1e}",
    }  # fmt: skip


def check_reload(run: str) -> dict[str, Any]:
    """Compare logits of the engine that resumed a run with those of the exported folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    from bigft.cli import parse
    from bigft.distributed.world import close_world, open_world
    from bigft.run.resolve import resolve, with_output_dir

    folder = Path(run)
    resolved_folder = folder / "resolved"
    words = ["train", "--config", str(resolved_folder / "ds_config.json")]
    words += ["--recipe", str(resolved_folder / "run.yaml")]
    resolved = with_output_dir(resolve(parse(words), os.environ), str(folder))
    world = open_world()
    from bigft.checkpoint.manifest import find_newest
    from bigft.checkpoint.state.load import load_state
    from bigft.commands.parts.engine import build_run_engine, training_dtype
    from bigft.engine.communication import open_communication
    from bigft.engine.zero import Zero
    from bigft.log import plain_console
    from bigft.models.facts import read_facts
    from bigft.models.load import load_model
    from bigft.optim.build import plan_optimizer

    open_communication(world.device)
    facts = read_facts(resolved.run.model)
    zero = Zero(resolved.ds)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    model = load_model(
        resolved.run.model, facts, zero, auto_class=AutoModelForCausalLM, tokenizer=tokenizer,
        dtype=training_dtype(resolved.ds), device=world.device, seed=0,
    )  # fmt: skip
    console = plain_console()
    console.out = console.err = sys.stderr
    plan = plan_optimizer(resolved.run.optim, resolved.ds)
    engine = build_run_engine(resolved.run, resolved.ds, model, plan, 4, world, console)
    load_state(engine.deepspeed, find_newest(folder / "checkpoints"))
    engine.set_training(False)
    ids = torch.arange(3, 67, device=world.device)[None]
    with torch.no_grad():
        ours = engine(input_ids=ids, use_cache=False).logits
        # Else transformers would build the plain model partitioned, too.
        unset_hf_deepspeed_config()
        plain, info = AutoModelForCausalLM.from_pretrained(
            folder / "model",
            dtype="auto",
            output_loading_info=True,
            attn_implementation=model.attention,
        )
        theirs = plain.to(world.device).eval()(input_ids=ids).logits
    difference = float((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max())
    named = [name for key in ("missing_keys", "unexpected_keys") for name in info[key]]
    close_world()
    return {
        # Another matrix kernel may round differently: two units in the last place of bf16.
        "ok": difference < 2**-6 and not named,
        "note": ("logits equal bit for bit" if torch.equal(ours.to(theirs.dtype), theirs)
                 else f"logits differ by {difference:.1e}") + (f", {named}" if named else ""),
    }  # fmt: skip


def main() -> int:
    function = {"packing": check_packing, "reload": check_reload}[sys.argv[1]]
    result = function(*sys.argv[2:])
    # DeepSpeed prints to standard output: the result is the last line.
    print(json.dumps(result), flush=True)
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
