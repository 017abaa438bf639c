"""The main job: the frame of a training run. What happens inside is in `training.py`."""

import contextlib
import os
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from bigft.config.deepspeed import AUTO
from bigft.config.request import Request
from bigft.data.sources.find import find_sources
from bigft.distributed.claim import claimed
from bigft.distributed.place import HERE
from bigft.distributed.signals import BEFORE_TRAINING, StopSignals, ignore_stop_signals
from bigft.distributed.witness import witnessed
from bigft.errors import BigftError, ConfigError, LaunchError, StoppedError
from bigft.redact import redact_text
from bigft.run.report import render_resolved
from bigft.run.resolve import default_output_dir, resolve, with_output_dir
from bigft.run.resolved import Resolved

if TYPE_CHECKING:
    from bigft.commands.parts.guards import Guards
    from bigft.distributed.lookout.limits import Limits


def main(request: Request) -> None:
    """Resolve the settings; then show them (`--dry_run`) or train."""
    resolved = resolve(request, os.environ)
    # Ten seconds of imports are too long to wait for the news of a mistyped file name.
    find_sources(resolved.run.data.train, "--data")
    if resolved.run.data.eval is not None:
        find_sources(resolved.run.data.eval, "--eval_data")
    if resolved.dry_run:
        if os.environ.get("RANK", "0") == "0":
            sys.stdout.write(redact_text(render_resolved(resolved)) + "\n")
        return
    try:
        run_training(resolved)
    except BaseException:
        # A launcher that ends all ranks because one has left must not change the exit code.
        ignore_stop_signals()
        raise


def run_training(resolved: Resolved) -> Path:
    """Open the world, the run folder and the log; train; export on rank 0.

    Returns:
        The folder of the exported model.

    Raises:
        StoppedError: SIGTERM, SIGINT or SIGUSR1 asked for it, and what was done is committed.

    Collective: every rank.
    """
    signals = StopSignals()
    # The witness first: it has to see also what goes wrong while torch is imported.
    with signals.installed(), witnessed():
        # Heavy imports wait until the settings are known to be right.
        from bigft.commands.parts.guards import Guards, read_limits
        from bigft.distributed.watch import Watch

        limits = read_limits(resolved.run.watch)
        watch = Watch(signals, limits)
        guards = Guards(signals, watch)
        with watch.running():
            try:
                signals.check(BEFORE_TRAINING)
                return _run_guarded(resolved, guards, limits)
            except StoppedError:
                raise
            except Exception as error:
                if signals.name is not None and not signals.is_awaited:
                    # Whatever broke while everything was being stopped is only a consequence.
                    raise signals.make_error() from error
                raise


def _run_guarded(resolved: Resolved, guards: "Guards", limits: "Limits") -> Path:
    from bigft.checkpoint.recognise import find_storages
    from bigft.commands.parts.endings import endings_explained, note_run
    from bigft.distributed.collectives import broadcast_object, errors_shared
    from bigft.distributed.world import close_world, open_world
    from bigft.log import output_to_log

    world = open_world(limits=limits)
    try:
        with endings_explained(guards):
            guards.meet(world)
            if resolved.request.config in ("", AUTO):
                # What is free when they look may lead ranks to different plans.
                resolved = broadcast_object(resolved)
            chosen = resolved.run.output_dir or default_output_dir(resolved.run, datetime.now())
            folder = Path(broadcast_object(chosen)).absolute()
        resolved = with_output_dir(resolved, str(folder))
        with contextlib.ExitStack() as stack:
            with errors_shared():
                if world.is_rank_zero:
                    stack.enter_context(_claimed(folder))
            storages = find_storages(folder, world.rank, world.size)
            with errors_shared():
                if storages.leads(world.rank) and not world.is_rank_zero:
                    stack.enter_context(_claimed(folder))
            log = folder / "log" / f"rank_{world.rank:02d}.log"
            console = stack.enter_context(output_to_log(log, is_rank_zero=world.is_rank_zero))
            stack.enter_context(guards.speaking_through(console))
            stack.enter_context(endings_explained(guards))
            note_run(resolved, folder)
            # DeepSpeed writes to standard output while it is imported: only now.
            from bigft.commands.training import export, source_at_rank_zero, train

            finished = train(resolved, folder, world, console, guards, storages)
            source = stack.enter_context(source_at_rank_zero(finished, world, storages))
            # Ranks part here: the export needs no collective and may outlast their time limits.
            guards.part()
            close_world()
            model = folder / "model"
            if world.is_rank_zero:
                HERE.note(phase="exporting the model", step=None)
                guards.signals.check("during the export, with the last step committed")
                export(resolved, source, model, console)
                console.result(str(model))
        return model
    except BigftError as error:
        is_own = not (error.is_shared or world.is_rank_zero)
        is_stop = isinstance(error, StoppedError)
        error.is_local = is_own and (is_stop or not guards.tell(error))
        raise
    finally:
        close_world()


@contextlib.contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Hold the run folder for this run alone.

    Raises:
        ConfigError: It cannot be written, or another run is using it.
    """
    held = contextlib.ExitStack()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The kernel drops it when the process ends, however it ends and whatever it forked.
        held.enter_context(claimed(folder))
    except LaunchError as error:
        raise ConfigError(
            f"--output_dir {folder}: another run is writing there ({error}); wait for it, stop it,"
            " or choose another --output_dir"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"--output_dir {folder}: cannot be written ({error.strerror}); choose another folder"
        ) from error
    with held:
        yield
