"""A run from its first or last state to its end: nothing that was trained is lost on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from ..models.foreign import first_line
from .backbone import Batch, Source
from .checkpoint import State, StateStore
from .config import TrainConfig
from .metrics import MetricsFile, smoothed
from .rescue import OutOfMemoryError, break_off, check_same
from .sensitivity import Sensitivity, measure, with_partners
from .trainer import Report, Trainer

__all__ = ["Hooks", "OutOfMemoryError", "Run"]


EARLIER = {"method": "ctrlora"}
"""What states say that were saved before there was a choice."""


@dataclass(eq=False)
class Hooks:
    """What is done between updates. Any of them may raise, to stop the run; of several processes one saves and draws."""

    on_step: Callable[[Trainer, Report], None] = lambda _trainer, _report: None
    """After every update."""
    on_save: Callable[[Trainer], None] = lambda _trainer: None
    """After every saved state: writes the file that the loaders read."""
    preview: Callable[[Trainer], None] | None = None
    """Draws pictures."""


@dataclass(eq=False)
class Run:
    """Everything around a trainer."""

    trainer: Trainer
    source: Source
    held_out: Sequence[Batch]
    store: StateStore
    metrics: MetricsFile
    identity: dict[str, str]
    """What the run was made from, by name; a resumed run needs the same."""
    hooks: Hooks = field(default_factory=Hooks)
    earlier: Mapping[str, str] = field(default_factory=dict)
    """What a state was made from that does not say so, as `identity` has it: it is older than the entry."""
    saved_step: int = -1
    """Of the last state on disk."""

    def resume(self) -> bool:
        """Go on from the last state, if there is one; in every process.

        Returns:
            Whether there was one.

        Raises:
            ValueError: It is of another run; the message has every difference. Or none of the states can be read.
        """
        with self.trainer.team.together():
            state = self.store.load(self._problem)
            if state is None:
                return False
            self.trainer.restore(state)
            self.saved_step = state.step
            return True

    def _problem(self, state: State) -> str:
        """What is wrong inside a state; raises where nothing is and it is of another run."""
        try:
            before = TrainConfig.from_json(state.about["config"])
            was = EARLIER | dict(self.earlier) | state.about["identity"]
        except (KeyError, TypeError, ValueError) as error:
            return first_line(error)
        self._check_same_run(state.step, before, was)
        return self.trainer.problem_of(state)

    def _check_same_run(self, step: int, before: TrainConfig, was: Mapping[str, object]) -> None:
        config = self.trainer.config
        reasons = config.differences(before)
        reasons += [f"the {name} changed" for name in self.identity if was.get(name) != self.identity[name]]
        if step > config.steps:
            reasons.append(f"{step} steps are done and steps is {config.steps}")
        if reasons:
            raise ValueError(
                f"The saved training in '{self.store.folder.name}' is another one: {'; '.join(reasons)}. "
                "Undo that, or train under another name."
            )

    def save(self) -> None:
        """Write the state of now, if it is not on disk yet, and then what `on_save` writes; all processes wait for it."""
        is_new = self.saved_step != self.trainer.step
        if is_new:
            self.trainer.collect()
        with self.trainer.team.together():
            if self.trainer.team.is_main:
                self.store.guard()
                if is_new:
                    self.write_state()
                self.hooks.on_save(self.trainer)
        self.saved_step = self.trainer.step

    def write_state(self) -> None:
        """Write the state of now from this process."""
        state = self.trainer.state()
        state.about["identity"] = self.identity
        self.store.save(state)

    def train(self) -> None:
        """Train to the last step.

        Raises:
            OutOfMemoryError: With advice; the state is saved.
            ValueError: The processes would not train the same thing.
            BaseException: Whatever a hook or an update raises, after the state is saved; and what `Team.meet` raises.
        """
        with self.trainer.team.together():
            check_same(self)
            if self.trainer.team.is_main:
                self.metrics.go_back_to(self.trainer.step if self.trainer.step else -1)
        try:
            if self.trainer.step == 0:
                self._look(0)
                self._draw()
            while self.trainer.step < self.trainer.config.steps:
                self._update()
            self.save()
        except BaseException as error:
            final = break_off(self, error)
            if final is error:
                raise
            raise final from error

    def _update(self) -> None:
        config, start = self.trainer.config, time.perf_counter()
        report = self.trainer.update(self.source.batches(self.trainer.step, self.trainer.team.share))
        if self.trainer.team.is_main:
            self._note(report, time.perf_counter() - start)
        if _is_due(report.step, config.sensitivity_every, config.steps):
            self._look(report.step)
        if report.step % config.save_every == 0 and report.step < config.steps:
            self.save()
        if _is_due(report.step, config.preview_every, config.steps):
            self._draw()
        self.hooks.on_step(self.trainer, report)

    def _note(self, report: Report, seconds: float) -> None:
        self.metrics.append(
            step=report.step,
            loss=report.loss,
            smoothed_loss=smoothed(self.trainer.losses),
            learning_rate=report.learning_rate,
            grad_norm=report.grad_norm,
            images_per_second=round(self.trainer.config.group_size / seconds, 3),
            memory_megabytes=_peak_megabytes(self.trainer.backbone.device),
        )

    def _look(self, step: int) -> Sensitivity | None:
        is_wanted = self.trainer.team.is_main and self.trainer.config.sensitivity_every
        if not is_wanted or not with_partners(self.held_out):
            return None
        found = measure(self.trainer, self.held_out)
        each = {f"sensitivity_shuffled_{name}": own.shuffled_ratio for name, own in found.by_condition.items()}
        self.metrics.append(
            step=step,
            sensitivity_shuffled=found.shuffled_ratio,
            sensitivity_none=found.none_ratio,
            held_out_loss=found.true,
            **each,
        )
        return found

    def _draw(self) -> None:
        if self.hooks.preview is not None and self.trainer.config.preview_every and self.trainer.team.is_main:
            self.hooks.preview(self.trainer)


def _is_due(step: int, every: int, last: int) -> bool:
    return every > 0 and (step % every == 0 or step == last)


def _peak_megabytes(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) >> 20 if device.type == "cuda" else None
