"""Logits of an engine and of an exported folder on the same input."""

from typing import Any

import torch

INPUT = [[5, 9, 200, 33, 7, 101, 300, 2, 8, 77, 450, 12]]


def plain_logits(folder: Any) -> torch.Tensor:
    """What plain transformers computes, in the folder's own number format."""
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", output_loading_info=True
    )
    assert not info["missing_keys"], info
    assert not info["unexpected_keys"], info
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor(INPUT)).logits


def engine_logits(settings: dict[str, Any], folder: str, config: str) -> Any:
    """What the engine computes after it has loaded the run's newest checkpoint."""
    import io
    from pathlib import Path

    import runs

    from bigft.checkpoint.manifest import find_newest
    from bigft.checkpoint.state.load import load_state
    from bigft.commands.parts.engine import build_run_engine
    from bigft.engine.communication import open_communication
    from bigft.engine.zero import Zero
    from bigft.log import Console
    from bigft.models.facts import read_facts
    from bigft.models.tokenizer import load_tokenizer
    from bigft.optim.build import plan_optimizer

    resolved = runs._resolve(settings, folder, config)
    world = runs._world()
    open_communication(world.device)
    facts = read_facts(resolved.run.model)
    zero = Zero(resolved.ds)
    tokenizer = load_tokenizer(resolved.run.model, facts, lambda: None)
    model = runs.load_run_model(resolved, world, zero, tokenizer)
    console = Console(io.StringIO(), io.StringIO(), is_rank_zero=False)
    plan = plan_optimizer(resolved.run.optim, resolved.ds)
    engine = build_run_engine(resolved.run, resolved.ds, model, plan, 4, world, console)
    load_state(engine.deepspeed, find_newest(Path(folder) / "checkpoints"))
    engine.set_training(False)
    with torch.no_grad():
        logits = engine(input_ids=torch.tensor(INPUT), use_cache=False).logits
    return logits.float().numpy()
