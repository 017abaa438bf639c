"""Notes that outlive their process, whole whenever they are read."""

import os
import signal
import time

from bigft.distributed.place import HERE, Place, describe_place, read_place


def test_the_last_note_of_a_killed_process_is_whole():
    place = Place()
    fd = place.share()
    pid = os.fork()
    if pid == 0:
        number = 0
        while True:
            number += 1
            place.note(phase="x" * (number % 50), step=number, total_steps=number)
    time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    facts = read_place(fd)
    assert facts["step"] > 100
    assert (facts["total_steps"], len(facts["phase"])) == (facts["step"], facts["step"] % 50)


def test_what_is_too_long_leaves_the_note_before():
    place = Place()
    place.share()
    place.note(step=1)
    place.note(folder="x" * 5000)
    assert read_place(place.fd)["step"] == 1
    assert "folder" not in read_place(place.fd)
    place.note(folder=None, step=2)
    assert read_place(place.fd)["step"] == 2


def test_nothing_is_read_from_nothing(tmp_path):
    file = tmp_path / "empty"
    file.touch()
    fd = os.open(file, os.O_RDONLY)
    assert read_place(fd) == {}
    os.close(fd)
    assert read_place(fd) == {}


def test_words():
    assert describe_place({"phase": "loading the model"}) == "while loading the model"
    facts = {"phase": "backward", "step": 3, "total_steps": 9}
    assert describe_place(facts) == "in step 3 of 9 (backward)"
    assert HERE.facts["phase"]
