"""Master weights that stock DeepSpeed left in copies of its NVMe swap files.

With `offload_optimizer.device: nvme` DeepSpeed saves empty tensors in place of the fp32 groups and
copies its swap folder into the checkpoint:

    <tag>/offloaded_tensors/rank00/<ds_id>.tensor.swp            a group's master weights
    <tag>/offloaded_tensors/rank00/exp_avg-<ds_id>.tensor.swp    its moments, not needed here

The empty tensor still carries its attribute `ds_id`. A file holds the group's elements from byte 0
on and is padded to whole blocks. Groups below 1 MiB are never swapped; they are ordinary tensors.
"""

import re
from pathlib import Path

from bigft.errors import CheckpointError
from bigft.files.paths import find_escape
from bigft.files.torch_file import ITEM_BYTES, TensorRef

# First and last parameter of the group; nothing that could leave the folder.
_LABEL = re.compile(r"[0-9]+_[0-9]+")


def find_swapped(folder: Path, rank: int, group: TensorRef, numel: int) -> TensorRef:
    """Find the swap file of one rank's group.

    Args:
        folder: The checkpoint's folder.
        rank: Who wrote it.
        group: What was saved in its place: an empty tensor of the right format.
        numel: Elements of the group on this rank.

    Raises:
        CheckpointError: There is no such file, or it is too short.
    """
    if not _LABEL.fullmatch(group.label):
        raise CheckpointError(
            f"{group.path}: the fp32 groups are empty and do not name their swap files; DeepSpeed"
            " left the weights on NVMe. Save a checkpoint with the optimizer in host memory"
        )
    swap = folder / "offloaded_tensors" / f"rank{rank:02d}" / f"{group.label}.tensor.swp"
    if not swap.is_file() or find_escape(swap, folder):
        raise CheckpointError(
            f"{swap}: missing; with NVMe offload DeepSpeed leaves the weights in copies of its"
            " swap files. Copy the folder offloaded_tensors/ from the host that wrote it"
        )
    size, wanted = swap.stat().st_size, numel * ITEM_BYTES[group.dtype]
    if size < wanted:
        raise CheckpointError(
            f"{swap}: has {size:,} bytes, its group needs {wanted:,}; the disk was full or the"
            " file was cut off. Use another checkpoint"
        )
    return TensorRef(swap, 0, group.dtype, (numel,), (1,))
