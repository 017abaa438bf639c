"""Which of a host's GPUs concern a run."""

from pathlib import Path

import pytest

from bigft.doctor.gpu import _keep_used
from bigft.doctor.need import Need
from bigft.doctor.wanted import Wanted

DEVICES = [[str(index), "A100", "550", "40960", "40000"] for index in range(4)]


@pytest.mark.parametrize(
    ("chosen", "ranks", "used"),
    [
        (None, 1, ["0"]),
        (None, 4, ["0", "1", "2", "3"]),
        ("2,3", 2, ["2", "3"]),
        ("3", 1, ["3"]),
        ("GPU-8f2a", 4, ["0", "1", "2", "3"]),
    ],
)
def test_a_busy_gpu_of_another_job_is_not_looked_at(chosen, ranks, used):
    wanted = Wanted(
        ranks=ranks,
        device="cuda",
        output_dir=Path("runs"),
        cache_dir=Path("cache"),
        need=Need(),
        environ={} if chosen is None else {"CUDA_VISIBLE_DEVICES": chosen},
    )
    assert [device[0] for device in _keep_used(DEVICES, wanted)] == used
