"""What the pieces of the demo model's training share: a loop that survives being killed."""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor
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
    """One piece of training, which goes on where it was killed as if nothing had happened.

    Args:
        path: Of the state.
        total: Steps of the whole training.
        learning_rate: At its highest.
        parts: Networks to train, by name.
        decay: Of the weights, relative to the learning rate.
    """

    def __init__(self, path: Path, total: int, learning_rate: float, parts: dict[str, nn.Module], decay: float = 0.01) -> None:
        import torch

        self.path, self.total, self.learning_rate, self.parts = path, total, learning_rate, parts
        self.parameters = [p for part in parts.values() for p in part.parameters() if p.requires_grad]
        self.optimizer = Muon(self.parameters, decay)
        self.average = [p.detach().clone() for p in self.parameters]
        self.steps = 0
        if path.is_file():
            self._load(torch.load(path, weights_only=True))
            say(f"Going on at step {self.steps} of {total}.")

    @property
    def is_finished(self) -> bool:
        """All steps are done."""
        return self.steps >= self.total

    def train(self, parts_of: Callable[[int], Sequence[Callable[[], Tensor]]], threads: int, minutes: float) -> None:
        """Train to the end, or as long as there is time.

        Each thread takes the next part of a step's batch when it is free. On a machine where others work as well this goes
        on at the pace of the cores that are free, where threads that share each product would wait for the slowest.

        Args:
            parts_of: Gives the losses of the equal parts of a step's batch, which draw what is random from its number.
            threads: That work at once.
            minutes: After which it stops and can go on later.
        """
        import torch

        torch.set_num_threads(1)
        begin = saved = time.monotonic()
        shown, recent = self.steps, []
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            while not self.is_finished and time.monotonic() - begin < 60 * minutes:
                recent.append(self._step(parts_of(self.steps), pool))
                if self.steps - shown >= SHOW_EVERY:
                    spent = (time.monotonic() - begin) / 60
                    say(f"step {self.steps} of {self.total}, {spent:.1f} min, loss {sum(recent) / len(recent):.4f}")
                    shown, recent = self.steps, []
                if time.monotonic() - saved > SAVE_SECONDS:
                    self.save()
                    saved = time.monotonic()
        self.save()

    def _step(self, parts: Sequence[Callable[[], Tensor]], pool: ThreadPoolExecutor) -> float:
        """One update; the mean of the losses."""
        import torch

        def gradients_of(part: Callable[[], Tensor]) -> tuple[float, tuple[Tensor, ...]]:
            loss = part()
            return float(loss.detach()), torch.autograd.grad(loss / len(parts), self.parameters)

        # In the order of the parts, whichever comes first: the same sums however many threads there are.
        first, *others = pool.map(gradients_of, parts)
        total, sums = first[0] / len(parts), list(first[1])
        for loss, gradients in others:
            total += loss / len(parts)
            torch._foreach_add_(sums, list(gradients))
        for parameter, gradient in zip(self.parameters, sums, strict=True):
            parameter.grad = gradient
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True)
        self.optimizer.step(self._rate(), pool.map)
        self.steps += 1
        if self.steps % FOLLOW_EVERY == 0:
            self._follow()
        return total

    def _rate(self) -> float:
        """Of learning: up over the first steps, then down along a cosine."""
        falling = 0.02 + 0.98 * (1 + math.cos(math.pi * self.steps / self.total)) / 2
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
        state |= {"optimizer": self.optimizer.state_dict(), "average": self.average, "steps": self.steps}
        draft = self.path.with_suffix(".draft")
        torch.save(state, draft)
        draft.replace(self.path)

    def _load(self, state: dict[str, Any]) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average, self.steps = state["average"], state["steps"]


def indices(count: int, batch: int, step: int) -> Iterator[int]:
    """Rows of a step's batch: each epoch has an order of its own, and every row comes once in it."""
    import numpy as np

    for place in range(step * batch, (step + 1) * batch):
        epoch, row = divmod(place, count)
        if row == 0 or place == step * batch:
            order = np.random.default_rng(epoch).permutation(count)
        yield int(order[row])
