"""The settings of a run: checked when they are made, and written beside what was trained."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass

from .settings import settings_from

PRECISIONS = ("fp32", "bf16")
OPTIMIZERS = ("adamw", "adamw8bit")
SCHEDULES = ("constant", "cosine")
MAY_CHANGE = frozenset({
    "save_every", "keep_states", "preview_every", "preview_steps", "preview_guidance", "sensitivity_every", "shard_optimizer",
})  # fmt: skip
"""Settings that have no influence on the weights: a resumed run may have others."""
_AT_LEAST_ONE = ("steps", "rank", "batch_size", "accumulation_steps", "save_every", "keep_states", "preview_steps")
_NOT_NEGATIVE = (
    "seed", "weight_decay", "warmup_steps", "max_grad_norm", "min_snr_gamma", "preview_every", "sensitivity_every",
    "validation_pairs", "preview_guidance",
)  # fmt: skip


@dataclass(frozen=True)
class TrainConfig:
    """How a condition is trained; the defaults are the reference's.

    Raises:
        ValueError: With every contradiction in one sentence.

    Source: xyfJASON/ctrlora@b4422b4 scripts/train_ctrlora_finetune.py, configs/ctrlora_finetune_sd15_rank128.yaml.
    """

    steps: int = 1000
    """Optimizer updates in the whole run."""
    rank: int = 128
    """Rows of the LoRA of each linear layer."""
    learning_rate: float = 1e-5
    """AdamW's factor, at its highest."""
    weight_decay: float = 0.01
    """Fraction of a weight that AdamW takes off, times the learning rate."""
    batch_size: int = 1
    """Pairs in one backward pass."""
    accumulation_steps: int = 1
    """Backward passes in one update."""
    precision: str = "fp32"
    """Type of the computation, "fp32" or "bf16"; trained weights are fp32 in any case."""
    seed: int = 0
    """Number that every random draw of the run starts from."""
    optimizer: str = "adamw"
    """Name, "adamw" or "adamw8bit"; the second needs bitsandbytes."""
    schedule: str = "constant"
    """Name, "constant" or "cosine"; the second falls to 0 at the last update."""
    warmup_steps: int = 0
    """Updates in which the learning rate rises from 0."""
    max_grad_norm: float = 0.0
    """L2 norm that all gradients together are cut to; 0 leaves them."""
    ema_decay: float = 0.0
    """Fraction of the averaged weights kept at each update; 0 keeps no average."""
    min_snr_gamma: float = 0.0
    """Signal-to-noise ratio above which a timestep counts less; 0 weighs all alike."""
    gradient_checkpointing: bool = False
    """Switch: compute activations twice, keep few of them."""
    save_every: int = 250
    """Updates between two saved states."""
    keep_states: int = 2
    """Saved states, the last ones."""
    preview_every: int = 250
    """Updates between two previews; 0 makes none."""
    preview_steps: int = 20
    """Sampling steps of a preview."""
    preview_guidance: float = 7.5
    """Classifier-free guidance of a preview; 1 is none."""
    sensitivity_every: int = 50
    """Updates between two looks at the held-out pairs; 0 takes none."""
    validation_pairs: int = 4
    """Pairs that are held out, of each condition."""
    shard_optimizer: bool = False
    """Switch: each of several processes keeps a part of the optimizer's state; alone it changes nothing."""

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise ValueError("; ".join(problems) + ".")

    def _problems(self) -> Iterator[str]:
        for name in _AT_LEAST_ONE:
            if getattr(self, name) < 1:
                yield f"{name} ({getattr(self, name)}) must be 1 or more"
        for name in _NOT_NEGATIVE:
            if not getattr(self, name) >= 0:
                yield f"{name} ({getattr(self, name)}) must be 0 or more"
        if not 0 < self.learning_rate < 1:
            yield f"learning_rate ({self.learning_rate}) must be above 0 and below 1"
        if not 0 <= self.ema_decay < 1:
            yield f"ema_decay ({self.ema_decay}) must be 0 or more and below 1"
        for name, choices in (("precision", PRECISIONS), ("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in choices:
                yield f"{name} ('{getattr(self, name)}') must be {' or '.join(choices)}"
        if self.shard_optimizer and self.optimizer != "adamw":
            yield f"shard_optimizer needs the optimizer adamw, and optimizer is '{self.optimizer}'"
        if self.warmup_steps >= self.steps >= 1:
            yield f"warmup_steps ({self.warmup_steps}) must be below steps ({self.steps})"
        if self.validation_pairs == 0 and self.preview_every > 0:
            yield "preview_every must be 0 where validation_pairs is 0"

    @property
    def group_size(self) -> int:
        """Pairs in one update."""
        return self.batch_size * self.accumulation_steps

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of update `step`, counted from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.learning_rate
        part = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * part))

    def differences(self, saved: TrainConfig) -> list[str]:
        """What forbids to go on from a run with other settings, one phrase each.

        Args:
            saved: Settings of the state.

        Returns:
            Empty if the runs are the same. More steps are the same run while the learning rate does not depend on their number.
        """
        fixed = [field.name for field in dataclasses.fields(self) if field.name not in MAY_CHANGE]
        if self.schedule == saved.schedule == "constant":
            fixed.remove("steps")
        return [
            f"{name} was {getattr(saved, name)} and is {getattr(self, name)}"
            for name in fixed
            if getattr(saved, name) != getattr(self, name)
        ]

    def to_json(self) -> str:
        """All settings as one JSON object."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> TrainConfig:
        """The settings that `to_json` wrote, or a part of them.

        Args:
            text: One JSON object.

        Returns:
            What is left out has its default.

        Raises:
            ValueError: A name is unknown, a type is wrong, or the settings contradict each other.
        """
        return settings_from(cls, json.loads(text), "no setting of the training")
