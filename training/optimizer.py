"""AdamW, in full or in eight bits, and its state as tensors by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .config import TrainConfig

MOMENTS = {"adamw": 2.0, "adamw8bit": 0.5}
"""What an optimizer remembers, as a multiple of the weights."""


def build_optimizer(
    parameters: Mapping[str, Tensor], rate_factor: Callable[[str], float], config: TrainConfig, is_sharded: bool = False
) -> torch.optim.Optimizer:
    """The optimizer of a run.

    Args:
        parameters: What is trained, by name.
        rate_factor: Learning rate of a tensor by name, as a multiple of the run's. Its group keeps it under that name.
        config: Names it.
        is_sharded: Each process of the default process group keeps a part of the state (ZeRO stage 1, arXiv:1910.02054).

    Returns:
        With torch's own betas and epsilon, as in the reference.

    Raises:
        ValueError: The package it needs is not installed.
    """
    arguments: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    factors = {name: rate_factor(name) for name in parameters}
    groups = [
        {"params": [parameters[name] for name, own in factors.items() if own == factor], "rate_factor": factor}
        for factor in dict.fromkeys(factors.values())
    ]
    if is_sharded:
        from torch.distributed.optim import ZeroRedundancyOptimizer

        # A view of one buffer for each process: as many broadcasts in an update, not one for each tensor.
        return ZeroRedundancyOptimizer(groups, torch.optim.AdamW, parameters_as_bucket_view=True, **arguments)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, **arguments)
    try:
        import bitsandbytes
    except ImportError as error:
        raise ValueError(
            "optimizer is 'adamw8bit' and the package bitsandbytes is not installed: run "
            "'python -m pip install bitsandbytes' with ComfyUI's Python, or choose adamw."
        ) from error
    return bitsandbytes.optim.AdamW8bit(groups, **arguments)


def collect_state(optimizer: torch.optim.Optimizer) -> None:
    """Bring a sharded state together in the main process, for `state_tensors` there. An exchange."""
    optimizer.consolidate_state_dict(to=0)  # type: ignore[attr-defined]


def names_in_order(optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]) -> list[str]:
    """Names of the parameters in the order in which the optimizer's state numbers them: group by group."""
    names = {id(tensor): name for name, tensor in parameters.items()}
    return [names[id(tensor)] for group in optimizer.param_groups for tensor in group["params"]]


def state_tensors(optimizer: torch.optim.Optimizer, names: Sequence[str]) -> dict[str, Tensor]:
    """What the optimizer remembers of each parameter.

    Args:
        optimizer: After any number of updates; a sharded one after `collect_state`.
        names: Of its parameters, in their order.

    Returns:
        "<name>/<what>" to copies on the CPU.
    """
    kept = {}
    for index, values in optimizer.state_dict()["state"].items():
        for what, value in values.items():
            tensor = value if isinstance(value, Tensor) else torch.tensor(value)
            kept[f"{names[index]}/{what}"] = tensor.detach().to("cpu", copy=True)
    return kept


def fits_state(parameters: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> bool:
    """Whether `restore_state` can put these tensors back: all of them belong to a parameter, and moments have its shape."""
    for key, tensor in kept.items():
        name, _, what = key.rpartition("/")
        is_moment = what in {"exp_avg", "exp_avg_sq"}
        if name not in parameters or (is_moment and tensor.shape != parameters[name].shape):
            return False
    return True


def restore_state(optimizer: torch.optim.Optimizer, names: Sequence[str], kept: dict[str, Tensor]) -> None:
    """Put back what `state_tensors` gave."""
    state: dict[int, dict[str, Tensor]] = {}
    index = {name: i for i, name in enumerate(names)}
    for key, tensor in kept.items():
        name, _, what = key.rpartition("/")
        state.setdefault(index[name], {})[what] = tensor
    # The base class: a sharded optimizer gives out only a state that was collected.
    groups = torch.optim.Optimizer.state_dict(optimizer)["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
