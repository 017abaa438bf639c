"""What `--fix` does: nothing that a run would not do by itself, and nothing that is in use."""

import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from bigft.doctor.finding import WITH_FIX, Finding
from bigft.doctor.wanted import Wanted
from bigft.engine.swap import find_orphans
from bigft.launch.child import ask

_BUILD_SECONDS = 1800.0

_CLEAR_LOCKS = """
import sys
from deepspeed.accelerator import get_accelerator
from bigft.engine.operators import clear_stale_lock
for name in sys.argv[1:]:
    clear_stale_lock(get_accelerator().create_op_builder(name).name)
"""


def repair(findings: Iterable[Finding], wanted: Wanted, say: Callable[[str], None]) -> bool:
    """Repair what can be repaired here.

    Returns:
        Whether anything was done, so that it is worth looking again.
    """
    names = {finding.name for finding in findings if finding.repair.startswith(WITH_FIX)}
    # Two findings may have one repair.
    for fixer in dict.fromkeys(FIXERS[name] for name in FIXERS if name in names):
        fixer(wanted, say)
    return bool(names)


def _clear_locks(wanted: Wanted, say: Callable[[str], None]) -> None:
    ask([sys.executable, "-c", _CLEAR_LOCKS, *wanted.builders], 60.0, environ=wanted.environ)
    say("removed locks of builds that were killed")


def _build(wanted: Wanted, say: Callable[[str], None]) -> None:
    say("building operators and the native step, which takes a few minutes the first time")
    command = [sys.executable, "-m", "bigft.engine.prebuild", *wanted.builders]
    answer = ask(command, _BUILD_SECONDS, environ=wanted.environ)
    say("built" if answer.code == 0 else f"could not be built: {answer.last_words}")


def _remove_orphans(wanted: Wanted, say: Callable[[str], None]) -> None:
    for root in wanted.nvme_paths:
        for folder in find_orphans(Path(root)):
            shutil.rmtree(folder, ignore_errors=True)
            say(f"removed {folder}")


FIXERS: Mapping[str, Callable[[Wanted, Callable[[str], None]], None]] = {
    "build_lock": _clear_locks,
    "operators": _build,
    "native_step": _build,
    "swap_leftovers": _remove_orphans,
}
"""Name of a finding -> its repair, in the order in which they are done."""
