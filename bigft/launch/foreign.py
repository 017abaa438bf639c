"""What comes from outside is data: it is looked at before anything is done with it."""

import ipaddress
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

_INTERFACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,14}", re.ASCII)


def read_object(text: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: It is something else, or no JSON.
    """
    try:
        data = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(data, dict):
        raise ValueError("no JSON object")
    return data


def take_text(data: Mapping[str, Any], key: str, most: int = 4096) -> str:
    """Return a text that a key has to have.

    Raises:
        ValueError: There is none, it is longer, or has a NUL in it.
    """
    value = data.get(key)
    if not isinstance(value, str) or len(value) > most or "\0" in value:
        raise ValueError(f"no proper {key}")
    return value


def take_whole(data: Mapping[str, Any], key: str, least: int, most: int) -> int:
    """Return a whole number that a key has to have.

    Raises:
        ValueError: There is none between the bounds.
    """
    value = data.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"no proper {key}")
    return value


def take_number(data: Mapping[str, Any], key: str) -> float:
    """Return a finite number that a key has to have.

    Raises:
        ValueError: There is none.
    """
    value = data.get(key)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # A whole number of a thousand digits is none that anything is measured by.
    if not is_number or not abs(value) < 1e15 or not math.isfinite(value):  # type: ignore[arg-type]
        raise ValueError(f"no proper {key}")
    return float(value)  # type: ignore[arg-type]


def take_table(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return an object that a key has to have.

    Raises:
        ValueError: There is none.
    """
    value = data.get(key)
    if not isinstance(value, dict):
        raise ValueError(f"no proper {key}")
    return value


def take_list(data: Mapping[str, Any], key: str, most: int) -> Sequence[Any]:
    """Return a list that a key has to have.

    Raises:
        ValueError: There is none, or it is longer.
    """
    value = data.get(key)
    if not isinstance(value, list) or len(value) > most:
        raise ValueError(f"no proper {key}")
    return value


def is_address(text: str) -> bool:
    """Say whether a text is an IP address; the zone of an IPv6 one is a network interface."""
    address, percent, zone = text.partition("%")
    try:
        version = ipaddress.ip_address(address).version
    except ValueError:
        return False
    return not percent or (version == 6 and is_interface(zone))


def is_interface(text: str) -> bool:
    """Say whether a text can be the name of a network interface, and nothing else."""
    return _INTERFACE.fullmatch(text) is not None
