"""The hook that looks at loss and gradients: skipped steps, and values that stand out."""

import math
from collections.abc import Callable, Sequence
from statistics import median

import torch

from bigft.errors import TrainingError
from bigft.monitor.events import Events
from bigft.monitor.spikes import WINDOW, judge
from bigft.trainer.hooks import StepReport
from bigft.trainer.state import State

_SHOWN = 8
"""Samples that a line names; `log/events.jsonl` has all of them."""

Tell = Callable[[str], None]


class Health:
    """Names the samples of steps that were skipped or stand out; ends a run that only skips.

    All ranks see the same numbers and come to the same result.
    """

    def __init__(
        self, tell: Tell, events: Events, *, max_skipped_in_a_row: int, expects_overflow: bool
    ) -> None:
        """Take where to speak.

        Args:
            tell: Shows a line.
            events: Keeps the details.
            max_skipped_in_a_row: More than one less than this ends the run.
            expects_overflow: Whether a skipped step now and then is how the loss scale of fp16
                finds its size, so that samples are named only when a loss is not finite.
        """
        self._tell = tell
        self._events = events
        self._max_skipped_in_a_row = max_skipped_in_a_row
        self._expects_overflow = expects_overflow

    def started(self, state: State, total_steps: int) -> None:
        """Do nothing."""

    def stepped(self, state: State, report: StepReport) -> None:
        """Look at the step.

        Raises:
            TrainingError: Too many steps in a row were skipped.
        """
        if report.result.skipped:
            self._skipped(state, report)
            return
        if _is_small(state, report.supervised_tokens):
            return
        self._judge(state, report, "loss", _find_mean(report))
        if report.result.grad_norm is not None:
            self._judge(state, report, "grad_norm", report.result.grad_norm)

    def finished(self, state: State) -> None:
        """Do nothing."""

    def _judge(self, state: State, report: StepReport, name: str, value: float) -> None:
        spike = judge(state.spikes.setdefault(name, []), value)
        if spike is None:
            return
        samples = report.samples.list_all() if report.samples else []
        words = {"loss": "loss", "grad_norm": "gradient norm"}[name]
        self._events.write(
            state.step, "spike", of=name, value=spike.value, mean=spike.mean, sigma=spike.sigma,
            samples=samples,
        )  # fmt: skip
        above = (spike.value - spike.mean) / spike.sigma if spike.sigma else math.inf
        self._tell(
            f"warning: step {state.step}: {words} {spike.value:.4g} stands out, {above:.1f} sigma"
            f" above the mean of the last steps ({spike.mean:.4g}, sigma {spike.sigma:.2g});"
            f" samples: {show_samples(samples)}"
        )

    def _skipped(self, state: State, report: StepReport) -> None:
        bad = [
            (int(rank), int(micro_step))
            for rank, micro_step in (~torch.isfinite(report.losses)).nonzero().tolist()
        ]
        what = "the loss" if bad else "a gradient"
        samples = _find_samples(report, bad)
        self._events.write(
            state.step, "skipped", reason=what.split()[1], micro_batches=bad, samples=samples
        )
        if self._expects_overflow and not bad:
            self._tell(f"step {state.step}: fp16 overflow, skipped; the loss scale is lowered")
        else:
            self._tell(
                f"warning: step {state.step} skipped: {what} was not finite, so no weight changed"
                f" on any rank; samples: {show_samples(samples)}"
            )
        if state.skipped_in_a_row >= self._max_skipped_in_a_row:
            raise _make_error(state, what, samples)


def show_samples(samples: Sequence[str]) -> str:
    """Name the first samples, and say how many more there are."""
    more = len(samples) - _SHOWN
    shown = ", ".join(samples[:_SHOWN]) or "unknown"
    return f"{shown} and {more} more (log/events.jsonl)" if more > 0 else shown


def _is_small(state: State, tokens: int) -> bool:
    """Whether a step has less than half of the usual tokens, as the last one of an epoch may have.

    Means of few tokens scatter more: such a step is no measure of the others, nor they of it.
    """
    history = state.spikes.setdefault("supervised_tokens", [])
    is_small = bool(history) and tokens < 0.5 * median(history)
    history.append(tokens)
    del history[:-WINDOW]
    return is_small


def _find_mean(report: StepReport) -> float:
    return float(report.losses.double().sum()) / max(report.supervised_tokens, 1)


def _find_samples(report: StepReport, bad: Sequence[tuple[int, int]]) -> list[str]:
    if report.samples is None:
        return []
    if not bad:
        return report.samples.list_all()
    named = [name for place in bad for name in report.samples.list_of(*place)]
    return list(dict.fromkeys(named))


def _make_error(state: State, what: str, samples: Sequence[str]) -> TrainingError:
    error = TrainingError(
        f"step {state.step}: {what} was not finite, {state.skipped_in_a_row} times in a row"
        " (trainer.max_skipped_in_a_row); lower --learning_rate, add --optim.warmup_steps, or look"
        f" for broken rows in the data. Samples of the last one: {show_samples(samples)}"
    )
    error.is_shared = True
    return error
