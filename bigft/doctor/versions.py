"""Python and packages: floors, what was tested, and combinations with known holes or bugs."""

import importlib.metadata
import platform
import re
import sys
from collections.abc import Iterator
from itertools import zip_longest

from bigft.doctor.finding import Finding, failed, passed
from bigft.doctor.wanted import Wanted

PYTHON = (3, 10)

FLOORS = {
    "torch": "2.10",
    "deepspeed": "0.19.8",
    "transformers": "5.17",
    "datasets": "4",
    "bitsandbytes": "0.50",
    "tensorboard": "2.19",
    "fire": "0.7",
    "safetensors": "0.5",
    "scikit-learn": "1.5",
    "scipy": "1.11",
    "pydantic": "2.7",
    "PyYAML": "6",
    "tqdm": "4.60",
}
"""As in `setup.py`; a test holds them equal."""

TESTED = {"torch": "2.13.0", "deepspeed": "0.19.8", "transformers": "5.23.0"}
"""As in `constraints.txt`; a test holds them equal."""

# Package -> (first version without it, what is wrong below). Most serious last: it is what is said.
_HOLES = {
    "torch": [
        ("2.10", "a crafted checkpoint corrupts memory while it is loaded (CVE-2026-24747)"),
        ("2.6", "loading a checkpoint can run code that lies in it (CVE-2025-32434)"),
    ],
    "transformers": [
        ("5.3", "a model's config.json can run code from the hub (CVE-2026-4372, CVE-2026-5241)"),
        ("5.0", "loading a random state can run code that lies in it (CVE-2026-1839)"),
    ],
    "deepspeed": [
        ("0.19.8", "stage 3 lets gradients that are not finite into the optimizer's moments"),
        ("0.15.2", "it builds shell commands from text it is given (CVE-2024-43497)"),
    ],
}


def check_versions(wanted: Wanted) -> Iterator[Finding]:
    """Compare versions, as the packages' own metadata have them, with floors and pins."""
    yield _check_python(sys.version_info[:2])
    for package, floor in FLOORS.items():
        yield _check_package(package, floor)


def read_versions() -> dict[str, str]:
    """Return the versions that all hosts of a run have to share."""
    found = {name: find_version(name) for name in FLOORS}
    return {name: version for name, version in found.items() if version is not None}


def find_version(package: str) -> str | None:
    """Find an installed version without importing the package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def is_below(version: str, floor: str) -> bool:
    """Compare the numbers of two versions; `2.10.0+cpu` is not below `2.10`."""
    pairs = zip_longest(_numbers(version), _numbers(floor), fillvalue=0)
    return next((mine < least for mine, least in pairs if mine != least), False)


def _numbers(version: str) -> list[int]:
    release = re.match(r"[0-9]+(\.[0-9]+)*", version)
    return [int(number) for number in release[0].split(".")] if release else []


def _check_python(version: tuple[int, int]) -> Finding:
    found = platform.python_version()
    if version < PYTHON:
        least = ".".join(map(str, PYTHON))
        return failed("python", found, f"bigft needs {least}", f"install Python {least} or newer")
    return passed("python", found)


def _check_package(package: str, floor: str) -> Finding:
    version = find_version(package)
    repair = f"{sys.executable} -m pip install '{package}>={floor}'"
    if package in TESTED:
        repair = f"{sys.executable} -m pip install '{package}=={TESTED[package]}'"
    if version is None:
        return failed(package, "not installed", "bigft imports it", repair)
    if is_below(version, floor):
        holes = [what for fixed, what in _HOLES.get(package, ()) if is_below(version, fixed)]
        why = holes[-1] if holes else f"bigft relies on what came with {floor}"
        return failed(package, version, why, repair)
    tested = TESTED.get(package)
    is_tested = tested is None or not is_below(tested, version)
    return passed(package, version if is_tested else f"{version}, newer than the tested {tested}")
