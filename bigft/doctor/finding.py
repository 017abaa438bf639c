"""What a check has found."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from bigft.errors import BigftError, ConfigError, LaunchError, PlanError

Fault = Literal["space", "host", "settings"]

ERRORS: dict[Fault, type[BigftError]] = {
    "space": PlanError,
    "host": LaunchError,
    "settings": ConfigError,
}
"""Kind of fault -> the error that a training run would end with; the first one decides the exit
code of a run of the doctor that has found several."""

WITH_FIX = "bigft doctor --fix   (with the same settings)"
"""The repair that the doctor can do itself."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    ok: bool
    found: str
    """What is there, with its number."""

    why: str = ""
    """Why that matters; empty where all is well."""

    repair: str = ""
    """The command that repairs it."""

    fault: Fault = "host"
    applies: bool = True
    """False: not needed here, or it could not be looked at; then `ok` is true."""

    host: str = ""
    """Where; empty on this host."""


def passed(name: str, found: str) -> Finding:
    """All is well."""
    return Finding(name, True, found)


def skipped(name: str, found: str, repair: str = "") -> Finding:
    """It does not matter here, or cannot be told."""
    return Finding(name, True, found, repair=repair, applies=False)


def failed(name: str, found: str, why: str, repair: str, fault: Fault = "host") -> Finding:
    """A run would end, or suffer, of this."""
    return Finding(name, False, found, why, repair, fault)


def describe_finding(finding: Finding) -> dict[str, Any]:
    """Return a finding as plain data: the keys of the contract, and some more."""
    return asdict(finding)


def find_worst(findings: Iterable[Finding]) -> type[BigftError] | None:
    """Find the error that stands for all faults together; None where there is none."""
    faults = {finding.fault for finding in findings if not finding.ok}
    return next((error for fault, error in ERRORS.items() if fault in faults), None)
