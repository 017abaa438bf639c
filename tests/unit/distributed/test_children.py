"""What a process that is started as a run of its own gets of its parent."""

import socket

from bigft.distributed.children import find_free_port, leave_launcher


def test_a_child_is_no_rank_of_its_parent_s_run():
    given = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    given |= {"MASTER_ADDR": "a", "PATH": "p", "HF_HOME": "h"}
    assert leave_launcher(given) == {"PATH": "p", "HF_HOME": "h"}
    assert given["RANK"] == "1"


def test_a_free_port_can_be_listened_at():
    port = find_free_port()
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", port))
        one.listen()
        other.connect(("127.0.0.1", port))
        assert other.getpeername() == ("127.0.0.1", port)
