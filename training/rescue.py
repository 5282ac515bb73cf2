"""What a run does when it breaks off: tell the other processes, save what there is, and say what happened."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .team import PeerLostError, StoppedElsewhereError
from .trainer import Trainer

if TYPE_CHECKING:
    from .loop import Run

logger = logging.getLogger("nextcontrol")

OUT_OF_MEMORY: tuple[type[BaseException], ...] = (torch.cuda.OutOfMemoryError, MemoryError)
TURN_SECONDS = 2.0
"""How long a survivor waits for each one before it to have saved; all states are the same."""
LONGEST_WAIT_SECONDS = 8.0


class OutOfMemoryError(RuntimeError):
    """The run does not fit; its state is saved."""


def break_off(run: Run, error: BaseException) -> BaseException:
    """Save what there is, whatever happened. If even that fails, the state before is still on disk.

    Args:
        run: Not going on.
        error: Why.

    Returns:
        What to raise: `error`, or one with a better message.
    """
    if isinstance(error, OUT_OF_MEMORY):
        error = OutOfMemoryError(advice_on_memory(run.trainer))
    has_agreed = run.trainer.team.tell(error)
    if not run.trainer.is_between_updates:
        logger.warning("The run broke off within an update: it goes on from step %d", max(run.saved_step, 0))
        if has_agreed:
            with suppress(StoppedElsewhereError, PeerLostError):
                run.trainer.team.meet()  # the others, who save
    elif has_agreed:
        try:
            run.save()
        except (OSError, StoppedElsewhereError, PeerLostError) as failure:
            logger.error("The state of step %d cannot be saved (%s)", run.trainer.step, failure)
    elif not run.trainer.is_sharded:
        _save_as_survivor(run)
    return _farewell(run, error) if isinstance(error, PeerLostError) else error


def _save_as_survivor(run: Run) -> None:
    """Without the others. Who comes first in their order saves; the next one waits and looks whether there is a state."""
    step, team = run.trainer.step, run.trainer.team
    end = time.monotonic() + min(team.share.rank * TURN_SECONDS, LONGEST_WAIT_SECONDS)
    while run.saved_step != step and time.monotonic() < end and not run.store.has(step):
        time.sleep(0.05)
    try:
        if run.saved_step != step and not run.store.has(step):
            run.write_state()
        run.saved_step = step
        if team.is_main:
            run.hooks.on_save(run.trainer)
    except OSError as failure:
        logger.error("The state of step %d cannot be saved (%s)", step, failure)


def _farewell(run: Run, error: PeerLostError) -> PeerLostError:
    lost = f"Another process of the run is gone ({error})"
    if run.saved_step == run.trainer.step:
        return PeerLostError(f"{lost}: the state of step {run.trainer.step} is saved, start the same again to go on.")
    reason = "each process had only a part of the optimizer's state" if run.trainer.is_sharded else "it was within an update"
    if run.saved_step < 0:
        return PeerLostError(f"{lost}: no state was saved so far and none can be now, since {reason}; start again.")
    return PeerLostError(
        f"{lost}: step {run.trainer.step} cannot be saved, since {reason}; start the same again to go on from step "
        f"{run.saved_step}."
    )


def check_same(run: Run) -> None:
    """Refuse processes that would not train the same thing.

    Raises:
        ValueError: They differ; the message names in what. It is raised in all of them.
    """
    trainer = run.trainer
    if trainer.team.share.processes == 1:
        return
    own = {"saved step": trainer.step, "settings": trainer.config.to_json(), **run.identity}
    texts = trainer.team.gather(json.dumps(own | {"first weights": _digest(trainer.result())}))
    everyone = [json.loads(text) for text in texts]
    differences = [name for name in everyone[0] if any(other.get(name) != everyone[0][name] for other in everyone)]
    if differences:
        raise ValueError(
            f"The processes do not have the same {', '.join(differences)}: give all of them one configuration, the same models "
            "and pairs, and on several machines one shared folder for them and for the training."
        )


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=20)
    for tensor in tensors.values():
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


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
    if trainer.team.share.processes > 1 and not trainer.is_sharded:
        ways.append("switch shard_optimizer on")
    ways += [
        "set optimizer to adamw8bit" if config.optimizer == "adamw" else "train less (a lower rank or a smaller unet_part)",
        "lower the dataset's resolution",
    ]
    return f"Out of memory at step {trainer.step + 1}, the state is saved: {', or '.join(ways)}."
