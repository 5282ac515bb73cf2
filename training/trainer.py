"""One update after the other: the weights in training, and everything else that a run changes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.adapted import Condition, Group
from ..models.ctrlora import CtrLoRA
from .backbone import Backbone, Batch
from .checkpoint import State
from .config import TrainConfig
from .objective import add_noise, mean_loss, min_snr_weights, target_of
from .optimizer import build_optimizer, restore_state, state_tensors


class DivergedError(ValueError):
    """The loss is no number any more."""


@dataclass(frozen=True)
class Report:
    """What one update tells."""

    step: int
    """Updates done, this one included."""
    loss: float
    grad_norm: float
    learning_rate: float


class Trainer:
    """A condition in training.

    Args:
        base: The network, frozen, on the backbone's device.
        condition: What is trained, fp32.
        backbone: The diffusion model.
        config: The settings.
        heads: Of the base's attention.
    """

    def __init__(self, base: CtrLoRA, condition: Condition, backbone: Backbone, config: TrainConfig, heads: int = 8) -> None:
        self.base = base.requires_grad_(requires_grad=False)
        self.condition = condition
        self.backbone = backbone
        self.config = config
        self.heads = heads
        self.step = 0
        self.losses: list[float] = []
        self.is_between_updates = True
        """False while weights are being written: a state taken then would be neither before nor after."""
        self._parameters = condition.tensors()
        self.optimizer = build_optimizer(list(self._parameters.values()), config)
        self._average = {key: t.detach().clone() for key, t in self._parameters.items()} if config.ema_decay else {}

    def controls(self, hints: Tensor, timesteps: Tensor, context: Tensor) -> list[Tensor]:
        """The condition's controls, with its weights as they are now; shapes as in `CtrLoRA.forward`."""
        groups = [Group(self.condition, 1.0, len(hints))]
        checkpointing = self.config.gradient_checkpointing and torch.is_grad_enabled()
        return self.base(hints, timesteps.float(), context, self.heads, groups, checkpointing)

    def predict(self, noisy: Tensor, hints: Tensor | None, timesteps: Tensor, context: Tensor) -> Tensor:
        """The diffusion model's prediction under the control of `hints`, or under none."""
        with torch.autocast(self.backbone.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            controls = [] if hints is None else self.controls(hints, timesteps, context)
            return self.backbone.predict(noisy, timesteps, context, controls)

    def loss(self, batch: Batch) -> Tensor:
        """The scalar loss of a batch."""
        alphas, kind = self.backbone.alphas, self.backbone.prediction
        noisy = add_noise(batch.latents, batch.noise, batch.timesteps, alphas)
        target = target_of(kind, batch.latents, batch.noise, batch.timesteps, alphas)
        gamma = self.config.min_snr_gamma
        weights = min_snr_weights(kind, batch.timesteps, alphas, gamma) if gamma else None
        return mean_loss(self.predict(noisy, batch.hints, batch.timesteps, batch.context), target, weights)

    def update(self, batches: Sequence[Batch]) -> Report:
        """One optimizer update.

        Args:
            batches: One for each backward pass, of equal sizes.

        Returns:
            What it was like.

        Raises:
            DivergedError: The loss or its gradient is not finite; the weights are as they were.
        """
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.backbone.device)
        for batch in batches:
            loss = self.loss(batch.to(self.backbone.device)) / len(batches)
            loss.backward()
            total += loss.detach()
        parameters = list(self._parameters.values())
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm or math.inf)
        value, length = torch.stack([total, norm.to(total)]).tolist()
        if not math.isfinite(value + length):
            names = ", ".join(name for batch in batches for name in batch.names)
            raise DivergedError(
                f"The loss is {value} and its gradient {length} at step {self.step + 1} with {names}: lower learning_rate, or "
                "look at that pair."
            )
        rate = self.config.learning_rate_at(self.step)
        self._apply(rate)
        self.losses.append(value)
        return Report(self.step, value, length, rate)

    def _apply(self, rate: float) -> None:
        self.is_between_updates = False
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        with torch.no_grad():
            for key, average in self._average.items():
                average.lerp_(self._parameters[key], 1 - self.config.ema_decay)
        self.step += 1
        self.is_between_updates = True

    def result(self) -> dict[str, Tensor]:
        """The weights to save: the average where there is one."""
        return self._average or dict(self._parameters)

    def state(self) -> State:
        """Everything that the next update depends on, and the losses so far. Random draws depend on the step alone."""
        names = list(self._parameters)
        parts = {
            "weights": self._parameters,
            "average": self._average,
            "optimizer": state_tensors(self.optimizer, names),
            "history": {"losses": torch.tensor(self.losses, dtype=torch.float64)},
        }
        tensors = {f"{part}|{key}": t.detach().cpu() for part, own in parts.items() for key, t in own.items()}
        return State(self.step, tensors, {"config": self.config.to_json()})

    def restore(self, state: State) -> None:
        """Become what the run was when `state` was taken."""
        parts: dict[str, dict[str, Tensor]] = {}
        for key, tensor in state.tensors.items():
            part, _, name = key.partition("|")
            parts.setdefault(part, {})[name] = tensor
        with torch.no_grad():
            for own, part in ((self._parameters, "weights"), (self._average, "average")):
                for name, tensor in own.items():
                    tensor.copy_(parts[part][name])
        restore_state(self.optimizer, list(self._parameters), parts.get("optimizer", {}))
        self.losses = parts["history"]["losses"].tolist()
        self.step = state.step
