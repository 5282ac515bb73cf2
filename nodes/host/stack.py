"""A stack of controls, and putting it on a model and its prompts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from comfy.controlnet import ControlBase
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP
from torch import Tensor

from ...models.combine import weights_of
from .attach import add_areas, attach_controlnext
from .control_stack import ControlStack, Member, Rules, stacks_in
from .controlnext_file import ControlNeXtFile
from .ctrlora_control import CtrLoRAControl
from .hints import to_masks
from .readout import Readout
from .schedule import Schedule
from .stack_entry import Entry, Options, at
from .stack_sites import Seating

logger = logging.getLogger("nextcontrol")
STACK = "nextcontrol.stack"
"""Attachment of a model that has one."""

Conditioning = list[list[Any]]


def apply_stack(
    model: ModelPatcher,
    positive: Conditioning,
    negative: Conditioning,
    entries: Sequence[Entry],
    options: Options,
    vae: Any = None,
    readout_node: str | None = None,
) -> tuple[ModelPatcher, Conditioning, Conditioning, Readout | None]:
    """Put a stack of controls on a model and its prompts.

    Args:
        model: Left as it is.
        positive: Prompt; controls that are on it stay.
        negative: The same.
        entries: In order; ControlNeXts act one after the other, all others are summed.
        options: How.
        vae: For controls that read their hint through one.
        readout_node: Id of the node that shows what each control did; None for no readout.

    Returns:
        Model and prompts, the given ones where nothing is added to them, and the readout.

    Raises:
        ValueError: A control does not fit the model, or needs a VAE; its position is named.
    """
    entries = [entry.with_real_mask(position) for position, entry in enumerate(entries, 1)]
    weighted = _weighted(entries, options)
    if not weighted or options.strength == 0:
        return model, positive, negative, None
    plain = [(position, entry) for position, entry in weighted if not isinstance(entry.control, ControlNeXtFile)]
    next_ones = [(position, entry) for position, entry in weighted if isinstance(entry.control, ControlNeXtFile)]
    for position, entry in plain:
        with at(position, entry):
            _check_control(entry, options, model, vae)
    _note_other_stacks(model, positive)
    acting = dict(weighted)
    names = [entry.name if position in acting else None for position, entry in enumerate(entries, 1)]
    readout = None if readout_node is None else Readout(names, readout_node)
    stacks: dict[Any, ControlStack] = {}
    rules = Rules(options.balance == "cap", options.is_resolution_weighted, options.is_guessed)
    if plain:
        negative = _with_lent_controls(positive, negative)
        prompts = [positive] if options.is_conditional_only else [positive, negative]
        controlled = [_with_stack(prompt, plain, rules, vae, readout, stacks) for prompt in prompts]
        positive, negative = controlled[0], controlled[-1] if len(controlled) > 1 else negative
    if next_ones or readout is not None or any(entry.mask is not None for _, entry in plain):
        model = _with_patches(model, next_ones, list(stacks.values()), options, readout)
    return model, positive, negative, readout


def _with_patches(
    model: ModelPatcher,
    entries: list[tuple[int, Entry]],
    stacks: list[ControlStack],
    options: Options,
    readout: Readout | None,
) -> ModelPatcher:
    """A clone with the ControlNeXts, and with what masks and the readout of the others need."""
    clone = model.clone()
    clone.set_attachments(STACK, True)
    add_areas(clone)
    _add_notes(clone, stacks, readout)
    clone = _attach_all(clone, entries, options, readout)
    _add_flush(clone, readout)
    return clone


def _weighted(entries: Sequence[Entry], options: Options) -> list[tuple[int, Entry]]:
    """The controls that do something, by position, with their strengths after the balance."""
    acting = [
        (position, entry)
        for position, entry in enumerate(entries, 1)
        if not entry.is_off and (isinstance(entry.control, ControlNeXtFile) or not entry.is_blank)
    ]
    # A blank control takes no part in the mean.
    weights = iter(weights_of([entry.strength for _, entry in acting if not entry.is_blank], options.balance))
    return [
        (position, replace(entry, strength=(entry.strength if entry.is_blank else next(weights)) * options.strength))
        for position, entry in acting
    ]


def _with_lent_controls(positive: Conditioning, negative: Conditioning) -> Conditioning:
    """The negative prompt with the controls that the host would lend it, were there no stack on the positive one."""
    lent = [given["control"] for _, given in positive if given.get("control") and given.get("control_apply_to_uncond")]
    if not lent or any(given.get("control") for _, given in negative):
        return negative
    return [[text, {**given, "control": lent[index % len(lent)]}] for index, (text, given) in enumerate(negative)]


def _with_stack(
    prompt: Conditioning,
    entries: list[tuple[int, Entry]],
    rules: Rules,
    vae: Any,
    readout: Readout | None,
    stacks: dict[Any, ControlStack],
) -> Conditioning:
    """A prompt with the stack behind the controls that it has; prompts with the same controls share one."""
    result = []
    for text, given in prompt:
        previous = given.get("control")
        if previous not in stacks:
            stacks[previous] = ControlStack([_member(p, entry, vae) for p, entry in entries], rules, readout)
            stacks[previous].set_previous_controlnet(previous)
        result.append([text, {**given, "control": stacks[previous], "control_apply_to_uncond": False}])
    return result


def _member(position: int, entry: Entry, vae: Any) -> Member:
    assert entry.image is not None
    assert isinstance(entry.control, ControlBase)
    pixels = entry.image.movedim(-1, 1)  # BHWC -> BCHW
    if not isinstance(entry.control, CtrLoRAControl):  # which converts the hints that it reads
        pixels = pixels.float()
    control = entry.control.copy().set_cond_hint(pixels, entry.strength, entry.percents, vae=vae)
    masks = None if entry.mask is None else to_masks(entry.mask, "mask")
    return Member(position, control, masks, Schedule(*entry.percents, entry.curve))


def _check_control(entry: Entry, options: Options, model: ModelPatcher, vae: Any) -> None:
    """What can be seen before sampling."""
    assert isinstance(entry.control, ControlBase)
    is_plain = entry.mask is None and options.balance != "cap" and not options.is_conditional_only
    if not (is_plain or isinstance(model.model.diffusion_model, UNetModel)):
        raise ValueError(
            f"The model is of the family {type(model.model.model_config).__name__} and masks, cap, resolution_weighting and "
            "guess_mode need a UNet: switch them off, or load a checkpoint of SD1.5, SDXL or SVD."
        )
    if isinstance(entry.control, CtrLoRAControl):
        _member(0, entry, vae).control.check(model.model)
    elif entry.control.latent_format is not None and vae is None:
        raise ValueError("It reads the hint through a VAE and none is connected: connect the checkpoint's vae.")


def _attach_all(
    model: ModelPatcher, entries: list[tuple[int, Entry]], options: Options, readout: Readout | None
) -> ModelPatcher:
    """The ControlNeXts, one after the other."""
    seating = Seating(options.balance == "cap", readout)
    for position, entry in entries:
        assert isinstance(entry.control, ControlNeXtFile)
        assert entry.image is not None
        with at(position, entry):
            model = attach_controlnext(
                model,
                entry.control,
                entry.image,
                entry.strength,
                entry.percents,
                entry.mask,
                "off" if options.is_conditional_only else "auto",
                entry.curve,
                seating.at(position),
            )
    return model


def _add_notes(model: ModelPatcher, stacks: list[ControlStack], readout: Readout | None) -> None:
    """Block patches that see what the controls are added to; before those of ControlNeXts, which change it."""
    if readout is None:
        return
    for stack in stacks:
        model.set_model_input_block_patch(stack.note_encoder)
        model.set_model_output_block_patch(stack.note_decoder)
    model.add_callback_with_key(CallbacksMP.ON_PRE_RUN, readout.key, lambda _model: readout.forget())
    model.add_callback_with_key(CallbacksMP.ON_CLEANUP, readout.key, lambda _model: readout.publish())


def _add_flush(model: ModelPatcher, readout: Readout | None) -> None:
    """A block patch behind all ControlNeXts, that takes note of what they added."""
    if readout is None:
        return

    def flush(h: Tensor, skip: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
        readout.flush(options)
        return h, skip

    model.set_model_output_block_patch(flush)


def _note_other_stacks(model: ModelPatcher, positive: Conditioning) -> None:
    on_prompt = any(True for _, given in positive for _ in stacks_in(given.get("control")))
    if on_prompt or model.get_attachment(STACK):
        logger.info("A control stack is on this model or its prompts already: both act, and what they add is summed.")
