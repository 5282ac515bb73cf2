"""Controls that need not be computed again: kept across runs, within a bound, while memory allows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

import comfy.model_management
import torch
from torch import Tensor


class ResultCache:
    """Lists of tensors by key, in main memory.

    A run visits its keys once and in order, so that dropping the oldest of them to make room would drop each just before it is
    needed again. When the bound is reached, only results that the present run has not used make room.

    Args:
        limit: Bytes; 0 keeps nothing.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0
        self._run = 0
        self._kept: OrderedDict[Hashable, tuple[int, list[Tensor]]] = OrderedDict()

    def start_run(self) -> None:
        """Results that are not used from now on may be dropped."""
        self._run += 1

    def get(self, key: Hashable, device: torch.device) -> list[Tensor] | None:
        """The tensors of a key on a device, or None."""
        if key not in self._kept:
            return None
        _, tensors = self._kept[key]
        self._kept[key] = (self._run, tensors)
        self._kept.move_to_end(key)
        return [tensor.to(device) for tensor in tensors]

    def put(self, key: Hashable, tensors: list[Tensor]) -> None:
        """Keep the tensors of a key if there is room for them."""
        weight = sum(tensor.nbytes for tensor in tensors)
        if key in self._kept or weight > self.limit or not self._make_room(weight):
            return
        # A tensor of its own: a view would keep the whole batch alive.
        self._kept[key] = (self._run, [tensor.to("cpu", copy=True) for tensor in tensors])
        self.size += weight

    def _make_room(self, weight: int) -> bool:
        if comfy.model_management.get_free_memory(torch.device("cpu")) < 2 * self.limit:
            return False
        while self.size + weight > self.limit:
            key, (run, tensors) = next(iter(self._kept.items()))
            if run == self._run:
                return False
            del self._kept[key]
            self.size -= sum(tensor.nbytes for tensor in tensors)
        return True
