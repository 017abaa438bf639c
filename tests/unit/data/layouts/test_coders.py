"""Labels as integers, and back."""

import numpy as np
import pytest

from bigft.data.layouts.coders import ManyClasses, OneClass, Values, name_class


def test_one_class_is_its_number():
    coder = OneClass(["no", "yes"])
    assert coder.encode("yes").tolist() == [1]
    assert coder.decode(coder.encode("no")) == "no"
    assert OneClass(["1", "0"]).encode(0).tolist() == [1]


def test_many_classes_are_a_row_of_zeros_and_ones():
    coder = ManyClasses(["a", "b", "c"])
    assert coder.encode(["c", "a"]).tolist() == [1, 0, 1]
    assert coder.encode([]).tolist() == [0, 0, 0]
    assert coder.encode("b").tolist() == [0, 1, 0]
    assert coder.decode(np.array([0, 1, 1])) == "b, c"
    assert coder.decode(np.array([0, 0, 0])) == "none"


@pytest.mark.parametrize("value", [0.1, -3.25e-20, 7, 1e30])
def test_values_keep_every_bit_of_fp32(value):
    bits = Values(1).encode(value)
    assert bits.dtype == np.int32
    assert bits.view(np.float32)[0] == np.float32(value)


@pytest.mark.parametrize(("label", "name"), [(1, "1"), (1.0, "1"), ("1", "1"), (" x ", "x")])
def test_a_class_has_one_name(label, name):
    assert name_class(label) == name


@pytest.mark.parametrize(
    ("coder", "label", "words"),
    [
        (OneClass(["yes", "no"]), "yess", r"'yess' is none of the 2 classes \(yes, no\).*yes"),
        (OneClass(["yes", "no"]), ["yes"], "is a list"),
        (ManyClasses(["a"]), ["a", "z"], "'z' is none of the 1 classes"),
        (Values(1), "tall", "has to be a number"),
        (Values(2), [1.0], "has 1 numbers, that of the first row 2"),
        (Values(1), 1e39, "finite 32-bit number"),
        (OneClass([str(n) for n in range(40)]), 40, "and 30 more"),
    ],
)
def test_what_is_no_such_label_is_said(coder, label, words):
    with pytest.raises(ValueError, match=words), np.errstate(over="ignore"):
        coder.encode(label)


def test_descriptions_tell_labels_apart():
    coders = [OneClass(["a", "b"]), OneClass(["b", "a"]), ManyClasses(["a", "b"]), Values(2)]
    assert len({coder.describe() for coder in coders}) == 4
