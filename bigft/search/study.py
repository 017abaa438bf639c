"""The study: what was tried, kept in one file, and what to try next. Only here is Optuna.

`study.journal` is a list of JSON lines, appended and synced at every change; killed at any moment
it holds everything up to then. No server and no pickle takes part.
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bigft.errors import CheckpointError, ConfigError
from bigft.files.lines import drop_torn_line
from bigft.search.record import Record, State
from bigft.search.space import Parameter, Value, write_value

JOURNAL_NAME = "study.journal"

_NAME = "sweep"
_MIN_STARTUP = 3
_BEFORE_PRUNING = 3
"""Finished trials that `median` compares with; fewer say too little about the middle."""


class Trial:
    """One trial that is to run, or to go on."""

    def __init__(
        self, trial: Any, settings: Mapping[str, str], *, reported: int, is_first: bool
    ) -> None:
        """Wrap Optuna's trial.

        Args:
            trial: Optuna's.
            settings: Searched path -> value as typed.
            reported: The last step of which a value is known.
            is_first: Whether no other has come to an end.
        """
        self._trial = trial
        self.number: int = trial.number + 1
        self.settings = dict(settings)
        self.is_baseline = bool(trial.user_attrs.get("baseline"))
        self.is_first = is_first
        self._reported = reported

    def report(self, step: int, value: float) -> None:
        """Keep a value on the way.

        Steps that a resumed run repeats are known already. Step 0 is the model before training: it
        says nothing about the settings.
        """
        if step > self._reported:
            self._reported = step
            self._trial.report(value, step)

    def should_be_pruned(self) -> bool:
        """Say whether the others were so much better that it is not worth going on.

        The baseline is never pruned: everything is measured against it.
        """
        # Asked in any case: some pruners only remember what they were asked about.
        is_behind = bool(self._trial.should_prune())
        return is_behind and not self.is_baseline

    def add_seconds(self, seconds: float) -> None:
        """Count time that was spent on it; a trial that goes on adds to what it had."""
        before = float(self._trial.user_attrs.get("seconds", 0.0))
        self._trial.set_user_attr("seconds", before + seconds)

    @property
    def optuna(self) -> Any:
        """Optuna's own trial."""
        return self._trial

    def keep(self, **facts: Any) -> None:
        """Keep facts about it."""
        for name, value in facts.items():
            self._trial.set_user_attr(name, value)


class Study:
    """All trials of one sweep folder, and the sampler that proposes the next."""

    def __init__(
        self,
        folder: Path,
        space: Sequence[Parameter],
        *,
        sampler: str,
        pruner: str,
        maximize: bool,
        seed: int,
        total: int,
    ) -> None:
        """Open the journal of a folder, or begin one.

        Raises:
            ConfigError: Optuna is not installed.
            CheckpointError: The journal cannot be read.
        """
        self._optuna = _import_optuna()
        self._space = space
        self._sampler = sampler
        self._seed = seed
        self._startup = max(_MIN_STARTUP, total // 4)
        path = folder / JOURNAL_NAME
        try:
            self._study = self._open(path, pruner, maximize)
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise CheckpointError(
                f"{path}: cannot be read ({error}); move the folder away to start anew, or choose"
                " another --output_dir"
            ) from error

    def check_same(self, described: Mapping[str, Any]) -> None:
        """Make sure that this is the sweep the folder was begun for.

        Args:
            described: What trials have in common; kept when the study is new.

        Raises:
            ConfigError: The folder holds another one.
        """
        known = self._study.user_attrs.get("sweep")
        described = json.loads(json.dumps(described))
        if known is None:
            self._study.set_user_attr("sweep", described)
            return
        changed = [
            name for name in {**known, **described} if known.get(name) != described.get(name)
        ]
        if changed:
            was = "; ".join(
                f"{name} was {_show(known.get(name))}, is {_show(described.get(name))}"
                for name in changed[:5]
            )
            raise ConfigError(
                f"--output_dir holds a sweep with other settings: {was}. Its trials cannot be"
                " compared with new ones: choose another --output_dir, or the settings of then"
            )

    def begin(
        self,
        baseline: Mapping[str, str],
        fixed: Mapping[str, Value],
        grid: Sequence[Mapping[str, Value]],
    ) -> None:
        """Line up what does not depend on results: the settings as they stand, and a grid.

        Args:
            baseline: Searched path -> value as it stands.
            fixed: Those of them that lie in the searched ranges: the sampler learns of them.
            grid: Every combination to try; empty without a grid.
        """
        if not self._study.trials:
            self._study.enqueue_trial(
                dict(fixed),
                user_attrs={
                    "baseline": True,
                    "settings": dict(baseline),
                    "fixed": sorted(fixed),
                },
            )
        for values in grid:
            self._study.enqueue_trial(dict(values), skip_if_exists=True)

    def next_trial(self) -> Trial:
        """Return the trial that was running when the sweep ended, or a new one."""
        running = self._find(self._optuna.trial.TrialState.RUNNING)
        # One sampler per trial: a sweep that goes on proposes what an undisturbed one would have.
        number = running[0].number if running else len(self._finished())
        self._study.sampler = self._build_sampler(number)
        if running:
            trial = self._optuna.trial.Trial(self._study, running[0]._trial_id)
        else:
            trial = self._study.ask()
        reports = self._study.trials[trial.number].intermediate_values
        return Trial(
            trial,
            self._settle(trial),
            reported=max(reports, default=0),
            is_first=not self._finished(),
        )

    def finish(self, trial: Trial, state: State, value: float | None = None) -> None:
        """Write down how a trial ended."""
        states = self._optuna.trial.TrialState
        kind = {"complete": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}[state]
        self._study.tell(trial.optuna, value if state == "complete" else None, state=kind)

    def count_finished(self) -> int:
        """Return how many trials have come to an end, good or bad."""
        return len(self._finished())

    def has_waiting(self) -> bool:
        """Say whether something lined up has not been tried, or not been finished."""
        states = self._optuna.trial.TrialState
        return bool(self._find(states.WAITING, states.RUNNING))

    def records(self) -> list[Record]:
        """Return every trial that was begun."""
        waiting = self._optuna.trial.TrialState.WAITING
        return [_record(trial) for trial in self._study.trials if trial.state != waiting]

    def _open(self, path: Path, pruner: str, maximize: bool) -> Any:
        optuna = self._optuna
        if path.is_file():
            drop_torn_line(path)
        journal = optuna.storages.journal
        backend = journal.JournalFileBackend(str(path), lock_obj=_NoLock())
        return optuna.create_study(
            storage=optuna.storages.JournalStorage(backend),
            study_name=_NAME,
            direction="maximize" if maximize else "minimize",
            pruner=self._build_pruner(pruner),
            load_if_exists=True,
        )

    def _settle(self, trial: Any) -> dict[str, str]:
        """Return a trial's settings; what it lacks is proposed now.

        They come out of the searched ranges alone: what else a journal says, which somebody else
        may have written, becomes no flag of a run.
        """
        known = trial.user_attrs.get("settings")
        is_baseline = trial.user_attrs.get("baseline")
        fixed = trial.user_attrs.get("fixed", [])
        proposed = {
            parameter.path: write_value(_suggest(trial, parameter))
            for parameter in self._space
            # A value as it stands may lie outside the range; it is tried all the same, unseen by
            # the sampler.
            if not is_baseline or parameter.path in fixed
        }
        if is_baseline:
            return dict(known or {})
        if known != proposed:
            trial.set_user_attr("settings", proposed)
        return proposed

    def _build_sampler(self, number: int) -> Any:
        samplers = self._optuna.samplers
        seed = (self._seed * 1_000_003 + number) % 2**32
        if self._sampler == "tpe":
            return samplers.TPESampler(seed=seed, n_startup_trials=self._startup)
        return samplers.RandomSampler(seed=seed)

    def _build_pruner(self, name: str) -> Any:
        pruners = self._optuna.pruners
        if name == "median":
            return pruners.MedianPruner(n_startup_trials=_BEFORE_PRUNING)
        if name == "halving":
            return pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
        return pruners.NopPruner()

    def _finished(self) -> list[Any]:
        return [trial for trial in self._study.trials if trial.state.is_finished()]

    def _find(self, *states: Any) -> list[Any]:
        return [trial for trial in self._study.trials if trial.state in states]


def _import_optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(
            'bigft sweep needs optuna, which is not installed; pip install "bigft[sweep]"'
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


class _NoLock:
    """The sweep has claimed its folder; Optuna's own lock would outlive a killed sweep by 30 s."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


def _suggest(trial: Any, parameter: Parameter) -> Value:
    value: Value
    if parameter.kind == "choice":
        value = trial.suggest_categorical(parameter.path, parameter.choices)
    elif parameter.kind == "int":
        low, high = int(parameter.low), int(parameter.high)
        value = trial.suggest_int(parameter.path, low, high, step=parameter.step)
    else:
        is_log = parameter.kind == "log"
        value = trial.suggest_float(parameter.path, parameter.low, parameter.high, log=is_log)
    return value


def _record(trial: Any) -> Record:
    states: dict[str, State] = {
        "COMPLETE": "complete",
        "PRUNED": "pruned",
        "FAIL": "failed",
        "RUNNING": "running",
        "WAITING": "waiting",
    }
    facts = trial.user_attrs
    reports = dict(trial.intermediate_values)
    value = trial.value
    if value is None and reports:
        value = reports[max(reports)]
    return Record(
        number=trial.number + 1,
        state=states[trial.state.name],
        value=value,
        settings=facts.get("settings", {}),
        is_baseline=bool(facts.get("baseline")),
        seconds=float(facts.get("seconds", 0.0)),
        exit_code=facts.get("exit_code"),
        reason=facts.get("reason", ""),
        reports=reports,
    )


def _show(value: Any) -> str:
    return "not given" if value is None else json.dumps(value)
