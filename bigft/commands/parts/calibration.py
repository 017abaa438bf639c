"""Text through a model that is to become smaller, to see which parts of it matter."""

from pathlib import Path
from typing import Any

from bigft.config.options import CompressOptions
from bigft.data.section import DataSection
from bigft.errors import DataError
from bigft.run.settings import Run


def load_for_text(folder: Path, options: CompressOptions, reading: DataSection) -> tuple[Any, Any]:
    """Load a model, and token ids of text for it.

    The rows of the data are taken at even distances from the whole of it, laid end to end, and cut
    into sequences of one length: nothing is padded.

    Args:
        folder: Of the model.
        options: Of the command.
        reading: How rows are read.

    Returns:
        The model in evaluation mode, and ids `(sequences, length)` on its device.

    Raises:
        DataError: The data are missing or bad.
    """
    import torch

    from bigft.data.build import build_evaluation
    from bigft.data.loading.loader import Share
    from bigft.evaluation.plain import load_plain, pick_device

    device = pick_device(options.device)
    model, tokenizer = load_plain(str(folder), device)
    own = options.calibration.calibration_data
    data, flag = own or options.data or Run().data.train, "--calibration_data" if own else "--data"
    section = reading.model_copy(
        update={"train": data, "max_length": options.max_length, "packing": "none"}
    )
    loader, info, _ = build_evaluation(section, tokenizer=tokenizer, share=Share(1), flag=flag)
    needed = options.calibration.calibration_sequences * options.max_length
    # Twice as often as the mean length asks for: what is cut off at `max_length` is gone.
    stride = max(1, info["tokens"] // (2 * needed))
    parts, have = [], 0
    for number, batch in enumerate(loader.eval_batches()):
        if number % stride or have >= needed:
            continue
        mask = batch.attention_mask
        parts.append(batch.input_ids if mask is None else batch.input_ids[mask.bool()])
        have += parts[-1].numel()
    tokens = torch.cat([part.flatten() for part in parts])[:needed]
    length = min(options.max_length, len(tokens))
    if length < 2:
        raise DataError(f"{flag} {data}: holds no text")
    return model, tokens[: len(tokens) // length * length].view(-1, length).to(device)
