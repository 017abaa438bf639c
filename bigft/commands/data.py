"""Show what the tokenised data of a run look like."""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, TextIO

from bigft.config.request import Request
from bigft.data.describe import counts_tokens
from bigft.log import plain_console
from bigft.run.preview import PreviewSettings, resolve_preview

if TYPE_CHECKING:
    from bigft.data.preview import ExamplePreview, Preview, SourcePreview

_BAR = 40
"""Characters of the longest bar."""

_MAX_PIECE = 600
"""Characters to show of a stretch of text; the middle of a longer one is left out."""

_GREEN, _PLAIN = "\x1b[30;42m", "\x1b[0m"


def main(request: Request) -> None:
    """Tokenise, unless that was done before; count, decode, print."""
    settings = resolve_preview(request)

    from bigft.commands.parts.task import load_rows
    from bigft.data.open import open_all
    from bigft.data.preview import build_preview
    from bigft.models.facts import read_facts

    section, seed = settings.data, settings.trainer.seed
    facts = read_facts(settings.model)
    rows, tokenizer = load_rows(settings.task, settings.model, section, facts)
    opened = open_all(section, tokenizer, seed, plain_console().say, rows.lay_out)
    preview = build_preview(
        opened,
        section,
        tokenizer,
        seed=seed,
        num_examples=settings.examples,
        lay_out=rows.lay_out,
    )
    has_template = tokenizer.chat_template is not None
    if settings.as_json:
        text = render_json(preview, settings, has_template=has_template)
    else:
        colored = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        text = render(preview, settings, has_template=has_template, colored=colored)
    _write(sys.stdout, text)


def render_json(preview: "Preview", settings: PreviewSettings, *, has_template: bool) -> str:
    """Return the preview as one JSON object in a line."""
    values = {**preview.counts, **{k: v for k, v in asdict(preview).items() if k != "counts"}}
    chosen = settings.data.model_dump(
        include={"max_length", "packing", "overlong", "train_on"}, mode="json"
    )
    model = {"model": settings.model.name, "has_chat_template": has_template}
    return json.dumps({**values, **chosen, **model}) + "\n"


def render(
    preview: "Preview", settings: PreviewSettings, *, has_template: bool, colored: bool
) -> str:
    """Return the preview as text for people.

    Args:
        preview: What to show.
        settings: What it was made with.
        has_template: Whether the tokenizer has a chat template of its own.
        colored: Show supervised tokens on green; else between double brackets.
    """
    rows = [*_describe_reading(preview), *_describe_use(preview, settings)]
    lines = [f"{name:<14}{value}".rstrip() for name, value in rows]
    if preview.counts["conversations"] and not has_template:
        lines.append(f"{'note':<14}the tokenizer has no chat template; written as ChatML")
    lines += ["", *_draw_sources(preview), "", *_draw_lengths(preview)]
    for number, example in enumerate(preview.examples, 1):
        lines += ["", _describe_example(number, example, preview)]
        lines += [mark(example, colored=colored)]
    if preview.examples:
        lines += ["", _describe_marks(preview, colored=colored)]
    return "\n".join(lines) + "\n"


def mark(example: "ExamplePreview", *, colored: bool) -> str:
    """Return the text of an example with its supervised tokens shown."""
    shown, place = [], 0
    for start, end in example.spans:
        shown.append(_shorten(_escape(example.text[place:start])))
        piece = _shorten(_escape(example.text[start:end]))
        shown.append(_color(piece) if colored else f"⟦{piece}⟧")
        place = end
    shown.append(_shorten(_escape(example.text[place:])))
    return "".join(shown)


# What is counted.


def _describe_reading(preview: "Preview") -> Iterator[tuple[str, str]]:
    counts = preview.counts
    yield "format", counts["format"]
    yield "read", _count(counts["records"], "record")
    bad, silent = counts["bad_rows"], counts["unsupervised_rows"]
    yield "rejected", _join({"bad": bad, "with no token to learn": silent})
    for row in preview.rejected:
        yield "", f"{row.origin}: {row.reason}"
    yield "rows", f"{counts['rows']:,}"
    yield "tokens", f"{counts['tokens']:,}"
    terms = counts["terms"]
    share = f" tokens, {terms / max(counts['tokens'], 1):.1%}"
    yield counts["learns"], f"{terms:,}{share if counts_tokens(counts['learns']) else ''}"


def _describe_use(preview: "Preview", settings: PreviewSettings) -> Iterator[tuple[str, str]]:
    counts, section = preview.counts, settings.data
    became = {
        "truncated": counts["truncated_rows"],
        "split": counts["split_rows"],
        "pieces without a token to learn left out": counts["unsupervised_pieces"],
        "left out": counts["dropped_overlong"],
    }
    overlong = counts["overlong_rows"]
    over = f"{overlong:,} above {section.max_length:,} tokens"
    yield "overlong", f"{over}: {_join(became)}" if overlong else over
    equal, dropped = counts["duplicate_rows"], counts["dropped_duplicates"]
    yield "duplicates", f"{_count(equal, 'equal row')}, {_count(dropped, 'row')} left out"
    touched = {name.replace("_", " "): count for name, count in counts["touched"].items()}
    yield "cleaning", _join(touched)
    sides = {side: counts[f"{side}_rows"] for side in ("train", "eval", "test")}
    yield "split", ", ".join(f"{count:,} {side}" for side, count in sides.items())
    sequences = _count(counts["train_sequences"], "sequence")
    if section.packing == "none":
        yield "packing", f"none: {sequences}, each of one row and as long as it"
        return
    full = f"{counts['packing_utilisation']:.1%} full"
    yield "packing", f"{section.packing}: {sequences} of {section.max_length:,} tokens, {full}"


def _describe_example(number: int, example: "ExamplePreview", preview: "Preview") -> str:
    learned = f", {example.supervised_tokens:,} {_name_marked(preview)}"
    counts = f"{example.tokens:,} tokens{learned if _is_marking_tokens(preview) else ''}"
    return f"--- example {number} of {len(preview.examples)}: {example.source}, {counts}"


def _describe_marks(preview: "Preview", *, colored: bool) -> str:
    marks = f"{_GREEN}like this{_PLAIN}" if colored else "⟦like this⟧"
    if not _is_marking_tokens(preview):
        return f"what is learned of the text before it is shown {marks}"
    if preview.counts["learns"] == "hidden":
        return f"tokens of which some are hidden and learned each time are shown {marks}"
    return f"tokens that count in the loss are shown {marks}"


def _is_marking_tokens(preview: "Preview") -> bool:
    return counts_tokens(preview.counts["learns"])


def _name_marked(preview: "Preview") -> str:
    """Name what is counted of each row: of what is hidden in turns, all of it."""
    learns: str = preview.counts["learns"]
    return "may be hidden" if learns == "hidden" else learns


# Drawing.


def _draw_sources(preview: "Preview") -> Iterator[str]:
    marked = _name_marked(preview)
    head = ("source", "files", "rows", "tokens", marked, "epoch tokens", "epoch share")
    table = [head, *(_cells(source) for source in preview.sources)]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    for name, *numbers in table:
        cells = [f"{text:>{width}}" for text, width in zip(numbers, widths[1:], strict=True)]
        yield "  ".join([f"{name:<{widths[0]}}", *cells]).rstrip()


def _cells(source: "SourcePreview") -> tuple[str, ...]:
    weight = "" if source.weight is None else f":{source.weight:g}"
    is_trained = source.setting == "data"
    numbers = (len(source.files), source.rows, source.tokens, source.supervised_tokens)
    return (
        f"{source.name}{weight}" if is_trained else f"{source.name} (evaluation)",
        *(f"{number:,}" for number in numbers),
        f"{source.epoch_tokens:,}" if is_trained else "",
        f"{source.epoch_share:.1%}" if is_trained else "",
    )


def _draw_lengths(preview: "Preview") -> Iterator[str]:
    lengths = preview.lengths
    yield (
        f"tokens per row: {lengths.min:,} to {lengths.max:,}, median {lengths.median:,.0f},"
        f" mean {lengths.mean:,.1f}"
    )
    most = max(rows for _, _, rows in lengths.histogram)
    width = max(len(f"{last:,}") for _, last, _ in lengths.histogram)
    digits = max(len(f"{rows:,}") for _, _, rows in lengths.histogram)
    for first, last, rows in lengths.histogram:
        # A single row among many is still seen.
        bar = "#" * -(-rows * _BAR // most)
        yield f"  {first:>{width},} - {last:>{width},}  {rows:>{digits},}  {bar}".rstrip()


def _color(text: str) -> str:
    """Color line by line: a background over a line break fills the rest of the line."""
    lines = text.split("\n")
    # A supervised line break is nothing to see without a sign.
    signed = [f"{line}↵" for line in lines[:-1]] + lines[-1:]
    return "\n".join(f"{_GREEN}{line}{_PLAIN}" if line else "" for line in signed)


def _escape(text: str) -> str:
    """Spell out control characters: data must not steer the terminal."""
    return "".join(
        char if char in "\n\t" or char.isprintable() else _spell_out(char) for char in text
    )


def _spell_out(char: str) -> str:
    # White space and letters of other scripts that Python calls unprintable are harmless.
    is_control = ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0
    return char.encode("unicode_escape").decode("ascii") if is_control else char


def _shorten(text: str) -> str:
    left_out = len(text) - _MAX_PIECE
    if left_out <= 0:
        return text
    half = _MAX_PIECE // 2
    return f"{text[:half]} [... {left_out:,} characters ...] {text[-half:]}"


def _join(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count) or "none"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _write(stream: TextIO, text: str) -> None:
    """Write what the stream's encoding cannot say as escapes, instead of failing."""
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
