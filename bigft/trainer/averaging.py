"""Weights beside those that are trained, which are evaluated and exported in their place.

MovingAverage   follows the weights a little after every step
Reptile         goes towards them after several steps on one part of the data, and they start from
                there again on the next part
"""

import contextlib
from collections.abc import Iterator

from bigft.checkpoint.state.shadow import Shadow
from bigft.trainer.section import ReptileSection


class MovingAverage:
    """Exponential moving average: `average = decay * average + (1 - decay) * weights`.

    Polyak and Juditsky (1992) for the idea. It begins with the weights before the first step.
    """

    def __init__(self, shadow: Shadow, decay: float) -> None:
        """Take the average's memory, and how much of it each step leaves."""
        self.shadow = shadow
        self._decay = decay

    def stepped(self, step: int, *, skipped: bool) -> None:
        """Follow the weights, unless the step has left them as they were."""
        if not skipped:
            self.shadow.approach(1.0 - self._decay)

    @contextlib.contextmanager
    def shown(self, step: int) -> Iterator[None]:
        """Let the model compute with the average inside. Collective: every rank."""
        self.shadow.exchange()
        # After an error nothing is put back: the other ranks may not come to do it together, and
        # the run is over.
        yield
        self.shadow.exchange()

    def describe(self) -> dict[str, float]:
        """Return what evaluations say about themselves."""
        return {"ema": self._decay}


class Reptile:
    """Start weights that are easy to adapt (Nichol et al., "Reptile", arXiv 1803.02999).

    After `inner_steps` optimizer steps on one part of the data, the start weights go a share of the
    way to where these have led, and the next part begins from there. The optimizer's moments stay,
    as in the authors' published code, and with `--optim.adam_beta1 0`, as there, no gradient of one
    part moves the weights on another.
    """

    def __init__(self, shadow: Shadow, section: ReptileSection, total_steps: int) -> None:
        """Take the start weights' memory, the settings, and the length of the run."""
        self.shadow = shadow
        self._section = section
        self._rounds = total_steps // section.inner_steps

    def rate(self, number: int) -> float:
        """Return the share of the way that the start weights go after round `number`, from 0."""
        if self._section.outer_schedule == "constant":
            return self._section.outer_rate
        return self._section.outer_rate * max(0.0, 1.0 - number / self._rounds)

    def stepped(self, step: int, *, skipped: bool) -> None:
        """Move the start weights, if this was the last step on a part. Collective: every rank.

        Args:
            step: Steps of the run, this one included; skipped ones count, for the data go on.
            skipped: Whether the step has left the weights as they were.
        """
        if step % self._section.inner_steps == 0:
            self.shadow.approach(self.rate(step // self._section.inner_steps - 1))
            self.shadow.impose()

    @contextlib.contextmanager
    def shown(self, step: int) -> Iterator[None]:
        """Let the model compute with the start weights inside. Collective: every rank."""
        is_away = step % self._section.inner_steps > 0
        if is_away:
            self.shadow.exchange()
        yield
        if is_away:
            self.shadow.exchange()

    def describe(self) -> dict[str, float]:
        """Return what evaluations say about themselves: nothing, the weights are the model's."""
        return {}
