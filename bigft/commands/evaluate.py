"""Score a model folder on a data set."""

import json
import sys

from bigft.config.options import EvaluateOptions, read_options
from bigft.config.request import Request


def main(request: Request) -> None:
    """Load, score, print."""
    options = read_options(request, EvaluateOptions)

    from bigft.data.build import build_evaluation
    from bigft.data.loading.loader import Share
    from bigft.data.section import DataSection
    from bigft.evaluation.loop import evaluate, stay_alone
    from bigft.evaluation.plain import load_plain, pick_device
    from bigft.tasks.task import build_task

    device = pick_device(options.device)
    model, tokenizer = load_plain(request.words[0], device)
    section = DataSection(
        train=options.data, max_length=options.max_length, packing=options.packing
    )
    loader, info, sources = build_evaluation(
        section, tokenizer=tokenizer, share=Share(options.batch_size)
    )
    scores = evaluate(
        build_task("causal_lm"),
        model,
        loader.eval_batches(),
        device=device,
        sum_over_ranks=stay_alone,
        sources=sources,
    )
    if options.as_json:
        sys.stdout.write(
            json.dumps({**scores, "rows": info["rows"], "model": request.words[0]}) + "\n"
        )
        return
    for name, value in scores.items():
        sys.stdout.write(f"{name:<16}{value:,.4f}\n".replace(".0000\n", "\n"))
