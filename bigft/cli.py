"""The thin entry: Fire parses, then bigft acts.

Stock Fire runs a function first and rejects unknown flags afterwards, guesses types from the text
and lets the last of two equal flags win. So the words are put into one unambiguous form before
Fire sees them, Fire only builds a `Request`, and the command runs after every word was accepted.
"""

import io
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from importlib import import_module
from types import TracebackType

from bigft import __version__
from bigft.config.flags import to_path
from bigft.config.help import render_command, render_overview
from bigft.config.hints import suggest
from bigft.config.options import COMMANDS, options_of
from bigft.config.request import Request
from bigft.config.section import Section
from bigft.config.typed import fields_of, is_boolean
from bigft.distributed.starters import complete_environment
from bigft.errors import BigftError, ConfigError, raise_together
from bigft.redact import flag_values, redact_text, remember_secrets
from bigft.run.preview import PreviewSettings
from bigft.run.settings import Run
from bigft.units import escape_controls

_HELP = ("-h", "--help")
_TRUTH = ("true", "false")
_LINE = "\n"
_SETTINGS: Mapping[str, type[Section]] = {"data": PreviewSettings}
"""What a command takes instead of the settings of a whole run."""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse a command line and run its command; leaves with the exit code of the contract."""
    words = list(sys.argv[1:] if argv is None else argv)
    remember_secrets(os.environ)
    remember_secrets(flag_values(words))
    sys.excepthook = _show_bug
    with report_errors():
        words = _without_local_rank(words)
        page = _find_page(words)
        if page is not None:
            sys.stdout.write(page)
            return
        if words[:1] == ["train"]:
            complete_environment(os.environ)
        request = parse(words)
        import_module(f"bigft.commands.{request.command}").main(request)


def parse(words: Sequence[str]) -> Request:
    """Turn the words of a command line into a `Request`; nothing is executed.

    Raises:
        ConfigError: The command is unknown, a word is out of place, or a flag is repeated.
    """
    if not words:
        raise ConfigError(f"no command; choose one of {', '.join(COMMANDS)} (`bigft --help`)")
    name, *rest = words
    if name not in COMMANDS:
        near = suggest(name, COMMANDS) or f"; choose one of {', '.join(COMMANDS)}"
        raise ConfigError(f"{name}: no such command{near}")
    rest, behind = _split_rest(name, rest)
    problems: list[str] = []
    positional, flags = _read_words(name, rest, problems)
    _check_positional(name, positional, problems)
    flags = _join_repeatable(name, flags)
    _check_repeated(flags, problems)
    if problems:
        raise_together(ConfigError, problems)
    request = _parse_with_fire(name, positional, flags, tuple(words))
    return replace(request, inner=parse(behind) if behind else None)


@contextmanager
def report_errors() -> Iterator[None]:
    """Show a user's mistake as text, on rank 0 only, and leave with its exit code."""
    try:
        yield
    except BigftError as error:
        if _is_rank_zero() or error.is_local:
            speaker = "bigft" if _is_rank_zero() else f"bigft, rank {os.environ['RANK']}"
            # It may name what somebody else has written: a host, a file.
            _say(redact_text(f"{speaker}: {escape_controls(str(error), keep=_LINE)}\n"))
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        if _is_rank_zero():
            _say("bigft: interrupted\n")
        raise SystemExit(130) from None
    except BrokenPipeError:
        # The reader of a pipe (`| head`) left. Python would complain again while it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None


def _say(text: str) -> None:
    # It may lead to a disk that is full, or to a reader that has gone: the exit code stays right.
    with suppress(OSError):
        sys.stderr.write(text)
        sys.stderr.flush()


def _is_rank_zero() -> bool:
    # Asked when there is something to say: at first a starter's own words stand there.
    return os.environ.get("RANK", "0") == "0"


def _show_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Show what Python shows of an exception that nobody handles, without secrets."""
    sys.stderr.write(redact_text("".join(traceback.format_exception(kind, error, trace))))


def _without_local_rank(words: Sequence[str]) -> list[str]:
    """Drop what the deepspeed launcher adds; the rank is in the environment."""
    kept: list[str] = []
    is_value = False
    for word in words:
        if is_value and word.isdigit():
            is_value = False
            continue
        is_value = word in ("--local_rank", "--local-rank")
        if not is_value and not word.startswith(("--local_rank=", "--local-rank=")):
            kept.append(word)
    return kept


def _split_rest(command: str, words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate the command line behind `--` from that of a command that starts others."""
    if not COMMANDS[command].takes_rest or "--" not in words:
        return list(words), []
    place = list(words).index("--")
    return list(words[:place]), list(words[place + 1 :])


def _find_page(words: Sequence[str]) -> str | None:
    """Return the text of a help or version request, else None."""
    if "--version" in words[:1]:
        return f"bigft {__version__}\n"
    if not any(word in _HELP for word in words) and words[:1] != ["help"]:
        return None
    verb = next((word for word in words if word in COMMANDS), None)
    return render_command(verb, _SETTINGS.get(verb, Run)) if verb else render_overview(__version__)


def _read_words(
    command: str, words: Sequence[str], problems: list[str]
) -> tuple[list[str], list[tuple[str, str]]]:
    """Split words into positional ones and (flag, text) pairs.

    A switch takes the next word only when that is `true` or `false`, so that `--json RUN` means
    what it says.
    """
    options, own = COMMANDS[command].options, COMMANDS[command].own
    fields = [*options_of(options)] if options else [*fields_of(_SETTINGS.get(command, Run))]
    fields += fields_of(own or Section)
    switches = {path for path, info in fields if is_boolean(info)} | {"dry_run"}
    positional: list[str] = []
    flags: list[tuple[str, str]] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-") or _is_number(word):
            positional.append(word)
        elif not word.startswith("--") or word == "--":
            problems.append(f"{word}: flags are written --name value")
        else:
            name, equals, text = word[2:].partition("=")
            name = name.replace("-", "_")
            is_switch = to_path(name) in switches
            follows = bool(rest) and (not rest[0].startswith("--"))
            if equals:
                flags.append((name, text))
            elif is_switch:
                is_given = follows and rest[0].lower() in _TRUTH
                flags.append((name, rest.pop(0).lower() if is_given else "true"))
            elif follows:
                flags.append((name, rest.pop(0)))
            else:
                near = suggest(name, switches, prefix="--")
                problems.append(f"--{name}: a value must follow, as in --{name} VALUE{near}")
    return positional, flags


def _is_number(word: str) -> bool:
    return word.lstrip("-").replace(".", "", 1).isdigit()


def _check_positional(command: str, words: Sequence[str], problems: list[str]) -> None:
    spec = COMMANDS[command]
    allowed = 1 if spec.word else 0
    if spec.takes_rest and (inner := [word for word in words if word in COMMANDS]):
        problems.append(
            f"{inner[0]}: write it behind --, as in `bigft {command} -- {inner[0]} ...`"
        )
        return
    problems += [
        f"{word}: nothing was expected here (a flag is written --name value)"
        for word in words[allowed:]
    ]
    if spec.word and spec.is_word_required and not words:
        problems.append(f"{spec.word}: required, not given: `bigft {command} {spec.word}`")


def _join_repeatable(command: str, flags: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Make one flag of those that a command takes several times."""
    joined: list[tuple[str, str]] = []
    for name in sorted(COMMANDS[command].repeatable):
        texts = [text for flag, text in flags if flag == name]
        if texts:
            joined.append((name, ";".join(texts)))
    return [*(flag for flag in flags if flag[0] not in COMMANDS[command].repeatable), *joined]


def _check_repeated(flags: Sequence[tuple[str, str]], problems: list[str]) -> None:
    seen: dict[str, tuple[str, str]] = {}
    for name, text in flags:
        path = to_path(name)
        if path in seen:
            first, value = seen[path]
            problems.append(f"given twice: --{first}={value} and --{name}={text}. Drop one of them")
        seen.setdefault(path, (name, text))


def _parse_with_fire(
    command: str,
    positional: Sequence[str],
    flags: Sequence[tuple[str, str]],
    argv: tuple[str, ...],
) -> Request:
    # Imported here: `--help` and a misspelt command do not need it (0.05 s).
    import fire
    from fire.decorators import SetParseFn

    requests: list[Request] = []

    def verb_of(verb: str) -> Callable[..., None]:
        def build(*words: str, config: str = "", recipe: str = "", **settings: str) -> None:
            requests.append(Request(verb, words, settings, config, recipe, argv=argv))

        # `str` keeps text as text: Fire would read `--revision 1234e56` as a number.
        parsed: Callable[..., None] = SetParseFn(str)(build)
        return parsed

    table = {verb: verb_of(verb) for verb in COMMANDS}
    line = [command, *positional, *(f"--{name}={text}" for name, text in flags)]
    complaint = io.StringIO()
    try:
        with redirect_stderr(complaint), redirect_stdout(complaint):
            fire.Fire(table, command=line, name="bigft", serialize=lambda _: "")
    except SystemExit:
        pass
    if len(requests) != 1:
        said = " ".join(complaint.getvalue().split())
        raise ConfigError(f"cannot read the command line: {said}")
    return requests[0]
