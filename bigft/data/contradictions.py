"""Settings of the data that cannot be what was meant, found before any row is read."""

from collections.abc import Iterator

from bigft.data.section import DataSection
from bigft.errors import BigftError

_CHANGES = ("delete", "swap", "synonyms")


def find_contradictions(section: DataSection) -> Iterator[str]:
    """Find settings that contradict each other, or name what does not exist, ready to be shown.

    Files are not looked at: a missing one is an error of the data, not of the settings.
    """
    yield from _check_shares(section)
    yield from _check_lengths(section)
    yield from _check_copies(section)
    yield from _check_names(section)


def _check_shares(section: DataSection) -> Iterator[str]:
    test = section.clean.test_fraction
    held_out = section.eval_fraction if section.eval is None else 0.0
    if held_out + test >= 1:
        yield (
            f"--data.eval_fraction {held_out:g} and --data.clean.test_fraction {test:g} leave"
            " nothing to train on; their sum has to be below 1"
        )


def _check_lengths(section: DataSection) -> Iterator[str]:
    least, most = section.clean.min_tokens, section.clean.max_tokens
    if most is not None and least > most:
        yield (
            f"--data.clean.min_tokens {least} is above --data.clean.max_tokens {most}: no row is"
            " both; raise the one or lower the other"
        )


def _check_copies(section: DataSection) -> Iterator[str]:
    augment = section.clean.augment
    given = [f"--data.clean.augment.{name}" for name in _CHANGES if getattr(augment, name)]
    if given and augment.copies == 0:
        yield (
            f"{' and '.join(given)}: only copies are changed, and --data.clean.augment.copies is 0;"
            " set that to 1 or more, or leave this out"
        )
    if augment.copies and augment.synonyms is None:
        from bigft.data.clean.augment import find_change

        yield from find_change(augment)[1]


def _check_names(section: DataSection) -> Iterator[str]:
    """Look up what is spelled freely: the format, the columns and the regular expressions."""
    # What judges them imports numpy, and settings are mostly resolved without these.
    if section.format != "auto" or section.columns:
        from bigft.data.formats.table import Recognizer

        try:
            Recognizer(section.format, section.columns)
        except BigftError as error:
            yield str(error)
    names = section.loading.names or []
    if len(set(names)) < len(names):
        yield f"--data.loading.names {','.join(names)}: a name stands twice; give each part its own"
    if section.clean.keep_pattern is not None or section.clean.drop_pattern is not None:
        from bigft.data.clean.build import compile_patterns

        yield from compile_patterns(section.clean)[1]
