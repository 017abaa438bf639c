"""Bytes, counts and durations as text, and back; text as a terminal may have it."""

import re

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_SCALE = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SCALE |= {f"{prefix}i": 1024 ** (power + 1) for power, prefix in enumerate("KMGT")}


# What moves the cursor, rings, or turns the direction of text around; a tab does no harm.
_CONTROLS = re.compile(
    r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def format_bytes(count: float) -> str:
    """Format bytes with a binary unit: `1536` -> `"1.50 KiB"`."""
    power = 0
    while abs(count) >= 1024 and power < len(_BINARY) - 1:
        count /= 1024
        power += 1
    return f"{count:.0f} B" if power == 0 else f"{count:.2f} {_BINARY[power]}"


def parse_bytes(text: str) -> int:
    """Read `"5GB"` (decimal), `"5GiB"` (binary) or `"1024"` as bytes.

    Raises:
        ValueError: The text is not a size.
    """
    match = re.fullmatch(r"\s*([0-9.]+)\s*([KMGT]?i?)B?\s*", text, re.IGNORECASE)
    unit = match[2][:1].upper() + match[2][1:].lower() if match else ""
    if not match or unit not in _SCALE:
        raise ValueError(f"{text!r} is not a size; write it like 5GB or 512MiB")
    return int(float(match[1]) * _SCALE[unit])


def format_count(count: float) -> str:
    """Format a count with a decimal suffix: `7_620_000_000` -> `"7.62B"`."""
    for scale, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(count) >= scale:
            return f"{count / scale:.2f}{suffix}"
    return f"{count:.0f}"


def parse_count(text: str) -> int:
    """Read `"10B"` or `"250M"` as a count: billions and millions.

    Raises:
        ValueError: The text is not a count above 0.
    """
    scales = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMBT]?)\s*", text, re.IGNORECASE)
    if not match or float(match[1]) == 0:
        raise ValueError(f"{text!r} is not a count; write it like 10B or 250M")
    return int(float(match[1]) * scales[match[2].upper()])


def format_seconds(seconds: float) -> str:
    """Format a duration: `3725` -> `"1h02m"`, `65` -> `"1m05s"`, `2.5` -> `"2.5s"`."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    return f"{minutes // 60}h{minutes % 60:02d}m"


def escape_controls(text: str, keep: str = "") -> str:
    r"""Show control characters as text: a terminal obeys them, whoever has written them.

    A color sequence becomes `\x1b[31m`, a line break `\n`.

    Args:
        text: From anywhere.
        keep: Characters that stay, such as the line break.
    """
    return _CONTROLS.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()
