"""ControlNeXt on a clone of the host's model, through `ModelPatcher` alone."""

from __future__ import annotations

from collections.abc import Callable

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP, WrappersMP
from torch import Tensor

from ...models.foreign import shown
from ...models.injection import FAMILY_TITLES, Uncond
from .control_patch import ControlNeXtPatch
from .controlnext_file import ControlNeXtFile
from .hints import check_image, real_mask, to_masks
from .layout import Run
from .prompt_names import add_prompt_names
from .schedule import Schedule
from .stack_sites import Seat
from .unet_structure import Place, family_of, find_place
from .unet_weights import add_unet_weights

NETWORKS = "nextcontrol"
"""Key of our networks and wrappers on a model."""


def attach_controlnext(
    model: ModelPatcher,
    controlnext: ControlNeXtFile,
    image: Tensor,
    strength: float,
    percents: tuple[float, float],
    mask: Tensor | None = None,
    uncond: Uncond = "auto",
    curve: str = "constant",
    seat_at: Callable[[Place], Seat] | None = None,
) -> ModelPatcher:
    """Put a control on a model.

    Args:
        model: Left as it is.
        controlnext: A control module and, if it has them, its fine-tuned UNet weights.
        image: (N, H, W, 3) in [0, 1]; N hints are repeated or cut to the latent batch.
        strength: 1 is the published strength; 0 gives back the model itself.
        percents: Start and end of the part of sampling that is controlled; an empty part gives back the model itself.
        mask: (M, H, W), where the control is added. The fine-tuned weights act everywhere.
        uncond: Whether rows of the negative prompt are controlled, see `PromptNames`; `auto` is the reference's rule.
        curve: Shape of the strength over the controlled part; one of `CURVES`.
        seat_at: Gives the control its seat in a stack, where the controls of one place count together.

    Returns:
        A patched clone.

    Raises:
        ValueError: An input is malformed, or model and control do not belong together.
    """
    check_image(image, "image")
    mask = real_mask(mask, image)
    masks = None if mask is None else to_masks(mask, "mask")
    if strength == 0 or percents[0] >= percents[1]:
        return model
    family = family_of(model)
    injection = controlnext.injection_for(family)
    place = find_place(model.model.diffusion_model, injection.site)
    if controlnext.config.out != place.channels:
        raise ValueError(
            f"'{shown(controlnext.name)}' makes controls of {controlnext.config.out} channels and this "
            f"{FAMILY_TITLES[family]} model has {place.channels} where they are added: use the control made for this model."
        )
    clone = model.clone()
    if controlnext.unet is not None:
        add_unet_weights(clone, controlnext.unet, family)
    if masks is not None and not masks.any():
        return clone
    network = controlnext.network(injection, model.load_device)
    _add_network(clone, network)
    schedule = Schedule(*percents, curve)
    patch = ControlNeXtPatch(
        network.model, injection, place, image, masks, strength, schedule, uncond, controlnext.scale, add_prompt_names(clone)
    )
    if seat_at is not None:
        patch.seat = seat_at(place)
    _add_patch(clone, patch)
    return clone


def _add_patch(clone: ModelPatcher, patch: ControlNeXtPatch) -> None:
    """Hang a control's wrappers, callbacks and block patch on a model."""
    patch.set_range(clone)
    add_areas(clone)
    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, patch.key, patch.diffusion_model)
    clone.add_callback_with_key(CallbacksMP.ON_PRE_RUN, patch.key, patch.on_pre_run)
    clone.add_callback_with_key(CallbacksMP.ON_CLEANUP, patch.key, patch.on_cleanup)
    is_output = patch.place.block[0] == "output"
    clone.set_model_patch(patch.output_patch if is_output else patch.input_patch, patch.place.hook)


def add_areas(clone: ModelPatcher) -> None:
    """Make the areas of prompts known during sampling; once, however often it is asked for."""
    if not clone.get_wrappers(WrappersMP.CALC_COND_BATCH, NETWORKS):
        run = Run()
        clone.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, NETWORKS, run.note_areas)
        clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, NETWORKS, run.outer_sample)
        clone.add_callback_with_key(CallbacksMP.ON_PRE_RUN, NETWORKS, run.begin)


def _add_network(clone: ModelPatcher, network: ModelPatcher) -> None:
    """Make the host load, move and offload a network with the model; once, however often it is attached."""
    others = clone.get_additional_models_with_key(NETWORKS)
    if not any(other.is_clone(network) for other in others):
        clone.set_additional_models(NETWORKS, [*others, network])
