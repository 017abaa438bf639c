"""The hook that people see: a progress bar, and rows of numbers for the sinks."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

import torch
from tqdm import tqdm

from bigft.distributed.collectives import gather_rows
from bigft.monitor.meters import PHASES, read_device_peak_bytes, read_rss_bytes
from bigft.monitor.sinks import Numbers, Sinks
from bigft.trainer.hooks import StepReport, is_due
from bigft.trainer.state import State
from bigft.units import format_count, format_seconds

# Without a terminal a bar is noise: one line every so often instead.
_LINE_SECONDS = 10.0


@dataclass(frozen=True)
class Rate:
    """What turns tokens into a share of the device's peak."""

    flops_per_token: float
    peak_flops: float | None
    """Of all ranks together; None where unknown."""


class Reporter:
    """Adds up steps and writes a row whenever one is due."""

    def __init__(
        self,
        sinks: Sinks,
        *,
        logging_steps: int,
        device: torch.device,
        local_size: int,
        rate: Rate,
        stream: TextIO | None,
        sources: Sequence[str] = (),
    ) -> None:
        """Report to `sinks`.

        Args:
            sinks: Where rows go.
            logging_steps: Steps per row.
            device: Of this rank.
            local_size: Ranks on this host.
            rate: What turns tokens into a share of the device's peak.
            stream: The terminal, None off rank 0.
            sources: Names of the parts of the data; of several, each has a loss of its own.
        """
        self._sinks = sinks
        self._logging_steps = logging_steps
        self._device = device
        self._local_size = local_size
        self._rate = rate
        self._stream = stream
        self._sources = sources if len(sources) > 1 else ()
        self._progress: _Progress | None = None
        self._latest: StepReport | None = None
        self._start_interval()

    def _start_interval(self) -> None:
        self._loss = torch.zeros((), device=self._device)
        self._supervised = self._tokens = self._steps = 0
        self._seconds = 0.0
        self._by_source = torch.zeros(len(self._sources), 2, device=self._device)

    def started(self, state: State, total_steps: int) -> None:
        """Open the progress bar."""
        self._total_steps = total_steps
        if self._stream is not None:
            self._progress = _Progress(self._stream, state.step, total_steps)

    def stepped(self, state: State, report: StepReport) -> None:
        """Add the step, and write a row when it is due."""
        # The loss of a skipped step may not be a number, and taught nothing.
        if not report.result.skipped:
            self._loss += report.loss_sum
            if self._sources and report.by_source is not None:
                self._by_source += report.by_source
            self._supervised += report.supervised_tokens
        self._tokens += report.tokens
        self._seconds += report.seconds
        self._steps += 1
        self._latest = report
        if is_due(state.step, self._logging_steps, self._total_steps):
            self._write(state, report)

    def _write(self, state: State, report: StepReport) -> None:
        row = self._build_row(state, report)
        self._sinks.write(row)
        if self._progress is not None:
            self._progress.show(row, self._steps)
        self._start_interval()

    def _build_row(self, state: State, report: StepReport) -> Numbers:
        peak = read_device_peak_bytes(self._device)
        mine = [float(self._loss), float(read_rss_bytes()), float(peak)]
        ranks = gather_rows([*mine, *self._by_source.flatten().tolist()], self._device)
        rate = self._tokens / self._seconds
        mfu = None
        if self._rate.peak_flops:
            mfu = rate * self._rate.flops_per_token / self._rate.peak_flops
        row: Numbers = {
            "step": state.step,
            "epoch": state.epoch,
            "loss": float(ranks[:, 0].sum()) / self._supervised if self._supervised else None,
            "learning_rate": report.result.learning_rate,
            "grad_norm": report.result.grad_norm,
            "tokens": state.tokens,
            "tokens_per_second": rate,
            "step_seconds": self._seconds / self._steps,
        }
        phases = report.clock.read()
        row.update({f"{name}_seconds": phases[name] / self._steps for name in PHASES})
        row.update(
            mfu=mfu,
            host_rss_bytes=int(ranks[: self._local_size, 1].sum()),
            device_peak_bytes=int(ranks[:, 2].max()),
            skipped_steps=state.skipped_steps,
        )
        sums = ranks[:, len(mine) :].sum(0).reshape(-1, 2).tolist()
        row.update(name_losses(self._sources, sums))
        return row

    def finished(self, state: State) -> None:
        """Write the steps that a run has taken since the last row, if it ended early."""
        if self._steps and self._latest is not None:
            self._write(state, self._latest)
        if self._progress is not None:
            self._progress.close()


def name_losses(sources: Sequence[str], sums: Sequence[Sequence[float]]) -> Numbers:
    """Name the mean loss of each part of the data: `loss/<name>`, None where it had no token."""
    pairs = zip(sources, sums, strict=True)
    return {f"loss/{name}": loss / tokens if tokens else None for name, (loss, tokens) in pairs}


class _Progress:
    """A bar on a terminal; a line every ten seconds elsewhere."""

    def __init__(self, stream: TextIO, done: int, total: int) -> None:
        self._stream = stream
        self._total = total
        self._bar = None
        if stream.isatty():
            self._bar = tqdm(
                total=total, initial=done, file=stream, unit="step", dynamic_ncols=True
            )
        self._seconds_per_step: float | None = None
        self._shown = -math.inf

    def show(self, row: Numbers, steps: int) -> None:
        loss = "none" if row["loss"] is None else f"{row['loss']:.4f}"
        lr = float(row["learning_rate"] or 0.0)
        rate = format_count(float(row["tokens_per_second"] or 0.0))
        text = f"loss {loss}, lr {lr:.2e}, {rate} tok/s"
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(steps)
            return
        step, latest = int(row["step"] or 0), float(row["step_seconds"] or 0.0)
        # A running mean: one slow step must not make the estimate jump.
        previous = self._seconds_per_step
        self._seconds_per_step = latest if previous is None else 0.9 * previous + 0.1 * latest
        if time.monotonic() - self._shown < _LINE_SECONDS and step != self._total:
            return
        self._shown = time.monotonic()
        left = format_seconds((self._total - step) * self._seconds_per_step)
        self._stream.write(f"step {step}/{self._total}: {text}, {left} left\n")
        self._stream.flush()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
