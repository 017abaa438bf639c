"""What other hosts answer, looked at before it is used: they may run anything."""

from collections.abc import Mapping, Sequence
from typing import Any

from bigft.doctor.finding import ERRORS, Finding
from bigft.launch.foreign import (
    is_address,
    is_interface,
    read_object,
    take_list,
    take_number,
    take_table,
    take_text,
    take_whole,
)
from bigft.units import escape_controls

_TEXTS = ("hostname", "python", "executable", "folder", "bigft", "code")
_MOST_FINDINGS = 1000
_LONGEST = 2000


def read_facts(line: str, peers: Sequence[str]) -> dict[str, Any]:
    """Read what `probe.describe_host` says on another host.

    Args:
        line: JSON.
        peers: The hosts that it was asked about.

    Raises:
        ValueError: It is something else. Texts are shown, addresses and interfaces go into the
            environment of other hosts, and nothing else passes.
    """
    data = read_object(line)
    versions, routes = take_table(data, "versions"), take_table(data, "routes")
    facts: dict[str, Any] = {name: _take_plain(data, name) for name in _TEXTS}
    return facts | {
        "time": take_number(data, "time"),
        "versions": {escape_controls(name): _take_plain(versions, name) for name in versions},
        "routes": {peer: _read_route(take_table(routes, peer)) for peer in peers},
        "is_port_free": data.get("is_port_free") is True,
        "free_port": take_whole(data, "free_port", 1024, 65535),
        "gpus": take_whole(data, "gpus", 0, 1024),
    }


def read_report(line: str) -> tuple[list[Finding], str | None]:
    """Read what `bigft doctor --json` says on another host: findings, and a digest of settings.

    Raises:
        ValueError: It is something else.
    """
    data = read_object(line)
    found = [_read_finding(item) for item in take_list(data, "findings", _MOST_FINDINGS)]
    is_known = data.get("settings_digest") is not None
    return found, _take_plain(data, "settings_digest") if is_known else None


def read_sums(line: str) -> tuple[float, float]:
    """Read the bytes per second and the seconds of a small sum that ranks have measured there.

    Raises:
        ValueError: It is something else.
    """
    data = read_object(line)
    rate, seconds = take_number(data, "bytes_per_second"), take_number(data, "small_sum_seconds")
    if rate <= 0 or seconds <= 0:
        raise ValueError("no proper rate")
    return rate, seconds


def _read_route(data: Mapping[str, Any]) -> dict[str, str]:
    if "error" in data:
        return {"error": _take_plain(data, "error")}
    route = {name: take_text(data, name) for name in ("address", "peer_address", "interface")}
    if not is_address(route["address"]) or not is_address(route["peer_address"]):
        raise ValueError("no proper address")
    if route["interface"] and not is_interface(route["interface"]):
        raise ValueError("no proper interface")
    return route


def _read_finding(data: Any) -> Finding:
    if not isinstance(data, dict) or data.get("fault") not in ERRORS:
        raise ValueError("no proper findings")
    return Finding(
        name=_take_plain(data, "name"),
        ok=data.get("ok") is True,
        found=_take_plain(data, "found"),
        why=_take_plain(data, "why"),
        repair=_take_plain(data, "repair"),
        fault=data["fault"],
        applies=data.get("applies") is not False,
    )


def _take_plain(data: Mapping[str, Any], key: str) -> str:
    return escape_controls(take_text(data, key, 1 << 20), keep="\n")[:_LONGEST]
