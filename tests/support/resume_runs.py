"""Runs without an export, and what their checkpoints hold."""

import hashlib
import io
import shutil
from pathlib import Path
from typing import Any

from small_runs import ds_config, read_steps, small_settings

STEPS, STOP = 6, 3


def make_settings(
    shared: Path, tmp: Path, config: str, **changes: Any
) -> tuple[dict[str, Any], str]:
    """Settings of a small run that saves at step `STOP`, and its DeepSpeed configuration."""
    own = {
        "data.eval_fraction": 0,
        "max_steps": STEPS,
        "save_steps": STOP,
        "checkpoint.keep_last": 99,
        "ds.bf16.enabled": "false",
    }
    settings = small_settings(shared, **{**own, **changes})
    name = config
    if config == "zero1":
        settings["ds.zero_optimization.stage"] = 1
        name = "zero2"
    if config == "zero3_nvme":
        for part in ("offload_param", "offload_optimizer"):
            settings[f"ds.zero_optimization.{part}.nvme_path"] = tmp / "nvme"
    return settings, ds_config(name)


def check_equal(pool: Any, settings: dict[str, Any], config: str, tmp: Path, stop: int) -> None:
    """Train at one go, then from the checkpoint of step `stop`, and compare everything."""
    whole, half = tmp / "whole", tmp / "half"
    pool.run("resume_runs:train", settings, str(whole), config)
    copy_checkpoint(whole, half, stop)
    said = pool.run("resume_runs:train", settings, str(half), config)[0]
    assert f"resumed from step_{stop:08d}" in said
    check_same(whole, half, stop, settings["max_steps"])


def check_same(one: Path, other: Path, stop: int, last: int) -> None:
    """Compare two runs: what they report after step `stop`, and the checkpoint of step `last`."""
    assert read_rows(other, stop + 1) == read_rows(one, stop + 1)
    assert len(read_rows(one, stop + 1)) == last - stop
    name = f"checkpoints/step_{last:08d}"
    assert digest_state(other / name) == digest_state(one / name)


def copy_checkpoint(source: Path, target: Path, step: int) -> None:
    """Let another run go on from the checkpoint of a step."""
    name = f"checkpoints/step_{step:08d}"
    shutil.copytree(source / name, target / name)


# What the ranks do.


def train(settings: dict[str, Any], folder: str, config: str) -> str:
    """Train inside the open process group; returns what was said."""
    import runs

    from bigft.commands.training import train as train_parts
    from bigft.log import Console

    resolved = runs._resolve(settings, folder, config)
    world = runs._world()
    Path(folder).mkdir(parents=True, exist_ok=True)
    err = io.StringIO()
    console = Console(io.StringIO(), err, is_rank_zero=world.is_rank_zero)
    train_parts(resolved, Path(folder), world, console)
    return err.getvalue()


def train_a_step(settings: dict[str, Any], folder: str, config: str, rank: int) -> str:
    """Train, and ask one rank to stop before the first step; returns what the run ends with."""
    import runs
    import torch

    from bigft.commands import training
    from bigft.commands.parts.guards import Guards
    from bigft.errors import StoppedError
    from bigft.log import Console

    guards = Guards()
    Path(folder).mkdir(parents=True, exist_ok=True)
    world = runs._world()
    console = Console(io.StringIO(), io.StringIO(), is_rank_zero=world.is_rank_zero)
    resolved = runs._resolve(settings, folder, config)
    build = training.build_hooks

    class Ask:
        def started(self, state: Any, total_steps: int) -> None:
            if torch.distributed.get_rank() == rank:
                guards.signals.request("SIGTERM")

        def stepped(self, state: Any, report: Any) -> None:
            pass

        def finished(self, state: Any) -> None:
            pass

    training.build_hooks = lambda *args, **named: [Ask(), *build(*args, **named)]
    try:
        training.train(resolved, Path(folder), world, console, guards)
    except StoppedError as error:
        return str(error)
    finally:
        training.build_hooks = build
    return "went through"


OF_STOCK = ("moments", "beta_powers")
"""Parts that only DeepSpeed's own optimizer restores."""


def train_without(settings: dict[str, Any], folder: str, config: str, dropped: str) -> str:
    """Resume, but leave one part of the state out: a control that has to be noticed."""
    from unittest.mock import patch

    from bigft.checkpoint.state import load, numbers
    from bigft.trainer.state import State

    def keep_state(values: dict[str, Any]) -> Any:
        from bigft.data.order.cursor import Cursor

        state = original(values)
        state.cursor = Cursor()
        return state

    def fill_weights(reader: Any, kept: Any) -> int:
        steps = fill_host(reader, kept)
        for row in kept.rows:
            for moments in row.moments:
                moments.zero_()
        return steps

    original, fill_host = State.from_dict, load.fill_host
    patches = {
        "host_moments": patch.object(load, "fill_host", fill_weights),
        "moments": patch.object(load, "_restore_states", lambda *_: 2),
        "schedule": patch.object(numbers, "_restore_schedule", lambda *_: None),
        "cursor": patch.object(State, "from_dict", keep_state),
        "beta_powers": patch.object(numbers, "_replay_steps", lambda *_: None),
    }
    with patches[dropped]:
        if dropped in OF_STOCK:
            return train_with_stock(settings, folder, config)
        return train(settings, folder, config)


def read_rows(folder: Path, first: int) -> list[dict[str, Any]]:
    """Read what `metrics.jsonl` says of the steps from `first` on, without what is measured."""
    names = ("step", "loss", "grad_norm", "learning_rate", "tokens", "epoch")
    steps = [row for row in read_steps(folder) if row["step"] >= first]
    return [{name: row.get(name) for name in names} for row in steps]


def digest_state(checkpoint: Path) -> dict[str, str]:
    """Digest every file of a checkpoint's state."""
    files = sorted((checkpoint / "state").iterdir())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def read_full(checkpoint: Path) -> dict[str, Any]:
    """Put every tensor of a checkpoint together, whatever ranks wrote it, padding left out."""
    import torch

    from bigft.checkpoint.state.index import read_index
    from bigft.checkpoint.state.read import StateReader

    index = read_index(checkpoint)
    found = {}
    with StateReader(checkpoint, index.world_size) as reader:
        for kind in ("master", *reader.kinds):
            for name, facts in index.parameters.items():
                whole = torch.zeros(int(torch.tensor(facts["shape"]).prod()))
                reader.fill(kind, name, 0, whole)
                found[f"{kind}/{name}"] = whole
    return found


def train_with_masters(settings: dict[str, Any], folder: str, config: str) -> str:
    """Train with fp32 weights of their own beside the bf16 ones, rounded as `split` rounds."""
    from unittest.mock import patch

    import numpy as np
    import torch

    from bigft.engine.host_stage2 import HostZeroStage2
    from bigft.engine.host_stage3 import HostZeroStage3
    from bigft.optim.reference import split

    def make_master(self: Any, weights: Any) -> Any:
        if isinstance(weights, int):
            weights = find_own(self, weights)
        master = weights.data.float()
        master.requires_grad = True
        return master

    def round_into(low: Any, master: Any) -> None:
        upper, _ = split(master.detach().numpy())
        low.data.view(torch.int16).copy_(torch.from_numpy(upper.view(np.int16)))

    def write_back(self: Any, number: int) -> None:
        master = self.fp32_partitioned_groups_flat[number]
        round_into(self.fp16_partitioned_groups_flat[number], master)

    def find_own(self: Any, number: int) -> Any:
        return self.parallel_partitioned_bit16_groups[number][torch.distributed.get_rank()]

    def step(self: Any, closure: Any = None) -> None:
        # What it has gathered is rounded otherwise.
        step_and_round(self)
        for number, master in enumerate(self.single_partition_of_fp32_groups):
            round_into(find_own(self, number), master)
            parts = self.parallel_partitioned_bit16_groups[number]
            torch.distributed.all_gather(parts, find_own(self, number).clone())

    step_and_round = HostZeroStage2.step
    name = "_reassign_or_swap_out_partitioned_parameters"
    with (
        patch.object(HostZeroStage2, "_make_flat", make_master),
        patch.object(HostZeroStage2, "step", step),
        patch.object(HostZeroStage3, "_make_flat", make_master),
        patch.object(HostZeroStage3, name, write_back),
    ):
        return train(settings, folder, config)


def train_in_little_space(
    settings: dict[str, Any], folder: str, config: str
) -> tuple[str, int, int]:
    """Train on a disk without room for a checkpoint beside the swap files.

    Returns:
        What was said, and the blocks of this rank's swap files before and after the save.
    """
    from unittest.mock import patch

    import torch

    from bigft.checkpoint import save

    tmp = Path(folder).parent
    blocks = []
    write = save.write_state

    def count() -> int:
        mine = next((tmp / "nvme").glob(f"*/bigft_states/rank{torch.distributed.get_rank()}"))
        return sum(path.stat().st_blocks for path in mine.iterdir())

    def write_counted(state: Any, file: Any) -> None:
        blocks.append(count())
        write(state, file)
        blocks.append(count())

    def measure(path: Any) -> Any:
        free = 1 << 40 if "nvme" in str(path) else 4096
        return shutil._ntuple_diskusage(1 << 41, (1 << 41) - free, free)

    with (
        patch.object(shutil, "disk_usage", measure),
        patch.object(save, "write_state", write_counted),
    ):
        said = train(settings, folder, config)
    return said, blocks[0], blocks[-1]


def train_with_stock(settings: dict[str, Any], folder: str, config: str) -> str:
    """Train with DeepSpeed's own optimizer in host memory."""
    from unittest.mock import patch

    from bigft.optim import build

    with patch.object(build, "suits_host", lambda _: False):
        return train(settings, folder, config)


def train_without_rest(settings: dict[str, Any], folder: str, config: str) -> str:
    """Train with weights of which nothing but the bf16 number is kept from step to step."""
    from unittest.mock import patch

    from bigft.optim.host import FlatState

    update = FlatState.update

    def update_and_forget(state: FlatState, *args: Any) -> int:
        dropped = update(state, *args)
        for row in state.rows:
            row.rest.zero_()
        return dropped

    with patch.object(FlatState, "update", update_and_forget):
        return train(settings, folder, config)
