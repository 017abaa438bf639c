"""What a run says about its data."""

from collections.abc import Iterator, Mapping
from typing import Any


def describe_data(info: Mapping[str, Any], steps_per_epoch: int | None) -> Iterator[str]:
    """Describe the data of a run in a few lines.

    Args:
        info: What `bigft.data.open.describe` counted; of streamed data almost nothing.
        steps_per_epoch: None where nobody knows.
    """
    if steps_per_epoch is None:
        yield "data are tokenised while training; how long an epoch is, only its end will tell"
        return
    packed = ""
    if info["packing"] != "none":
        packed = f", packed {100 * info['packing_utilisation']:.0f}% full"
    yield (
        f"{info['rows']:,} rows, {info['tokens']:,} tokens ({_describe_terms(info)}), format"
        f" {info['format']}{packed}; {steps_per_epoch:,} steps per epoch"
    )
    losses = describe_losses(info)
    if losses:
        yield f"note: {losses}"


def _describe_terms(info: Mapping[str, Any]) -> str:
    if counts_tokens(info["learns"]):
        return f"{100 * info['terms'] / max(info['tokens'], 1):.0f}% {info['learns']}"
    return f"{info['terms']:,} {info['learns']}"


def counts_tokens(learns: str) -> bool:
    """Whether what is learned is some of the tokens, so that a share of them means something."""
    return learns not in ("labels", "numbers", "terms")


def describe_losses(info: Mapping[str, Any]) -> str:
    """Say what became of rows that are not trained on as they are; empty where all are."""
    counts = {
        "bad rows left out": info["bad_rows"],
        "rows with nothing to learn left out": info["unsupervised_rows"],
        "truncated to --max_length": info["truncated_rows"],
        "duplicates left out": info["dropped_duplicates"],
        "set apart for a test": info["test_rows"],
        **{name.replace("_", " "): count for name, count in info["touched"].items()},
    }
    return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
