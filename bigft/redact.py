"""Keep secrets out of everything that is written down or shown.

Three kinds of knowledge: names that tell of a secret (`hub_token`, `api_key`), values that look
like one (`hf_...`, `https://user:password@host`), and values that are known to be one because such
a name held them (`remember_secrets`), which are then removed wherever they turn up.
"""

import io
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, TextIO
from urllib.parse import quote

HIDDEN = "***"

_ALWAYS = frozenset(
    "secret secrets password passwords passwd passphrase credential credentials apikey authtoken"
    " accesstoken authorization".split()
)
_KEYS = frozenset("api access private secret auth encryption signing".split())
# A token of text, not of access: `pad_token`, `decoder_start_token_id`, `per_token_loss`.
_BEFORE_TEXT_TOKEN = frozenset(
    "pad eos bos unk sep cls mask image audio video vision speech special added additional extra"
    " stop start end begin forced suppress per num max min last first next prev previous new each"
    " by memory mem eot eod fim prefix suffix middle sentinel tool think text word sub out".split()
)
_AFTER_TEXT_TOKEN = frozenset(
    "id ids index type types embedding embeddings count counts accuracy loss losses budget weight"
    " weights mean len length limit classification shift dim drop path file dir folder level mask"
    " classifier ratio rate pooling positions position merging url uri endpoint".split()
)
# A secret by its look. Tokens of the hub, of GitHub, GitLab, OpenAI and its like, Slack, AWS,
# Google; web tokens (their first part is JSON in base64, which begins with `{"`); headers.
# The look ahead has an end: a host may print megabytes of `sk-`.
_VALUES = re.compile(
    r"(?<![A-Za-z0-9])(?:hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}"
    r"|github_pat_[A-Za-z0-9_]{20,}|glpat-[A-Za-z0-9_-]{16,}"
    r"|sk-(?=[A-Za-z0-9_-]{0,100}[0-9])[A-Za-z0-9_-]{16,}|xox[abprs]-[A-Za-z0-9-]{10,}"
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[A-Za-z0-9_-]{30,}"
    r"|eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]*)"
)
_BEARER = re.compile(r"(?i)\b(bearer|basic)(\s+)[A-Za-z0-9._~+/=-]{16,}")
# `git@` is a name that everybody has.
# Whoever knows such a URL may write there.
_WEBHOOK = re.compile(
    r"(://hooks\.slack(?:-gov)?\.com/[a-z]+/|://(?:[a-z]+\.)?discord(?:app)?\.com/api/webhooks/"
    r"|://[A-Za-z0-9.-]{1,253}\.office\.com/webhook[a-z0-9]*/)[^\s\"'<>)]+"
)
_PRIVATE_KEY = re.compile(
    r"(-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----)(?:(?!-----).){1,20000}?(-----END|$)", re.DOTALL
)
# One slash where a URL was taken for a path.
_USER_INFO = re.compile(
    r"(?<![A-Za-z0-9+.-])([A-Za-z][A-Za-z0-9+.-]*://|https?:/)(?!git@)[^/\s\"'?#]+@"
)
_QUERY = re.compile(r"([?&])([A-Za-z0-9_.-]+)=([^&\s#\"']+)")
_QUERY_NAMES = frozenset(("x-amz-signature", "x-amz-security-token", "sig", "signature", "key"))
# name=value, "name": "value", name: value; the name is judged by `is_secret_name`.
_NAME = re.compile(r"(?<![A-Za-z0-9_.-])([A-Za-z_-][A-Za-z0-9_.-]*)([\"']?\s*[=:]\s*)")
_VALUE = re.compile(
    r"""(?P<quote>["'])(?P<quoted>(?:\\.|(?!(?P=quote))[^\\\n])*)(?P=quote)"""
    r"""|(?P<plain>[^\s"',;}\])]+)"""
)
_FLAG = re.compile(r"(?<!\S)(--?[A-Za-z][A-Za-z0-9_.-]*)(\s+)(?!-)(\S+)")
_PLAIN = frozenset(("", "none", "null", "true", "false", "auto", HIDDEN))
_MIN_KNOWN = 6
_MIN_LINE = 12

_known: frozenset[str] = frozenset()


def is_secret_name(name: str) -> bool:
    """Say whether a setting or variable of this name holds a secret.

    `hub_token`, `WANDB_API_KEY` and `db.password` do; `pad_token`, `max_tokens` and
    `HF_TOKEN_PATH` do not.
    """
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    words = [word for word in re.split(r"[^a-z0-9]+", spaced) if word]
    for place, word in enumerate(words):
        before = words[place - 1] if place else ""
        after = words[place + 1] if place + 1 < len(words) else ""
        if word in _ALWAYS and after not in _AFTER_TEXT_TOKEN:
            return True
        if word in ("key", "keys") and before in _KEYS:
            return True
        is_of_text = before in _BEFORE_TEXT_TOKEN or after in _AFTER_TEXT_TOKEN
        if word == "token" and not is_of_text:
            return True
    return False


def remember_secrets(settings: Mapping[str, object]) -> None:
    """Remember the values of all names that hold secrets, to remove them wherever they turn up.

    Args:
        settings: Name -> value: environment variables, flags.
    """
    global _known  # noqa: PLW0603 - what is secret is secret for the whole process
    found = {
        form
        for name, value in settings.items()
        if isinstance(value, str) and is_secret_name(name)
        for form in _find_forms(value)
        if _is_memorable(form)
    }
    _known = _known | found


def redact_text(text: str) -> str:
    """Return a text without the secrets in it."""
    # Longest first: one secret may be the beginning of another.
    for value in sorted(_known, key=len, reverse=True):
        if value in text:
            text = text.replace(value, HIDDEN)
    text = _VALUES.sub(HIDDEN, text)
    if "PRIVATE KEY-----" in text:
        text = _PRIVATE_KEY.sub(rf"\1{HIDDEN}\2", text)
    if ":/" in text:
        text = _WEBHOOK.sub(rf"\1{HIDDEN}", text)
        text = _USER_INFO.sub(rf"\1{HIDDEN}@", text)
        text = _QUERY.sub(_hide_query, text)
    text = _BEARER.sub(rf"\1\2{HIDDEN}", text)
    return _FLAG.sub(_hide_flag, "".join(_hide_pairs(text)))


def redact_value(value: Any, name: str = "") -> Any:
    """Return plain data (tables, lists, texts, numbers) without the secrets in it.

    Args:
        value: The data; not changed.
        name: Under which it stands.
    """
    if isinstance(value, Mapping):
        return {key: redact_value(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact_value(item, name) for item in value]
    if not isinstance(value, str):
        return value
    return HIDDEN if is_secret_name(name) and value.lower() not in _PLAIN else redact_text(value)


def redact_words(words: Sequence[str]) -> list[str]:
    """Return the words of a command line without the secrets in it."""
    redacted: list[str] = []
    is_secret = False
    for word in words:
        flag, equals, value = word.partition("=")
        is_flag = word.startswith("-")
        if is_secret and not is_flag:
            redacted.append(HIDDEN)
        elif is_flag and equals:
            redacted.append(f"{flag}={redact_value(value, flag)}")
        else:
            redacted.append(redact_text(word))
        is_secret = is_flag and not equals and is_secret_name(word)
    return redacted


def flag_values(words: Sequence[str]) -> dict[str, str]:
    """Return the flags of a command line by name, as far as their form tells."""
    values: dict[str, str] = {}
    for word, following in pairwise([*words, ""]):
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            values[name] = value if equals else following
    return values


class RedactedStream(io.TextIOBase):
    """A text stream that removes secrets from what is written to it."""

    def __init__(self, stream: TextIO) -> None:
        """Write to `stream`, which stays open."""
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text without the secrets in it; one that is cut in two is not recognised."""
        self._stream.write(redact_text(text))
        return len(text)

    def flush(self) -> None:
        """Flush the stream below."""
        self._stream.flush()

    def fileno(self) -> int:
        """Return the descriptor below; what is written to it is not redacted."""
        return self._stream.fileno()

    def isatty(self) -> bool:
        """Say whether the stream below is a terminal."""
        return self._stream.isatty()

    def writable(self) -> bool:
        """Say that it can be written to."""
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Encoding of the stream below."""
        return self._stream.encoding


def _find_forms(value: str) -> Iterator[str]:
    """Yield a secret as it may be written: line by line, in JSON, Python, a shell, a URL."""
    yield value
    yield json.dumps(value)[1:-1]
    yield json.dumps(value, ensure_ascii=False)[1:-1]
    yield repr(value)[1:-1]
    yield shlex.quote(value).strip("'")
    yield quote(value, safe="", errors="replace")
    # Output is read in lines. The frame of a key is none of its secrets.
    lines = value.splitlines()
    if len(lines) > 1:
        yield from (
            line.strip() for line in lines if len(line) >= _MIN_LINE and "-----" not in line
        )


def _is_memorable(value: str) -> bool:
    # Shorter ones, and words such as `true`, would take harmless text with them.
    return len(value) >= _MIN_KNOWN and value.lower() not in _PLAIN


def _hide_query(match: re.Match[str]) -> str:
    sign, name, value = match.groups()
    is_secret = name.lower() in _QUERY_NAMES or is_secret_name(name)
    return f"{sign}{name}={HIDDEN if is_secret else value}"


def _hide_pairs(text: str) -> Iterator[str]:
    position = 0
    while found := _NAME.search(text, position):
        yield text[position : found.end()]
        position = found.end()
        # The value of a name that tells of no secret may itself be such a pair: it is not skipped.
        value = _VALUE.match(text, position) if is_secret_name(found[1]) else None
        if value and _is_hidden(found[1], found[2], value):
            quote = value["quote"] or ""
            yield f"{quote}{HIDDEN}{quote}"
            position = value.end()
    yield text[position:]


def _is_hidden(name: str, link: str, value: re.Match[str]) -> bool:
    plain = value["plain"] if value["quote"] is None else value["quoted"]
    if plain.lower() in _PLAIN or plain.isdigit():
        return False
    # In prose `token:` is a word and a colon: what follows is a secret if it has a digit.
    is_prose = link.strip() == ":" and value["quote"] is None and name.isalpha()
    return not is_prose or any(character.isdigit() for character in plain)


def _hide_flag(match: re.Match[str]) -> str:
    flag, space, value = match.groups()
    return f"{flag}{space}{HIDDEN}" if is_secret_name(flag) and value not in _PLAIN else match[0]
