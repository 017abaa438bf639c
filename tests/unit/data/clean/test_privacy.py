import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigft.data.clean.privacy import (
    MASKS,
    mask_card,
    mask_email,
    mask_example,
    mask_phone,
    passes_luhn,
)
from bigft.data.example import Conversation, PromptAnswer, Text

EMAILS = [
    "jane@example.com",
    "jane.doe+news@mail.example.co.uk",
    "JANE_DOE@EXAMPLE.ORG",
    "o'brien%x@sub-domain.example.museum",
    "j\u00f6rg@b\u00fccher.example",
    "\u7528\u6237@\u4f8b\u5b50.\u516c\u53f8",
    "1234@qq.com",
]
SENTENCES = [
    ("{}", "{}"),
    ("Write to {}.", "Write to {}."),
    ("<{}>", "<{}>"),
    ("mailto:{}?subject=x", "mailto:{}?subject=x"),
    ("({}, or call)", "({}, or call)"),
    ("**{}** and _{}_", "**{}** and _{}_"),
    ("a: {};b: {}", "a: {};b: {}"),
    ("'{}'", "'{}'"),
]
NO_EMAILS = [
    "@jane on the net",
    "user@localhost",
    "numpy @ 2.0, lodash@4.17.21, pkg@1.0.0-beta",
    "@app.route('/')\ndef f(): ...",
    "y = a@b.T + c @ d",
    "git clone git@github.com:owner/name.git",
    "scp me@host.example.org:/srv/file .",
    "https://jane@example.com/path",
    "postgres://user:secret@db.example.com/base",
    "icon@2x.png and icon@3x.jpeg",
    "5 apples @ 3.50 each",
    "an @ sign",
]
PHONES = [
    "+49 30 1234567",
    "+49 (0)30 123456",
    "+49-171-1234567",
    "+14155552671",
    "+1 (555) 123-4567",
    "+1-555-123-4567",
    "+44 20 7946 0958",
    "+33 6 12 34 56 78",
    "+86 138 0013 8000",
    "+7 912 345-67-89",
    "+353 1 234 5678",
    "+1(555)123-4567",
    "+376 312 345",
    "0049 30 1234567",
    "(555) 123-4567",
    "555-123-4567",
    "555.123.4567",
    "555 123 4567",
    "1-800-555-1234",
    "(030) 1234567",
    "030 1234567",
    "030/1234567",
    "0171-1234567",
    "0171 123 45 67",
    "06 12 34 56 78",
    "06.12.34.56.78",
    "020 7946 0958",
    "0412 345 678",
    "090-1234-5678",
    "+49\u00a030\u00a01234567",
]
ANNOUNCED = [
    ("Tel. 5551234", "Tel. [PHONE]"),
    ("Tel.: 01712345678, fax", "Tel.: [PHONE], fax"),
    ("phone: 555 1234", "phone: [PHONE]"),
    ("Phone number: 5551234567", "Phone number: [PHONE]"),
    ("FAX: (12) 345-6789", "FAX: (12) 345-6789"),
    ("Telephone no. 12 34 56 78", "Telephone no. [PHONE]"),
]
CARDS = [
    "4111111111111111",
    "4111 1111 1111 1111",
    "4111-1111-1111-1111",
    "5555555555554444",
    "2223003122003222",
    "378282246310005",
    "3782 822463 10005",
    "6011 1111 1111 1117",
    "30569309025904",
    "3530111333300000",
    "4222222222222",
    "6205500000000000004",
]
NUMBERS = [
    "2024-01-15",
    "15.01.2024",
    "01/15/2024",
    "05 12 2024",
    "2024-01-15 10:30:00",
    "2024-01-15T10:30:00+0100",
    "20240115103000",
    "from 1999-2024",
    "1990 1991 1992 1993 1994 1995",
    "192.168.100.1",
    "10.0.0.1:8080",
    "255.255.255.0/24",
    "2001:0db8:85a3:0000:0000:8a2e:0370:7334",
    "version 1.2.3",
    "v12.4.131",
    "torch==2.13.0",
    "$1,234,567.89",
    "1.234.567,89 EUR",
    "12 345 678",
    "10 000 000",
    "3.14159265358979",
    "0.123456789012",
    "-1234567.5",
    "+1234567.25",
    "1234567890123456",
    "12345678901234567890",
    "x = 1234567890",
    "1700000000000",
    "ISBN 978-3-16-148410-0",
    "978-0-306-40615-7",
    "ISBN 0-306-40615-2",
    "9780306406157",
    "978 0306 406157",
    "123-45-6789",
    "12345-6789",
    "550e8400-e29b-41d4-a716-446655440000",
    "41111111-1111-1111-1111-111111111111",
    "order A-1234-5678",
    "id_4111111111111111",
    "0.4111111111111111",
    "01 02 03 04 05 06 07 08",
    "001 002 003 004",
    "00000000 01 02 03 04 05 06 07",
    "1 2 3 4 5 6 7 8 9 10",
    "2 + 12345678 = 12345680",
    "52.520008, 13.404954",
    "4000 4010 4020 4030 4040 4050",
    "490154203237518",
    "SGVsbG8gMTIzNDU2Nzg5MA==",
    "0x1234567890",
    "1e-10 and 6.02214076e23",
    "phone: 2024-01-15",
    "iPhone: 12345678",
    "2 ** 32 = +4294967296",
    "+10011010010",
    "+28 1234 56789",
    "C++11 14 17 20 23 26",
    "555-1234",
    "room 12-34-56",
    "1:02:03:04",
    "12/34/5678/9012",
]


@pytest.mark.parametrize("email", EMAILS)
@pytest.mark.parametrize(("sentence", "masked"), SENTENCES)
def test_an_email_address_is_masked(email: str, sentence: str, masked: str) -> None:
    assert mask_email(sentence.replace("{}", email)) == masked.replace("{}", "[EMAIL]")


@pytest.mark.parametrize("text", NO_EMAILS)
def test_what_only_holds_an_at_sign_stays(text: str) -> None:
    assert mask_email(text) == text


@pytest.mark.parametrize("phone", PHONES)
def test_a_phone_number_is_masked(phone: str) -> None:
    for sentence in ("{}", "Call {}.", "call {}, please", "Reach us ({}) today", "a\n{}\nb"):
        assert mask_phone(sentence.format(phone)) == sentence.format("[PHONE]")


@pytest.mark.parametrize(("text", "masked"), ANNOUNCED)
def test_digits_that_are_announced_as_a_phone_number_are_masked(text: str, masked: str) -> None:
    assert mask_phone(text) == masked


def test_several_phone_numbers_in_a_row_are_masked() -> None:
    assert mask_phone("555-123-4567, 555-123-4568; +49 30 1234567") == "[PHONE], [PHONE]; [PHONE]"


@pytest.mark.parametrize("card", CARDS)
def test_a_card_number_is_masked(card: str) -> None:
    for sentence in ("{}", "Card {}, 12/26", "card:{}", "Jane,{},12/26", "{} 12/26", "({})"):
        assert mask_card(sentence.format(card)) == sentence.format("[CARD]")
    assert "PHONE" not in mask_phone(f"Card {card}, 12/26")


@pytest.mark.parametrize("card", CARDS)
def test_a_card_number_with_one_wrong_digit_stays(card: str) -> None:
    wrong = card[:-1] + str((int(card[-1]) + 1) % 10)
    assert mask_card(wrong) == wrong


@pytest.mark.parametrize("text", NUMBERS)
def test_other_numbers_stay(text: str) -> None:
    for sentence in ("{}", "It is {}.", "({}) and so on", "a\n{}\nb"):
        filled = sentence.format(text)
        assert mask_phone(mask_card(mask_email(filled))) == filled


def test_most_random_numbers_stay_and_no_short_one_is_taken_for_a_card() -> None:
    draw = random.Random(3)
    numbers = [str(draw.randrange(10**11, 10**19)) for _ in range(5000)]
    masked = sum("[" in mask_phone(mask_card(number)) for number in numbers)
    # A sixth or so begins like a card, and a tenth of these passes the Luhn check.
    assert masked / len(numbers) < 0.03
    short = [str(draw.randrange(10**11, 10**12)) for _ in range(500)]
    assert all(mask_card(number) == number for number in short)


@given(st.integers(0, 10**18).map(str))
def test_the_luhn_check_is_that_of_the_textbook(digits: str) -> None:
    doubled = [int(d) * 2 if n % 2 else int(d) for n, d in enumerate(digits[::-1])]
    assert passes_luhn(digits) == (sum(sum(map(int, str(d))) for d in doubled) % 10 == 0)


pieces = st.sampled_from(
    [*EMAILS, *PHONES, *CARDS, *NUMBERS, " ", "-", ".", "+", "/", ":", "a", "1", "0", "@", "\u0301"]
)
texts = st.lists(pieces, max_size=8).map("".join) | st.text("0123456789 -+.()/@ax:", max_size=60)


@given(texts)
def test_masking_again_changes_nothing(text: str) -> None:
    masked, found = mask_example(Text(text), MASKS)
    assert (masked != Text(text)) == bool(found)
    again, found = mask_example(masked, MASKS)
    assert again is masked
    assert not found


@given(texts)
def test_masking_changes_nothing_outside_of_the_placeholders(text: str) -> None:
    masked, _ = mask_example(Text(text), MASKS)
    assert isinstance(masked, Text)
    rest, place = masked.text, 0
    for piece in (
        rest.replace("[EMAIL]", "\0").replace("[PHONE]", "\0").replace("[CARD]", "\0").split("\0")
    ):
        place = text.index(piece, place) + len(piece)


def test_only_what_was_asked_for_is_masked_and_reported() -> None:
    text = "jane@example.com, 555-123-4567, 4111111111111111"
    assert mask_example(Text(text), ["card"]) == (Text(text[:-16] + "[CARD]"), {"card"})
    masked, found = mask_example(Text(text), ["phone", "email"])
    assert masked == Text("[EMAIL], [PHONE], 4111111111111111")
    assert found == {"phone", "email"}


def test_every_speaker_is_masked() -> None:
    assert mask_example(PromptAnswer("a@b.com", "c@d.org"), ["email"])[0] == PromptAnswer(
        "[EMAIL]", "[EMAIL]"
    )
    chat = Conversation(
        [
            {"role": "user", "content": "a@b.com"},
            {"role": "assistant", "content": "c@d.org", "reasoning_content": "e@f.net"},
        ]
    )
    masked = mask_example(chat, ["email"])[0]
    assert isinstance(masked, Conversation)
    assert "@" not in str(masked.messages)


@pytest.mark.parametrize(
    "text",
    ["a" * 50_000, "a." * 25_000 + "@", "1" * 50_000, "1 " * 25_000, "+1-" * 20_000, "0123 " * 9000]
    + ["a@" * 25_000, "(0" * 25_000, "tel: " * 9000, "://" * 9000 + "a@b.com"],
)
def test_hostile_texts_take_linear_time(text: str) -> None:
    start = time.perf_counter()
    mask_example(Text(text), MASKS)
    # Quadratic time would be minutes.
    assert time.perf_counter() - start < 5
