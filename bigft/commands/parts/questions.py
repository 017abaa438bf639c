"""What the model is asked at every evaluation of a run."""

from typing import Any

from bigft.data.build import Data
from bigft.data.choose import find_examples
from bigft.distributed.collectives import broadcast_object, errors_shared
from bigft.distributed.world import World
from bigft.errors import DataError
from bigft.evaluation.written import Questions, build_questions
from bigft.log import Console
from bigft.models.facts import ModelFacts
from bigft.run.settings import Run
from bigft.tasks.rows import TaskRows


def choose_questions(
    run: Run,
    data: Data,
    rows: TaskRows,
    tokenizer: Any,
    facts: ModelFacts,
    world: World,
    console: Console,
) -> Questions | None:
    """Choose held-out examples and make prompts of them; None where none are asked for.

    Raises:
        DataError: None is held out, or none can be answered.

    Collective: every rank.
    """
    if not run.evaluation.metrics:
        return None
    found = None
    with errors_shared():
        # The rows themselves hold tokens only, and the first of several right answers.
        if world.is_rank_zero:
            found = _choose(run, data, rows, tokenizer, facts, console)
    return broadcast_object(found)


def _choose(
    run: Run, data: Data, rows: TaskRows, tokenizer: Any, facts: ModelFacts, console: Console
) -> Questions:
    section, evaluation = run.data, run.evaluation
    flag = "--data" if section.eval is None else "--eval_data"
    spec = section.eval or section.train
    if data.evaluation is None:
        raise DataError(
            f"--evaluation.metrics {','.join(evaluation.metrics)}: no row was held out for the"
            " evaluation. Give --eval_data, or a larger --data.eval_fraction than"
            f" {section.eval_fraction:g}"
        )
    digests = data.evaluation.find_smallest_digests(evaluation.generate_rows)
    chosen = find_examples(spec, flag, section, digests)
    longest = facts.max_position_embeddings
    if longest is not None and run.task.name != "seq2seq":
        # Ranks write in step, also behind the ends of their own answers.
        longest -= evaluation.max_new_tokens
    layout = rows.lay_out(tokenizer, section)
    return build_questions(chosen, layout, longest, f"{flag}={spec}", console.say)
