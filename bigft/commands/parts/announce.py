"""What a run says about itself before it trains."""

from pathlib import Path

from bigft.commands.parts.engine import training_dtype
from bigft.data.build import Data
from bigft.data.describe import describe_data
from bigft.distributed.world import World
from bigft.log import Console
from bigft.optim.build import OptimizerPlan
from bigft.run.resolved import Resolved


def announce(
    resolved: Resolved, optimizer: OptimizerPlan, world: World, folder: Path, console: Console
) -> None:
    """Say what will run where, and what the settings led to."""
    ds, run = resolved.ds, resolved.run
    zero = ds["zero_optimization"]
    offload = {
        part: zero.get(f"offload_{part}", {}).get("device", "none")
        for part in ("param", "optimizer")
    }
    console.say(f"run folder {folder}")
    console.say(
        f"{world.size} rank(s) on {world.device.type}, ZeRO stage {zero['stage']}, parameters on"
        f" {_place(offload['param'], world)}, optimizer on {_place(offload['optimizer'], world)},"
        f" {training_dtype(ds)!s}".replace("torch.", "")
    )
    console.say(
        f"{ds['train_batch_size']} sequences of up to {run.data.max_length} tokens per step ="
        f" {ds['train_micro_batch_size_per_gpu']} per rank x {ds['gradient_accumulation_steps']}"
        f" accumulated x {world.size} rank(s)"
    )
    for line in [*resolved.announced, *(f"warning: {text}" for text in resolved.warnings)]:
        console.say(line)
    if run.checkpoint.write == "background" and offload["optimizer"] == "nvme":
        console.say("note: states on NVMe are saved in the foreground; checkpoint.write is ignored")
    if optimizer.note:
        console.say(f"note: {optimizer.note}")


def announce_data(data: Data, total_steps: int, console: Console) -> None:
    """Say what was found in the data and how long the run will be."""
    for line in describe_data(data.info, data.train.steps_per_epoch):
        console.say(line)
    console.say(f"{total_steps:,} steps in this run")


def _place(device: str, world: World) -> str:
    return {"none": world.device.type, "cpu": "host memory", "nvme": "NVMe"}.get(device, device)
