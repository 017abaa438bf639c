"""Who is called slow at writing, by times of the test."""

from bigft.checkpoint.pace import Pace, Written

MIB = 1 << 20


def save(pace: Pace, step: int, *seconds: float, sizes: tuple[int, ...] = ()) -> str | None:
    sizes = sizes or (80 * MIB,) * len(seconds)
    return pace.judge(step, [Written(s, n) for s, n in zip(seconds, sizes, strict=True)])


def test_a_rank_is_compared_with_the_others_from_the_first_save_on():
    pace = Pace(["w1", "w2", "w3"])
    text = save(pace, 10, 0.5, 0.4, 6.0)
    assert text is not None
    assert text.startswith("warning: rank 2 on host w3 took 6.0s to write its 80.00 MiB of step 10")
    assert "other ranks with as much to write took 0.5s" in text


def test_it_is_said_once_and_again_after_a_fast_save():
    pace = Pace(["w1", "w2"])
    assert save(pace, 10, 0.5, 6.0) is not None
    assert save(pace, 20, 0.5, 6.0) is None
    assert save(pace, 30, 0.5, 0.6) is None
    assert save(pace, 40, 0.5, 6.0) is not None


def test_who_has_more_to_write_is_not_slow():
    pace = Pace(["w1", "w1"])
    assert save(pace, 10, 30.0, 1.0, sizes=(3000 * MIB, 100 * MIB)) is None


def test_a_disk_that_all_share_is_compared_with_earlier_saves():
    pace = Pace(["w1", "w2"])
    for step in (10, 20, 30):
        assert save(pace, step, 1.0, 1.1) is None
    text = save(pace, 40, 9.0, 9.5)
    assert text is not None
    assert "rank 1 on host w2 took 9.5s" in text
    assert "the saves before took 1.1s" in text
    # Slow saves are no measure for those that follow.
    for step in (50, 60, 70, 80):
        assert save(pace, step, 9.0, 9.5) is None
    assert save(pace, 90, 1.0, 1.0) is None
    assert save(pace, 100, 9.0, 9.5) is not None


def test_little_is_never_slow():
    pace = Pace(["w1", "w2"])
    assert save(pace, 10, 0.01, 1.5) is None


def test_one_rank_has_only_itself_to_be_compared_with():
    pace = Pace(["w1"])
    assert [save(pace, step, 1.0) for step in range(4)] == [None] * 4
    assert save(pace, 5, 8.0) is not None
