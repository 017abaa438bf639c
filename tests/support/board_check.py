"""Rank code: messages from a thread while the main thread is in collectives."""

import threading

import torch

from bigft.distributed.board import open_board
from bigft.distributed.world import open_world


def exchange(rounds: int) -> str:
    """Post and read in a background thread; returns the last message of the other rank."""
    if not torch.distributed.is_initialized():
        open_world()
    rank = torch.distributed.get_rank()
    board = open_board("check")
    heard = []

    def talk() -> None:
        for number in range(rounds):
            board.post(f"{number}-{rank}", f"{rank}:{number}")
            heard.append(board.read(f"{number}-{1 - rank}", 60))

    thread = threading.Thread(target=talk)
    thread.start()
    for _ in range(rounds):
        torch.distributed.all_reduce(torch.ones(8))
    thread.join()
    assert len(heard) == rounds
    return str(heard[-1])
