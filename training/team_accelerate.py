"""A run in several processes that Hugging Face Accelerate brought up: its device, its process group."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor

from .backbone import Share
from .team import PeerLostError, StoppedElsewhereError

BUCKET_ELEMENTS = 2**25
"""Of gradients that travel at once: 128 MiB, so that the copy stays small beside the weights."""
GRACE_SECONDS = 15.0
"""How long a process that was asked to stop still waits for the others. Launchers kill after 30 seconds."""
ASKED = "it was asked to stop"


class AccelerateTeam:
    """See `training.team.Team`.

    Args:
        is_cpu: Compute on the CPU, and talk through gloo; else the device is the launcher's choice, and NCCL the way to talk.
        patience: Seconds after which a process that does not come is lost.
    """

    def __init__(self, is_cpu: bool, patience: float) -> None:
        # NCCL's watchdog would end the process when another one is lost, and with it the chance to save the state: errors shall
        # be raised where one waits. Read when the process group is made.
        os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
        # The group waits longer than `_finish`, which has the better message.
        options: dict[str, Any] = {"timeout": timedelta(seconds=patience + 60)}
        self.state = PartialState(cpu=is_cpu, **(options | {"backend": "gloo"} if is_cpu else options))
        if self.state.num_processes != int(os.environ["WORLD_SIZE"]):
            raise RuntimeError(f"Accelerate knows no way to connect processes on '{self.state.device}'")
        self.device: torch.device = self.state.device
        self.share = Share(self.state.process_index, self.state.num_processes)
        self._patience = patience
        self._asked: float | None = None
        self._agreements = 0
        self._is_reachable = True

    @property
    def is_main(self) -> bool:
        """Whether this is process 0."""
        return self.share.rank == 0

    @property
    def has_agreed(self) -> bool:
        """See `Team`."""
        return self._agreements > 0

    def ask_to_stop(self, *_: object) -> None:
        """See `Team`. Wherever the process is, it goes on until the next meeting."""
        self._asked = self._asked or time.monotonic()

    def check_wanted(self) -> None:
        """See `Team`."""
        if self._asked is not None:
            raise KeyboardInterrupt

    def meet(self, value: Tensor | None = None) -> Tensor:
        """See `Team`."""
        return self._meet(value)

    def tell(self, error: BaseException) -> bool:
        """See `Team`."""
        if self.has_agreed:
            return True
        if not self._is_reachable:
            return False
        try:
            self._meet(error=error)
        except PeerLostError:
            return False
        return True

    @contextmanager
    def together(self) -> Iterator[None]:
        """See `Team`."""
        before = self._agreements
        try:
            yield
        except BaseException as error:
            if self._is_reachable and self._agreements == before:
                with suppress(PeerLostError):
                    self._meet(error=error)
            raise
        self.meet()

    @contextmanager
    def exchange(self) -> Iterator[None]:
        """See `Team`."""
        self._is_reachable = False
        yield
        self._is_reachable = True

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """See `Team`."""
        with self.exchange():
            has_any = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8, device=self.device)
            self._reduce(has_any, dist.ReduceOp.MAX)
            used = [p for p, is_used in zip(parameters, has_any.tolist(), strict=True) if is_used]
            for bucket in _buckets(used):
                self._sum_bucket(bucket)

    def gather(self, text: str) -> list[str]:
        """See `Team`."""
        with self.exchange(), _lost_on_failure():
            return [str(own) for own in gather_object([text])]

    def close(self) -> None:
        """See `Team`."""
        self.state.destroy_process_group()

    def _meet(self, value: Tensor | None = None, error: BaseException | None = None) -> Tensor:
        is_asked = self._asked is not None and not self.has_agreed
        status = torch.tensor([0.0, float(is_asked or error is not None)], device=self.device)
        if value is not None:
            status[0] = value
        with self.exchange():
            self._reduce(status)
        if status[1].item() == 0:
            return status[0]
        reasons = self.gather(_reason(error) if error is not None else ASKED if is_asked else "")
        self._agreements += 1
        if error is None:
            raise self._stop(reasons)
        return status[0]

    def _stop(self, reasons: list[str]) -> BaseException:
        errors = [(rank, reason) for rank, reason in enumerate(reasons) if reason not in {"", ASKED}]
        if not errors:
            return KeyboardInterrupt()
        return StoppedElsewhereError("; ".join(f"Process {rank} stopped: {reason}" for rank, reason in errors))

    def _sum_bucket(self, parameters: Sequence[Tensor]) -> None:
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        self._reduce(flat)
        pieces = flat.split([p.numel() for p in parameters])
        for parameter, gradient, piece in zip(parameters, gradients, pieces, strict=True):
            parameter.grad = gradient.copy_(piece.view_as(gradient))

    def _reduce(self, tensor: Tensor, how: Any = dist.ReduceOp.SUM) -> None:
        """Wait for a collective in Python, where signals are heard: one whose partner is gone may never end by itself."""
        with _lost_on_failure():
            work = dist.all_reduce(tensor, how, async_op=True)
            start, pause = time.monotonic(), 1e-4
            while not work.is_completed():
                now = time.monotonic()
                if now - start > self._patience:
                    raise PeerLostError(f"no answer for {self._patience:.0f} seconds")
                if self._asked is not None and now - max(start, self._asked) > GRACE_SECONDS:
                    raise PeerLostError(f"no answer for {GRACE_SECONDS:.0f} seconds after a signal to stop")
                time.sleep(pause)
                pause = min(pause * 1.5, 0.01)
            work.wait()


@contextmanager
def _lost_on_failure() -> Iterator[None]:
    try:
        yield
    except PeerLostError:
        raise
    except RuntimeError as error:
        if isinstance(error, torch.cuda.OutOfMemoryError):
            raise
        raise PeerLostError(_cause(error)) from error


def _cause(error: RuntimeError) -> str:
    """The first sentence of what the library says, without the place in its source."""
    return re.sub(r"^\[\S+\] ", "", str(error).splitlines()[0]).partition(". ")[0]


def _reason(error: BaseException) -> str:
    return ASKED if isinstance(error, KeyboardInterrupt) else str(error) or type(error).__name__


def _buckets(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """In order, of one type each, as many as fit."""
    bucket: list[Tensor] = []
    size = 0
    for parameter in parameters:
        size += parameter.numel()
        if bucket and (size > BUCKET_ELEMENTS or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], parameter.numel()
        bucket.append(parameter)
    if bucket:
        yield bucket
