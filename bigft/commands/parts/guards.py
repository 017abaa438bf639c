"""What a run is guarded by: requests to stop are heard, and the end of another rank is seen."""

import contextlib
from collections.abc import Callable, Iterator

from bigft.distributed.lookout.limits import Limits
from bigft.distributed.signals import StopSignals
from bigft.distributed.watch import Watch
from bigft.distributed.world import World
from bigft.errors import BigftError
from bigft.log import Console
from bigft.monitor.section import WatchSection


def read_limits(section: WatchSection) -> Limits:
    """Take the time limits out of the settings."""
    return Limits(
        startup=section.startup_seconds,
        steady=section.steady_seconds,
        slow=section.slow_seconds,
        lost=section.lost_seconds,
        port=section.port,
    )


class Guards:
    """Signals and the watch over other ranks; without a watch, nothing is watched."""

    def __init__(self, signals: StopSignals | None = None, watch: Watch | None = None) -> None:
        """Take what is installed."""
        self.signals = signals or StopSignals()
        self._watch = watch

    def meet(self, world: World) -> None:
        """Begin to watch the other ranks and hosts. Collective: every rank."""
        if self._watch is not None:
            self._watch.meet(world)

    def explain(self, error: Exception) -> str:
        """Wait for the news when an error looks like another rank's end, which ends this one, too.

        Returns:
            Which ranks and hosts the error is about; empty where nobody here knows.
        """
        if self._watch is None:
            return ""
        self._watch.explain(error)
        return self._watch.name_others(error)

    def tell(self, error: BigftError) -> bool:
        """Let rank 0 say an error of this rank alone; return whether it has heard it."""
        return self._watch is not None and self._watch.tell(error)

    def part(self) -> None:
        """Let the other ranks end as they like: what is left is done without them."""
        if self._watch is not None:
            self._watch.part()

    @contextlib.contextmanager
    def speaking_through(self, console: Console) -> Iterator[None]:
        """Let last words reach the terminal while standard error leads to the log."""
        if self._watch is not None:
            self._watch.speak_through(console.err)
        try:
            yield
        finally:
            if self._watch is not None:
                self._watch.speak_through(None)

    def before_leaving(self, clean_up: Callable[[], None]) -> None:
        """Have something done also when the process is ended past all `finally` blocks."""
        if self._watch is not None:
            self._watch.before_leaving(clean_up)
