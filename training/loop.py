"""A run from its first or last state to its end: nothing that was trained is lost on the way."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from .backbone import Batch, Source
from .checkpoint import StateStore
from .metrics import MetricsFile, smoothed
from .sensitivity import Sensitivity, measure
from .trainer import Report, Trainer

logger = logging.getLogger("nextcontrol")

OUT_OF_MEMORY: tuple[type[BaseException], ...] = (torch.cuda.OutOfMemoryError, MemoryError)


class OutOfMemoryError(RuntimeError):
    """The run does not fit; its state is saved."""


@dataclass(eq=False)
class Hooks:
    """What is done between updates. Any of them may raise, to stop the run."""

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
    saved_step: int = -1
    """Of the last state on disk."""

    def resume(self) -> bool:
        """Go on from the last state, if there is one.

        Returns:
            Whether there was one.

        Raises:
            ValueError: It is of another run; the message has every difference.
        """
        state = self.store.load()
        if state is None:
            return False
        config = self.trainer.config
        reasons = config.differences(type(config).from_json(state.about["config"]))
        was = state.about["identity"]
        reasons += [f"the {name} changed" for name in self.identity if was.get(name) != self.identity[name]]
        if state.step > config.steps:
            reasons.append(f"{state.step} steps are done and steps is {config.steps}")
        if reasons:
            raise ValueError(
                f"The saved training in '{self.store.folder.name}' is another one: {'; '.join(reasons)}. "
                "Undo that, or train under another name."
            )
        self.trainer.restore(state)
        self.saved_step = state.step
        return True

    def save(self) -> None:
        """Write the state of now, if it is not on disk yet, and then what `on_save` writes."""
        if self.saved_step != self.trainer.step:
            state = self.trainer.state()
            state.about["identity"] = self.identity
            self.store.save(state)
            self.saved_step = self.trainer.step
        self.hooks.on_save(self.trainer)

    def train(self) -> None:
        """Train to the last step.

        Raises:
            OutOfMemoryError: With advice; the state is saved.
            BaseException: Whatever a hook or an update raises, after the state is saved.
        """
        config = self.trainer.config
        self.metrics.go_back_to(self.trainer.step if self.trainer.step else -1)
        try:
            if self.trainer.step == 0:
                self._look(0)
                self._draw()
            while self.trainer.step < config.steps:
                self._update()
        except BaseException as error:
            self._rescue()
            if isinstance(error, OUT_OF_MEMORY):
                raise OutOfMemoryError(advice_on_memory(self.trainer)) from error
            raise
        self.save()

    def _update(self) -> None:
        config, start = self.trainer.config, time.perf_counter()
        report = self.trainer.update(self.source.batches(self.trainer.step))
        seconds = time.perf_counter() - start
        self.metrics.append(
            step=report.step,
            loss=report.loss,
            smoothed_loss=smoothed(self.trainer.losses),
            learning_rate=report.learning_rate,
            grad_norm=report.grad_norm,
            images_per_second=round(config.group_size / seconds, 3),
            memory_megabytes=_peak_megabytes(self.trainer.backbone.device),
        )
        if _is_due(report.step, config.sensitivity_every, config.steps):
            self._look(report.step)
        if report.step % config.save_every == 0 and report.step < config.steps:
            self.save()
        if _is_due(report.step, config.preview_every, config.steps):
            self._draw()
        self.hooks.on_step(self.trainer, report)

    def _look(self, step: int) -> Sensitivity | None:
        if not self.trainer.config.sensitivity_every or len(self.held_out) < 2:
            return None
        found = measure(self.trainer, self.held_out)
        self.metrics.append(
            step=step,
            sensitivity_shuffled=found.shuffled_ratio,
            sensitivity_none=found.none_ratio,
            held_out_loss=found.true,
        )
        return found

    def _draw(self) -> None:
        if self.hooks.preview is not None and self.trainer.config.preview_every:
            self.hooks.preview(self.trainer)

    def _rescue(self) -> None:
        """Save what there is, whatever happened. If even that fails, the state before is still on disk."""
        if not self.trainer.is_between_updates:
            logger.warning("The run broke off within an update: it goes on from step %d", max(self.saved_step, 0))
            return
        try:
            self.save()
        except OSError as error:
            logger.error("The state of step %d cannot be saved (%s)", self.trainer.step, error)


def advice_on_memory(trainer: Trainer) -> str:
    """What to change, in one sentence."""
    config = trainer.config
    ways = []
    if config.batch_size > 1:
        ways.append(f"halve batch_size and double accumulation_steps (now {config.batch_size} and {config.accumulation_steps})")
    if not config.gradient_checkpointing:
        ways.append("switch gradient_checkpointing on")
    if config.precision == "fp32":
        ways.append("set precision to bf16, which halves the activations")
    ways += [
        "set optimizer to adamw8bit" if config.optimizer == "adamw" else "lower the rank",
        "lower the dataset's resolution",
    ]
    return f"Out of memory at step {trainer.step + 1}, the state is saved: {', or '.join(ways)}."


def _is_due(step: int, every: int, last: int) -> bool:
    return every > 0 and (step % every == 0 or step == last)


def _peak_megabytes(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) >> 20 if device.type == "cuda" else None
