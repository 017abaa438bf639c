"""What is printed."""

import json

from bigft.selftest.report import (
    AGREES,
    DIFFERS,
    FAILED,
    NOT_RUN,
    Outcome,
    explain,
    is_ok,
    render_json,
    render_table,
)

NUMBERS = {"loss": 2e-7, "norm": 3e-7, "rate": 0.0, "weights": 1e-5, "worst": "w"}
GOOD = Outcome("zero1/adamw/fp32/x1", AGREES, [], NUMBERS, 1.25)
BAD = Outcome("zero2/adamw/fp32/x1", DIFFERS, ["losses differ by 1.0e-01"], NUMBERS, 1.0)
BROKEN = Outcome("zero3/adamw/fp32/x1", FAILED, ["ended with exit code 1: no"])
ABSENT = Outcome("zero3_nvme/adamw/fp32/x1", NOT_RUN, ["libaio is missing; install it"])


def test_only_agreement_is_ok():
    assert is_ok([GOOD])
    assert is_ok([GOOD, ABSENT])
    assert not is_ok([GOOD, BAD])
    assert not is_ok([GOOD, BROKEN])
    assert not is_ok([ABSENT])
    assert not is_ok([])


def test_the_table_says_what_differs_and_what_was_not_run():
    lines = render_table([GOOD, BAD, BROKEN, ABSENT], 61.0, "2 ranks on cpu").splitlines()
    assert lines[0].split() == ["row", "loss", "norm", "weights", "time"]
    assert lines[1].split() == [GOOD.row, "2e-07", "3e-07", "1e-05", "1.2", "s", "agrees"]
    assert lines[3].split()[1:4] == ["-", "-", "-"]
    assert f"{BAD.row}: losses differ by 1.0e-01" in lines
    assert f"{BROKEN.row}: ended with exit code 1: no" in lines
    assert "not run, 1 rows: libaio is missing; install it" in lines
    assert lines[-1].startswith("1 agrees, 1 differs, 1 failed, 1 not run; 2 ranks on cpu, ")


def test_json_is_one_object():
    infinite = Outcome(BAD.row, DIFFERS, ["x"], {**NUMBERS, "loss": float("inf")})
    found = json.loads(
        render_json([GOOD, infinite, ABSENT], 12.34),
        parse_constant=lambda text: (_ for _ in ()).throw(ValueError(text)),
    )
    assert found["ok"] is False
    assert found["seconds"] == 12.3
    assert found["rows"][0]["difference"] == NUMBERS
    assert found["rows"][1]["difference"]["loss"] is None
    assert found["rows"][2] == {
        "row": ABSENT.row,
        "verdict": NOT_RUN,
        "problems": ABSENT.problems,
        "difference": None,
        "seconds": 0.0,
    }


def test_the_last_words_name_rows_and_the_repair():
    said = explain([GOOD, BAD, BROKEN, ABSENT])
    assert said.startswith(f"2 of 4 runs are not what plain torch does ({BAD.row}, {BROKEN.row}):")
    assert "constraints.txt" in said
    assert "no row could run" in explain([ABSENT])
