"""One update after the other: the weights in training, and everything else that a run changes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from .backbone import NO_CONTROL, Backbone, Batch, Control
from .checkpoint import State
from .config import TrainConfig
from .method import Method
from .optimizer import MOMENTS, build_optimizer, collect_state, fits_state, names_in_order, restore_state, state_tensors
from .team import Alone, Team, check_share


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
    """A method in training.

    Args:
        method: What is trained.
        backbone: The diffusion model.
        config: The settings.
        team: The processes that share the work; without one this process does it all.

    Raises:
        ValueError: The processes cannot share an update equally.
    """

    def __init__(self, method: Method, backbone: Backbone, config: TrainConfig, team: Team | None = None) -> None:
        self.team = team or Alone()
        check_share(config.accumulation_steps, self.team.share.processes)
        self.method = method
        self.backbone = backbone
        self.config = config
        self.step = 0
        self.losses: list[float] = []
        self.is_between_updates = True
        """False while weights are being written: a state taken then would be neither before nor after."""
        self._parameters = method.parameters()
        self.is_sharded = config.shard_optimizer and self.team.share.processes > 1
        """Whether each process has a part of the optimizer's state, and none has the whole."""
        self.optimizer = build_optimizer(self._parameters, method.rate_factor, config, self.is_sharded)
        self._average = {key: t.detach().clone() for key, t in self._parameters.items()} if config.ema_decay else {}

    def predict(
        self,
        noisy: Tensor,
        hints: Tensor | None,
        levels: Tensor,
        context: Tensor,
        extras: Mapping[str, Tensor] | None = None,
        condition: str = "",
        is_added: bool = True,
    ) -> Tensor:
        """The diffusion model's prediction for noisy latents under the control of `hints`, or under none.

        Args:
            noisy: (B, 4, h, w).
            hints: (B, ...), as the method reads them; None for the diffusion model as it was before the training.
            levels: (B,), noise levels in the objective's terms.
            context: Text.
            extras: See `Batch.extras`.
            condition: Of the hints, where there are several.
            is_added: Whether anything is added; else the diffusion model has its trained weights and no more.

        Returns:
            (B, 4, h, w).
        """
        seen, times = self.backbone.objective.network_input(noisy, levels)
        with torch.autocast(self.backbone.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            control = NO_CONTROL if hints is None else self.method.control(seen, hints, times, context, condition)
            if not is_added:
                control = Control(weights=control.weights)
            return self.backbone.predict(seen, times, context, control, extras or {})

    def loss(self, batch: Batch, hints: Tensor | None, gamma: float = 0.0) -> Tensor:
        """The scalar loss of a batch on the backbone's device.

        Args:
            batch: On the backbone's device.
            hints: In the place of the batch's own, or None for no control.
            gamma: Of min-SNR weighting; 0 weighs all levels as the objective does.

        Returns:
            Mean over the rows, fp32.
        """
        objective = self.backbone.objective
        noisy = objective.add_noise(batch.latents, batch.noise, batch.timesteps)
        predicted = self.predict(noisy, hints, batch.timesteps, batch.context, batch.extras, batch.condition)
        return objective.loss(predicted, batch.latents, batch.noise, batch.timesteps, gamma, batch.extras)

    def update(self, batches: Sequence[Batch]) -> Report:
        """One optimizer update.

        Args:
            batches: One for each backward pass of this process, of equal sizes; as many in every process.

        Returns:
            What it was like.

        Raises:
            DivergedError: The loss or its gradient is not finite; the weights are as they were.
        """
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.backbone.device)
        count = len(batches) * self.team.share.processes
        for batch in batches:
            given = batch.to(self.backbone.device)
            loss = self.loss(given, given.hints, self.config.min_snr_gamma) / count
            loss.backward()
            total += loss.detach()
        parameters = list(self._parameters.values())
        total = self.team.meet(total)
        self.team.sum_gradients(parameters)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm or math.inf)
        value, length = torch.stack([total, norm.to(total)]).tolist()
        if not math.isfinite(value + length):
            names = ", ".join(self.team.gather(", ".join(name for batch in batches for name in batch.names)))
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
            group["lr"] = rate * group["rate_factor"]
        with self.team.exchange() if self.is_sharded else nullcontext():
            self.optimizer.step()
        with torch.no_grad():
            for key, average in self._average.items():
                average.lerp_(self._parameters[key], 1 - self.config.ema_decay)
        self.step += 1
        self.is_between_updates = True

    def result(self) -> dict[str, Tensor]:
        """The weights to save: the average where there is one."""
        return self._average or dict(self._parameters)

    def collect(self) -> None:
        """Before `state`: bring what the processes keep apart together in the main one."""
        if self.is_sharded:
            self.team.meet()
            with self.team.exchange():
                collect_state(self.optimizer)

    def state(self) -> State:
        """Everything that the next update depends on, and the losses so far. Random draws depend on the step alone."""
        parts = {
            "weights": self._parameters,
            "average": self._average,
            "optimizer": state_tensors(self.optimizer, self._names()),
            "history": {"losses": torch.tensor(self.losses, dtype=torch.float64)},
        }
        tensors = {f"{part}|{key}": t.detach().cpu() for part, own in parts.items() for key, t in own.items()}
        return State(self.step, tensors, {"config": self.config.to_json()})

    @property
    def state_bytes(self) -> int:
        """About how many bytes a saved state has, with the published weights."""
        weights = sum(tensor.nbytes for tensor in self._parameters.values())
        return round(weights * (2 + bool(self._average) + MOMENTS[self.config.optimizer]))

    def problem_of(self, state: State) -> str:
        """Say what keeps a state of this run from being restored; empty if nothing does."""
        parts = _parts_of(state)
        expected = {"weights": self._parameters, "average": self._average}
        for part, own in expected.items():
            found = {name: tensor.shape for name, tensor in parts.get(part, {}).items()}
            if found != {name: tensor.shape for name, tensor in own.items()}:
                return f"its {part} are not those of this training"
        losses = parts.get("history", {}).get("losses")
        if losses is None or losses.shape != (state.step,) or not losses.is_floating_point():
            return f"it is named after step {state.step} and has another history"
        kept = parts.get("optimizer", {})
        if bool(kept) != bool(state.step) or not fits_state(self._parameters, kept):
            return "the optimizer's part is not that of this training"
        return ""

    def restore(self, state: State) -> None:
        """Become what the run was when `state` was taken."""
        parts = _parts_of(state)
        with torch.no_grad():
            for own, part in ((self._parameters, "weights"), (self._average, "average")):
                for name, tensor in own.items():
                    tensor.copy_(parts[part][name])
        restore_state(self.optimizer, self._names(), parts.get("optimizer", {}))
        self.losses = parts["history"]["losses"].tolist()
        self.step = state.step

    def _names(self) -> list[str]:
        return names_in_order(self.optimizer, self._parameters)


def _parts_of(state: State) -> dict[str, dict[str, Tensor]]:
    """The tensors of a state by the part of the run that they belong to, and their name in it."""
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.tensors.items():
        part, _, name = key.partition("|")
        parts.setdefault(part, {})[name] = tensor
    return parts
