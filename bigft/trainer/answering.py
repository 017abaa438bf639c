"""What the model writes during an evaluation, all ranks in step, compared with what is right."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from bigft.data.tokens.encode import TokenIds
from bigft.distributed.collectives import gather_objects, gather_rows
from bigft.engine.engine import Engine
from bigft.evaluation.answers import Decoding, build_config, write_batch
from bigft.evaluation.written import Questions
from bigft.trainer.rendezvous import Rendezvous

Tell = Callable[[str], None]


class Answering:
    """Lets the model answer the same questions each time.

    Under ZeRO stage 3 every forward pass gathers parameters from all ranks, so that all of them
    have to take as many: ranks whose answers are done go on with the others until all are. Batches
    are the same whatever the number of ranks, and so are the answers.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Any,
        questions: Questions,
        metrics: Sequence[str],
        decoding: Decoding,
        rendezvous: Rendezvous,
        device: torch.device,
        tell: Tell,
    ) -> None:
        """Take what is asked, and how answers are written and judged.

        Args:
            engine: The model.
            tokenizer: Its tokenizer.
            questions: The same ones on every rank; each leaves room for `max_new_tokens`.
            metrics: Names of `bigft.evaluation.text_metrics`.
            decoding: Its `batch_size` is that of a rank.
            rendezvous: Where ranks hear of a request to stop, once per token.
            device: Of this rank.
            tell: Shows a line.
        """
        self._engine = engine
        self._tokenizer = tokenizer
        self._questions = questions
        self._metrics = metrics
        self._decoding = decoding
        self._rendezvous = rendezvous
        self._device = device
        self._tell = tell
        prompts = [prompt.input_ids for prompt in questions.prompts]
        self._batches = [
            prompts[start : start + decoding.batch_size]
            for start in range(0, len(prompts), decoding.batch_size)
        ]

    def score(self, sources: Sequence[str]) -> dict[str, float]:
        """Write answers and return their metrics; none where the run is to stop.

        Args:
            sources: Names of the parts of the data.

        Collective: every rank.
        """
        with self._engine.other_passes():
            own = self._write_own()
        if self._rendezvous.stop is not None:
            return {}
        written = [answer for batch in gather_in_order(own) for answer in batch]
        if len(written) < len(self._questions.prompts):
            self._tell(
                f"note: --evaluation.generate_seconds {self._decoding.max_seconds:g}:"
                f" {len(written):,} of {len(self._questions.prompts):,} answers were written, and"
                " are compared"
            )
        return self._questions.judge(written, self._metrics).list_numbers(sources)

    def _write_own(self) -> list[list[str]]:
        """Write every so-manieth batch; all ranks begin as many. Collective: every rank."""
        rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        own: list[list[str]] = []
        start = time.monotonic()
        with self._polled():
            for first in range(0, len(self._batches), size):
                if first and self._is_late(time.monotonic() - start):
                    break
                # A rank without a batch of its own takes part with another's.
                answers = self._write(self._batches[min(first + rank, len(self._batches) - 1)])
                if self._rendezvous.stop is not None:
                    break
                own += [answers] if first + rank < len(self._batches) else []
        return own

    def _write(self, batch: Sequence[TokenIds]) -> list[str]:
        model: Any = self._engine.module
        config = build_config(model, self._tokenizer, self._decoding)
        return write_batch(
            model,
            self._tokenizer,
            batch,
            config,
            self._device,
            lambda: self._rendezvous.stop is not None,
        )

    def _is_late(self, seconds: float) -> bool:
        """Whether the time is over on any rank. Collective: every rank."""
        limit = self._decoding.max_seconds
        return limit is not None and float(gather_rows([seconds], self._device).max()) >= limit

    @contextlib.contextmanager
    def _polled(self) -> Iterator[None]:
        """Let the ranks compare requests to stop at every forward pass, of which all take as many.

        An answer of many tokens takes long where parameters come from afar.
        """

        def poll(*args: Any) -> None:
            self._rendezvous.poll()

        hook = self._engine.module.register_forward_pre_hook(poll)
        try:
            yield
        finally:
            hook.remove()


def gather_in_order(own: list[list[str]]) -> list[list[str]]:
    """Put the batches of all ranks in their order: the ranks took them in turns.

    Collective: every rank.
    """
    ranks = gather_objects(own)
    rounds = max(map(len, ranks))
    return [batches[n] for n in range(rounds) for batches in ranks if n < len(batches)]
