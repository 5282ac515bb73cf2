"""What the pieces of the demo model's training share: a clock that survives being killed, states on the disk, averages."""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING, Any

from demo_train_muon import Muon
from provide import say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from torch import Tensor, nn

SAVE_SECONDS = 90.0
SHOW_EVERY = 50
WARM_UP = 100
"""Steps over which the learning rate rises."""
KEEP, FOLLOW_EVERY = 0.9985, 4
"""How much of the averaged weights stays at each step, and how often they follow."""


class Run:
    """One piece of training with a budget in minutes, which goes on where it was killed.

    Progress is the part of the budget that is spent, so that a machine with other work finishes in time with fewer steps.

    Args:
        path: Of the state.
        minutes: Of training, over all runs together.
        learning_rate: At its highest.
        parts: Networks to train, by name.
        decay: Of the weights.
    """

    def __init__(
        self, path: Path, minutes: float, learning_rate: float, parts: dict[str, nn.Module], decay: float = 0.01
    ) -> None:
        import torch

        self.path, self.budget, self.learning_rate, self.parts = path, 60 * minutes, learning_rate, parts
        self.parameters = [p for part in parts.values() for p in part.parameters() if p.requires_grad]
        self.optimizer = Muon(self.parameters, decay)
        self.average = [p.detach().clone() for p in self.parameters]
        self.steps, self.spent = 0, 0.0
        if path.is_file():
            self._load(torch.load(path, weights_only=True))
            say(f"Going on at step {self.steps}, {self.spent / 60:.1f} of {minutes:g} minutes.")

    @property
    def progress(self) -> float:
        """0 to 1."""
        return min(1.0, self.spent / self.budget)

    def train(self, parts_of: Callable[[int], Sequence[Callable[[], Tensor]]], threads: int) -> None:
        """Train until the budget is spent.

        Each thread takes the next part of a step's batch when it is free. On a machine where others work as well this goes
        on at the pace of the cores that are free, where threads that share each product would wait for the slowest.

        Args:
            parts_of: Gives the losses of the equal parts of a step's batch, which draw what is random from its number.
            threads: That work at once.
        """
        import torch

        torch.set_num_threads(1)
        saved, shown, recent = time.monotonic(), self.steps, []
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            while self.progress < 1:
                begin = time.monotonic()
                recent.append(self._step(parts_of(self.steps), pool))
                now = time.monotonic()
                self.spent += now - begin
                if self.steps - shown >= SHOW_EVERY:
                    say(f"step {self.steps}, {self.spent / 60:.1f} min, loss {sum(recent) / len(recent):.4f}")
                    shown, recent = self.steps, []
                if now - saved > SAVE_SECONDS:
                    self.save()
                    saved = now
        self.save()

    def _step(self, parts: Sequence[Callable[[], Tensor]], pool: ThreadPoolExecutor) -> float:
        """One update; the mean of the losses."""
        import torch

        def gradients_of(part: Callable[[], Tensor]) -> tuple[float, tuple[Tensor, ...]]:
            loss = part()
            return float(loss.detach()), torch.autograd.grad(loss / len(parts), self.parameters)

        total, sums = 0.0, None
        for work in as_completed([pool.submit(gradients_of, part) for part in parts]):
            loss, gradients = work.result()
            total += loss / len(parts)
            if sums is None:
                sums = list(gradients)
            else:
                torch._foreach_add_(sums, list(gradients))
        assert sums is not None
        for parameter, gradient in zip(self.parameters, sums, strict=True):
            parameter.grad = gradient
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True)
        self.optimizer.step(self._rate())
        self.steps += 1
        if self.steps % FOLLOW_EVERY == 0:
            self._follow()
        return total

    def _rate(self) -> float:
        """Of learning: up over the first steps, then down along a cosine."""
        falling = 0.02 + 0.98 * (1 + math.cos(math.pi * self.progress)) / 2
        return self.learning_rate * min(1.0, (self.steps + 1) / WARM_UP) * falling

    def _follow(self) -> None:
        """Move the average: quickly at first, when all that it holds is old."""
        import torch

        keep = min(KEEP, (1 + self.steps) / (20 + self.steps)) ** FOLLOW_EVERY
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - keep)

    def use_average(self) -> None:
        """Put the averaged weights into the networks, for good."""
        for parameter, average in zip(self.parameters, self.average, strict=True):
            parameter.data.copy_(average)

    def save(self) -> None:
        """Write the state, whole or not at all."""
        import torch

        state: dict[str, Any] = {name: part.state_dict() for name, part in self.parts.items()}
        state |= {"optimizer": self.optimizer.state_dict(), "average": self.average, "steps": self.steps, "spent": self.spent}
        draft = self.path.with_suffix(".draft")
        torch.save(state, draft)
        draft.replace(self.path)

    def _load(self, state: dict[str, Any]) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average, self.steps, self.spent = state["average"], state["steps"], state["spent"]


def indices(count: int, batch: int, step: int) -> Iterator[int]:
    """Rows of a step's batch: each epoch has an order of its own, and every row comes once in it."""
    import numpy as np

    for place in range(step * batch, (step + 1) * batch):
        epoch, row = divmod(place, count)
        if row == 0 or place == step * batch:
            order = np.random.default_rng(epoch).permutation(count)
        yield int(order[row])
