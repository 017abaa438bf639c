"""The errors a user can cause, each with the exit code that scripts rely on.

Anything that is not a `BigftError` is a bug in bigft and is shown with its traceback (exit code 1).
"""

from collections.abc import Sequence
from typing import NoReturn


class BigftError(Exception):
    """A mistake that the user can repair; shown as text, never as a traceback."""

    exit_code = 1

    is_shared = False
    """All ranks raise it with the same words, so that rank 0 says them for all."""

    is_local = False
    """Raised in a run by a rank other than 0, for itself: that rank has to say it."""

    problems: tuple[str, ...] = ()
    """The problems one by one, where several were raised together."""


class ConfigError(BigftError):
    """A setting is unknown, contradictory or out of range."""

    exit_code = 2


class DataError(BigftError):
    """The data are missing, unreadable, empty or of no known format."""

    exit_code = 3


class PlanError(BigftError):
    """The run does not fit on this machine."""

    exit_code = 4


class CheckpointError(BigftError):
    """A checkpoint or a model folder is missing, damaged or incompatible."""

    exit_code = 5


class LaunchError(BigftError):
    """A host, a rank, the network or a host's tools are not ready."""

    exit_code = 6


class TrainingError(BigftError):
    """The loss or the gradients are not finite too often, or memory ran out."""

    exit_code = 7


class StoppedError(BigftError):
    """A signal asked the run to stop, and nothing is lost: the same command goes on."""

    exit_code = 75


def raise_together(error: type[BigftError], problems: Sequence[str]) -> NoReturn:
    """Raise one error that lists every problem, numbered when there are several."""
    if len(problems) == 1:
        raise error(problems[0])
    lines = [f"{number}. {problem}" for number, problem in enumerate(problems, 1)]
    several = error("\n".join([f"{len(problems)} problems:", *lines]))
    several.problems = tuple(problems)
    raise several


def list_problems(error: BigftError) -> list[str]:
    """Return the problems of an error one by one, to show them together with others."""
    return list(error.problems) or [str(error)]
