"""The loop and the reporter gather over ranks; here there is one."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process group of one."""
    if torch.distributed.is_initialized():
        yield
        return
    store = torch.distributed.FileStore(str(tmp_path_factory.mktemp("store") / "f"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
