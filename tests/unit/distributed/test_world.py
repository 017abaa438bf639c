"""What the environment says of the process group."""

import pytest

from bigft.distributed.lookout.limits import Limits
from bigft.distributed.world import _find_limit
from bigft.errors import LaunchError


@pytest.mark.parametrize("text", ["", "0", "00", "-5", "1.5", "2h", "\u00b2", "\u0664"])
def test_a_time_limit_that_is_no_number_of_minutes_is_refused(monkeypatch, text):
    monkeypatch.setenv("DEEPSPEED_TIMEOUT", text)
    with pytest.raises(LaunchError, match=f"DEEPSPEED_TIMEOUT={text}: must be whole minutes"):
        _find_limit(Limits())


def test_the_environment_decides_on_the_time_limit(monkeypatch):
    monkeypatch.setenv("DEEPSPEED_TIMEOUT", "90")
    assert _find_limit(Limits()) == 5400
    monkeypatch.delenv("DEEPSPEED_TIMEOUT")
    assert _find_limit(Limits()) >= 7200
    assert _find_limit(Limits(slow=30_000)) > 30_000
