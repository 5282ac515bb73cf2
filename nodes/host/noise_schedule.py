"""What a model predicts and at which noise levels: read from the `model_sampling` that it runs with."""

from __future__ import annotations

from typing import Any

import comfy.model_base
import torch
from comfy.model_patcher import ModelPatcher
from comfy.model_sampling import EPS, V_PREDICTION, ModelSamplingContinuousEDM

from ...models.foreign import shown
from ...training.objective import DiscreteObjective, Objective
from ...training.objective_edm import EdmObjective
from .unet_structure import is_video

_DIGITS = 6
"""Of a continuous schedule's ends: the host keeps logarithms of what the user has set."""


def objective_of(model: ModelPatcher) -> Objective:
    """How noise is added in training, and what the model predicts, as it is sampled.

    Args:
        model: From any loader, with or without a *ModelSampling* node.

    Returns:
        Of pictures: the model's timesteps and their noise levels. Of SVD: its range of noise levels.

    Raises:
        ValueError: The model is sampled in a way that training does not know.
    """
    return _video_objective(model) if is_video(model) else _picture_objective(model)


def earlier_objective_of(model: ModelPatcher) -> Objective:
    """What was trained before the patched schedule counted: the checkpoint's prediction type, and each sigma's index."""
    if is_video(model):
        return EdmObjective()
    is_v = model.model.model_type == comfy.model_base.ModelType.V_PREDICTION
    return DiscreteObjective(_alphas_of(model.get_model_object("model_sampling")), "v" if is_v else "eps")


def _picture_objective(model: ModelPatcher) -> DiscreteObjective:
    sampling = model.get_model_object("model_sampling")
    prediction = _prediction_of(sampling)
    timesteps = _timesteps_of(sampling)
    if prediction is None or timesteps is None:
        raise ValueError(
            f"The model is sampled as '{_name_of(sampling)}' and training knows models that predict eps or v at whole "
            "timesteps: take the ModelSampling node out, or use ModelSamplingDiscrete with eps or v_prediction, whichever the "
            "checkpoint was made for."
        )
    is_plain = torch.equal(timesteps, torch.arange(len(timesteps)))
    return DiscreteObjective(_alphas_of(sampling), prediction, None if is_plain else timesteps)


def _video_objective(model: ModelPatcher) -> EdmObjective:
    sampling = model.get_model_object("model_sampling")
    is_edm = _is_from(sampling, "timestep", ModelSamplingContinuousEDM)
    if _prediction_of(sampling) != "v" or not is_edm or not _rises(sampling.sigmas):
        raise ValueError(
            f"The model is sampled as '{_name_of(sampling)}' and SVD is trained on v at continuous noise levels: take the "
            "ModelSampling node out, or use ModelSamplingContinuousEDM with v_prediction."
        )
    lowest, highest = (float(f"{float(sampling.sigmas[end]):.{_DIGITS}g}") for end in (0, -1))
    return EdmObjective(sigma_min=lowest, sigma_max=highest)


def _prediction_of(sampling: Any) -> str | None:
    """What it predicts, "eps" or "v", or None for anything else: LCM's is a subclass of eps, flow has the formula of eps."""
    is_scaled = _is_from(sampling, "calculate_input", EPS) and _is_from(sampling, "noise_scaling", EPS)
    if not is_scaled or getattr(sampling, "sigma_data", 1.0) != 1.0:
        return None
    kinds = {"eps": EPS, "v": V_PREDICTION}
    return next((name for name, kind in kinds.items() if _is_from(sampling, "calculate_denoised", kind)), None)


def _is_from(sampling: Any, method: str, kind: type) -> bool:
    """Whether a method is the one that a class of the host has, and no other of a subclass or of another pack."""
    return getattr(type(sampling), method, None) is getattr(kind, method) and method not in vars(sampling)


def _timesteps_of(sampling: Any) -> torch.Tensor | None:
    """(T,), what the UNet is told at each of the schedule's noise levels; None where these are no whole numbers that rise."""
    sigmas = getattr(sampling, "sigmas", None)
    if not isinstance(sigmas, torch.Tensor) or not _rises(sigmas):
        return None
    timesteps = sampling.timestep(sigmas).cpu()
    is_whole = torch.equal(timesteps.round().double(), timesteps.double())
    return timesteps.long().clone() if is_whole and _rises(timesteps + 1) else None


def _rises(values: torch.Tensor) -> bool:
    """Whether numbers, two or more, are above zero, finite, and each larger than the one before it."""
    numbers = values.detach().double().cpu().flatten()
    return len(numbers) > 1 and bool(numbers[0] > 0) and bool(numbers.isfinite().all()) and bool((numbers.diff() > 0).all())


def _alphas_of(sampling: Any) -> torch.Tensor:
    """(T,), the signal's share of the variance at each noise level."""
    return (1 / (sampling.sigmas.double().clone() ** 2 + 1)).float().cpu()


def _name_of(sampling: Any) -> str:
    """The classes that a schedule is put together from; the host's nodes make one class for each use."""
    bases = [base.__name__ for base in type(sampling).__bases__ if base is not torch.nn.Module]
    return shown(", ".join(bases) or type(sampling).__name__)
