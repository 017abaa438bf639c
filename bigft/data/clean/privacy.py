"""E-mail addresses, phone numbers and payment card numbers, replaced by placeholders.

Found is what is written as such a thing is written. A bare run of digits is no phone number and a
number that fails its check digit is no card: years, dates, prices, ids, versions, IP addresses and
ISBNs are far more frequent in training data, and a model learns from them. What is written in
words, or split by other signs, is not found, and neither are names and addresses.
"""

import re
from collections.abc import Callable, Iterable

from bigft.data.clean.parts import map_texts
from bigft.data.example import Example

_LETTER = r"[^\W\d_]"
_WORD = r"[^\W_]"
# Lengths are bounded as in RFC 5321, so that the search takes linear time.
_EMAIL = re.compile(
    rf"(?<!{_WORD}){_WORD}[\w.+%'-]{{0,63}}@"
    rf"(?:{_WORD}(?:[\w-]{{0,61}}{_WORD})?\.){{1,8}}(?P<ending>{_LETTER}{{2,24}})(?!{_WORD})"
)
# `icon@2x.png` is a picture for a fine screen. None of these is a top-level domain.
_FILE_ENDINGS = frozenset(("png", "jpg", "jpeg", "gif", "svg", "webp", "css", "html", "json"))
_URL_LOGIN = re.compile(r"://[^\s/@]*\Z")
_SSH_PATH = re.compile(r":[\w.~-]*/(?!/)")

# Space, no-break space, hyphen, no-break hyphen, dot, slash.
_GAP = "[ \u00a0\u2011./-]"
_GROUP_GAP = "[ \u00a0\u2011-]"
# Assigned country codes (ITU-T E.164, list of 2016), and area codes behind the 1 of North America.
_COUNTRY = (
    r"(?:1(?=[^0-9]{0,2}[2-9])|7|2(?:[07]|1[1-368]|[2346][0-9]|5[0-8]|9[0-1789])"
    r"|3(?:[0-469]|5[0-9]|7[0-8]|8[0-35-79])|4(?:[013-9]|2[013])|5(?:[1-8]|[09][0-9])"
    r"|6(?:[0-6]|7[02-9]|8[0-35-9]|9[0-2])|8(?:[1246]|0[08]|5[02356]|7[08]|8[0-368])"
    r"|9(?:[0-58]|6[0-8]|7[0-79]|9[2-68]))"
)
# A number that goes on to either side is another kind of number.
_START = r"(?<![\w+])(?<![0-9][./,:\u2011-])"
_END = r"(?!(?!x[0-9])\w|[./,:\u2011-][0-9])"
_PHONES = tuple(
    re.compile(_START + pattern + _END, re.IGNORECASE)
    for pattern in (
        # International: +49 (0)30 123456, +1-555-123-4567, 0049 30 123456.
        rf"(?P<number>(?:\+{_COUNTRY}|00{_COUNTRY}(?={_GAP}(?!00)))"
        rf"(?:{_GAP}?(?:\([0-9]{{1,4}}\)|[0-9])){{6,14}})",
        # North American: (555) 123-4567, 555-123-4567, 1 555 123 4567.
        rf"(?P<number>(?:1{_GROUP_GAP})?\([2-9][0-9]{{2}}\)[ \u00a0]?[0-9]{{3}}{_GAP}[0-9]{{4}}"
        r"|(?:1[ .-])?[2-9][0-9]{2}(?P<gap>[ .\u2011-])[0-9]{3}(?P=gap)[0-9]{4})",
        # National with a leading zero: 030 1234567, (0171) 123 45 67, 06 12 34 56 78. More pairs
        # than that are a list.
        rf"(?<![0-9] )(?P<number>(?:\(0[1-9][0-9]{{0,4}}\)[ \u00a0]?|0[1-9][0-9]{{0,3}}{_GAP})"
        r"[0-9]{2,8}(?:(?P<gap>[ \u00a0.\u2011-])[0-9]{2,4}(?:(?P=gap)[0-9]{2,4}){0,2})?)"
        r"(?! [0-9]{2}(?![0-9]))",
        # Any digits behind a word that announces them: Tel. 5551234, phone: 555 1234.
        r"(?:(?:telephone|telefon|(?:cell)?phone|mobile|mobil|cell|fax|whatsapp|tel)"
        r"(?: ?(?:no|nr|number))?(?:\.:|[.:#]) ?)"
        r"(?P<number>[0-9](?:[ .()/-]{0,2}[0-9]){6,14})",
    )
)
_SEVEN_DIGITS = re.compile(r"[0-9](?:[^\w\n]{0,3}[0-9]){6}")
_DATE = re.compile(r"(?:[0-9]{1,2}([./-])[0-9]{1,2}\1)?(?:19|20)[0-9]{2}(?:[./-][0-9]{1,2}){0,2}\Z")
_IP_ADDRESS = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}\Z")
_DECIMAL = re.compile(r"\+?[0-9]+\.[0-9]+(?: |\Z)")

_CARD = re.compile(
    r"(?<!\w)(?<![0-9][.\u2011-])(?:[0-9]{13,19}"
    rf"|[0-9]{{4}}(?P<gap>{_GROUP_GAP})[0-9]{{4}}(?P=gap)[0-9]{{4}}(?P=gap)[0-9]{{1,4}}"
    r"(?P<more>(?P=gap)[0-9]{1,3})?(?!(?P=gap)[0-9]{4}(?![0-9]))"
    rf"|[0-9]{{4}}(?P<wide>{_GROUP_GAP})[0-9]{{6}}(?P=wide)[0-9]{{4,5}})(?!\w|[.\u2011-][0-9])"
)
# First digits and lengths that networks issue (ISO/IEC 7812): Visa; Mastercard; American Express;
# Diners Club; Discover and UnionPay; Maestro; JCB. The Luhn check alone lets a tenth of all numbers
# pass.
_ISSUED = re.compile(
    r"4(?:[0-9]{12}|[0-9]{15}|[0-9]{18})\Z"
    r"|(?:5[1-5][0-9]{2}|222[1-9]|22[3-9][0-9]|2[3-6][0-9]{2}|27[01][0-9]|2720)[0-9]{12}\Z"
    r"|3[47][0-9]{13}\Z"
    r"|(?:30[0-5]|36[0-9]|3[89][0-9])[0-9]{11}\Z"
    r"|(?:6011|64[4-9][0-9]|65[0-9]{2}|62[0-9]{2})[0-9]{12,15}\Z"
    r"|(?:5018|5020|5038|5893|6304|6759|676[1-3])[0-9]{12,15}\Z"
    r"|35(?:2[89]|[3-8][0-9])[0-9]{12}\Z"
)


def mask_email(text: str) -> str:
    """Replace e-mail addresses by `[EMAIL]`; logins within URLs and SSH addresses stay."""
    return _EMAIL.sub(_mask_one_email, text) if "@" in text else text


def mask_phone(text: str) -> str:
    """Replace phone numbers by `[PHONE]`."""
    if _SEVEN_DIGITS.search(text) is None:
        return text
    for pattern in _PHONES:
        text = pattern.sub(_mask_one_phone, text)
    return text


def mask_card(text: str) -> str:
    """Replace numbers of payment cards, which pass the check of Luhn (1960), by `[CARD]`."""
    if _SEVEN_DIGITS.search(text) is None:
        return text
    return _CARD.sub(_mask_one_card, text)


MASKS: dict[str, Callable[[str], str]] = {
    "email": mask_email,
    "card": mask_card,
    "phone": mask_phone,
}
"""By the names of `data.clean.mask`, in the order of application."""


def mask_example(example: Example, kinds: Iterable[str]) -> tuple[Example, set[str]]:
    """Mask all texts of an example until nothing more is found.

    A placeholder can uncover a number beside it, so that one pass would leave something over.

    Returns:
        The masked example, the same object when nothing was found; and the kinds found.
    """
    chosen = [kind for kind in MASKS if kind in set(kinds)]
    found: set[str] = set()
    while True:
        before = example
        for kind in chosen:
            masked = map_texts(example, MASKS[kind])
            if masked is not example:
                found.add(kind)
            example = masked
        if example is before:
            return example, found


def passes_luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812-1, annex B)."""
    total = 0
    for place, character in enumerate(reversed(digits)):
        digit = int(character) << (place & 1)
        total += digit - 9 if digit > 9 else digit  # noqa: PLR2004
    return total % 10 == 0


def _mask_one_email(match: re.Match[str]) -> str:
    text, found = match.string, match[0]
    # `git@host.org:name/project` and `me@host.org:/folder` are places that SSH reaches.
    is_ssh = found.startswith("git@") or _SSH_PATH.match(text, match.end()) is not None
    is_login = _URL_LOGIN.search(text, max(0, match.start() - 64), match.start()) is not None
    is_file = match["ending"].lower() in _FILE_ENDINGS
    return found if is_ssh or is_login or is_file else "[EMAIL]"


def _mask_one_phone(match: re.Match[str]) -> str:
    number = match["number"]
    count = sum(character.isdigit() for character in number)
    is_announced = match.start("number") > match.start()
    is_other = any(kind.match(number) for kind in (_DATE, _IP_ADDRESS, _DECIMAL))
    # 15 digits at most by ITU-T E.164; fewer than 9 are too like other numbers.
    if is_other or not (7 if is_announced else 9) <= count <= 15:  # noqa: PLR2004
        return match[0]
    return match[0][: match.start("number") - match.start()] + "[PHONE]"


def _mask_one_card(match: re.Match[str]) -> str:
    number, more = match[0], match["more"] or ""
    if _is_card(number):
        return "[CARD]"
    # A fifth group may be something else: the month of expiry, or the security code.
    shorter = number[: len(number) - len(more)]
    return f"[CARD]{more}" if more and _is_card(shorter) else number


def _is_card(number: str) -> bool:
    digits = "".join(filter(str.isdigit, number))
    return _ISSUED.match(digits) is not None and passes_luhn(digits)
