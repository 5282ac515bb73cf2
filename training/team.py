"""One run in several processes: who computes what, how their gradients become one, and how all of them stop together.

Every process holds the same weights and steps with the same gradient. They talk in two ways: in a meeting (`meet`), where any
of them may say that it stops; and in an exchange, where all of them send and nobody may be missing. Every exchange follows a
meeting, so a process that fails somewhere else goes to the next meeting and tells the others, whatever that meeting was for.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor

from .backbone import ALONE, Share

PATIENCE_SECONDS = 1800.0
"""How long a process waits for the others before it takes them for lost."""
WRAPPERS = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_MEGATRON_LM")


class StoppedElsewhereError(RuntimeError):
    """Another process said that it stops, and why."""


class PeerLostError(RuntimeError):
    """Another process is gone, or does not answer."""


class Team(Protocol):
    """The processes of a run, seen from one of them."""

    share: Share

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and shows: one of them all."""
        ...

    @property
    def has_agreed(self) -> bool:
        """Whether all processes know that the run stops, and why."""
        ...

    def meet(self, value: Tensor | None = None) -> Tensor:
        """Wait for all others, unless one of them stops.

        Args:
            value: A scalar; 0 without one.

        Returns:
            The sum over all processes.

        Raises:
            StoppedElsewhereError: Another process stops; its reason is the message.
            KeyboardInterrupt: One of them was asked to stop.
            PeerLostError: One of them is gone.
        """
        ...

    def tell(self, error: BaseException) -> bool:
        """Let the others know that this process stops.

        Args:
            error: Why.

        Returns:
            Whether they know now: if so, all of them are between the same two updates, and may exchange once more.
        """
        ...

    def together(self) -> AbstractContextManager[None]:
        """A block after which all processes meet: what is raised in one of them ends all."""
        ...

    def exchange(self) -> AbstractContextManager[None]:
        """A block in which all processes send and receive: one that fails within it cannot tell the others."""
        ...

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replace every gradient by its sum over all processes.

        Args:
            parameters: The same ones everywhere. Where no process has a gradient there is none afterwards.
        """
        ...

    def gather(self, text: str) -> list[str]:
        """A text of every process, in their order. An exchange."""
        ...

    def ask_to_stop(self, *_: object) -> None:
        """Stop soon, in order, with all others. A signal handler."""
        ...

    def check_wanted(self) -> None:
        """Between two pieces of long work: stop if somebody asked for it.

        Raises:
            KeyboardInterrupt: Somebody did.
        """
        ...

    def close(self) -> None:
        """Part, after a run that nothing happened to."""
        ...


class Alone:
    """A run in one process. See `Team`."""

    share = ALONE
    is_main = True
    has_agreed = False

    def meet(self, value: Tensor | None = None) -> Tensor:
        """`value`."""
        return torch.zeros(()) if value is None else value

    def tell(self, error: BaseException) -> bool:  # noqa: ARG002
        """True: nobody is left to be told."""
        return True

    def together(self) -> AbstractContextManager[None]:
        """Nothing."""
        return nullcontext()

    def exchange(self) -> AbstractContextManager[None]:
        """Nothing."""
        return nullcontext()

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Nothing."""

    def gather(self, text: str) -> list[str]:
        """`text`."""
        return [text]

    def ask_to_stop(self, *_: object) -> None:
        """Stop at once.

        Raises:
            KeyboardInterrupt: Always.
        """
        raise KeyboardInterrupt

    def check_wanted(self) -> None:
        """Nothing: who asks is heard at once."""

    def close(self) -> None:
        """Nothing."""


def is_launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE") or 1) > 1


def open_team(is_cpu: bool, patience: float = PATIENCE_SECONDS) -> Team:
    """The team that a launcher's environment describes. Call it before anything chooses a device.

    Args:
        is_cpu: Compute on the CPU, and talk through gloo.
        patience: See `PATIENCE_SECONDS`.

    Returns:
        `Alone` where there is one process.

    Raises:
        ValueError: Accelerate is missing, the launcher asks for an engine that wraps modules, or the others cannot be reached.
    """
    if not is_launched():
        return Alone()
    wrappers = [name for name in WRAPPERS if os.environ.get(name, "").lower() in {"1", "true"}]
    if wrappers:
        raise ValueError(
            f"The launcher's settings ask for {wrappers[0].rpartition('_')[2]}, which wraps a whole model, and here single "
            "tensors are trained: choose multi-GPU in 'accelerate config', and shard_optimizer in the training's settings to "
            "spread the optimizer's state."
        )
    try:
        from .team_accelerate import AccelerateTeam
    except ImportError as error:
        raise ValueError(
            f"{os.environ['WORLD_SIZE']} processes were started and the package accelerate is not installed: run "
            "'python -m pip install accelerate' with ComfyUI's Python."
        ) from error
    try:
        return AccelerateTeam(is_cpu, patience)
    except RuntimeError as error:
        address = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
        raise ValueError(
            f"Process {os.environ['RANK']} of {os.environ['WORLD_SIZE']} cannot reach the others through {address} "
            f"({str(error).splitlines()[0]}): start as many processes as the launcher says, with the same address and port."
        ) from error


def check_share(accumulation_steps: int, processes: int) -> None:
    """Refuse a number of processes that cannot take equal parts of an update.

    Raises:
        ValueError: It does not divide the backward passes.
    """
    if accumulation_steps % processes == 0:
        return
    numbers = [str(n) for n in range(1, accumulation_steps + 1) if accumulation_steps % n == 0]
    fitting = f"{', '.join(numbers[:-1])} or {numbers[-1]}" if len(numbers) > 1 else numbers[0]
    raise ValueError(
        f"There are {processes} processes and accumulation_steps is {accumulation_steps}, which they cannot share equally: "
        f"start {fitting} process{'es' if len(numbers) > 1 else ''}, or set accumulation_steps to a multiple of {processes}."
    )
