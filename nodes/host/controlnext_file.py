"""A ControlNeXt as read from its files: what flows through the `CONTROLNEXT` socket."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import comfy.model_management
import comfy.ops
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...models.controlnext import ControlNeXtConfig, load_controlnext
from ...models.detect import (
    UnsupportedCheckpointError,
    check_module,
    describe,
    detect_kind,
    detect_unet_family,
    possible_variants,
)
from ...models.foreign import shown
from ...models.injection import FAMILY_TITLES, INJECTIONS, NORMALIZATIONS, Family, Injection
from ...models.state_dict import control_part, shapes_of, unet_part
from .files import check_weights, read_file
from .folders import CONTROLNEXT_FOLDERS, UNET_FOLDERS, find_file, fingerprint
from .managed import manage
from .unet_weights import UNetWeights

logger = logging.getLogger("nextcontrol")

NO_FILE = "none"
AUTO = "auto"
MODES = (AUTO, "replace", "delta")
"""Of UNet weights."""
_DEFAULTS: dict[Family, tuple[str, ...]] = {"sd15": ("sd15", "sd15_v0"), "sdxl": ("sdxl",), "svd": ("svd_v2", "svd_v1")}


@dataclass(eq=False)
class ControlNeXtFile:
    """A control module, not yet tied to a model."""

    name: str
    tensors: Mapping[str, Tensor]
    config: ControlNeXtConfig
    variants: tuple[str, ...]
    """The rows of `INJECTIONS` that the module can serve; one if the user or the file has chosen."""
    stem_padding: int | None
    """None for the variant's own."""
    unet: UNetWeights | None
    trained_scale: float | None = None
    """The multiplier of its training, where the file's header tells it: what strength 1 stands for."""
    is_normalized: bool = True
    """See `Injection.is_normalized`."""
    _networks: dict[tuple[int, torch.device], ModelPatcher] = field(default_factory=dict)

    @property
    def scale(self) -> float | None:
        """The learned scale, or that of the training, if the file has one."""
        return float(self.tensors["scale"]) if "scale" in self.tensors else self.trained_scale

    def variant_for(self, family: Family) -> str:
        """The variant that fits a model of a family.

        Args:
            family: Of the model it is applied to.

        Returns:
            A row of `INJECTIONS`.

        Raises:
            ValueError: None fits.
        """
        fitting = [variant for variant in self.variants if INJECTIONS[variant].family == family]
        if not fitting:
            families = " or ".join(dict.fromkeys(FAMILY_TITLES[INJECTIONS[variant].family] for variant in self.variants))
            raise ValueError(
                f"'{shown(self.name)}' is a ControlNeXt for {families} and the model is {FAMILY_TITLES[family]}: "
                f"load a {families} checkpoint, or choose a control for {FAMILY_TITLES[family]}."
            )
        return next((variant for variant in _DEFAULTS[family] if variant in fitting), fitting[0])

    def injection_for(self, family: Family) -> Injection:
        """How it meets a model of a family.

        Returns:
            The row of its variant, changed as the file says.

        Raises:
            ValueError: No variant fits.
        """
        return replace(INJECTIONS[self.variant_for(family)], is_normalized=self.is_normalized)

    def network(self, injection: Injection, device: torch.device | None = None) -> ModelPatcher:
        """The module under the host's memory management; the same object for every control that uses it."""
        padding = injection.stem_padding if self.stem_padding is None else self.stem_padding
        key = padding, device or comfy.model_management.get_torch_device()
        if key not in self._networks:
            network = load_controlnext(self.tensors, padding, comfy.ops.manual_cast)
            self._networks[key] = manage(network, self.name, is_layered=True, device=key[1])
        return self._networks[key]


def load_controlnext_file(
    control_file: str, unet_file: str, variant: str, unet_weights: str, stem_padding: str = AUTO
) -> ControlNeXtFile:
    """Read a control module and its UNet weights.

    Args:
        control_file: As chosen in the combo.
        unet_file: As chosen, or "none".
        variant: A row of `INJECTIONS`, or "auto".
        unet_weights: "replace", "delta" or "auto".
        stem_padding: "0", "1" or "auto".

    Returns:
        Checked, with every tensor accounted for.

    Raises:
        FileNotFoundError: A file is not there.
        UnsupportedCheckpointError: A file is damaged or something else.
        ValueError: A choice is unknown, or does not fit the file.
    """
    check_choice("variant", variant, (AUTO, *INJECTIONS))
    check_choice("unet_weights", unet_weights, MODES)
    check_choice("stem_padding", stem_padding, (AUTO, "0", "1"))
    state_dict, metadata = read_file(find_file(control_file, CONTROLNEXT_FOLDERS), control_file)
    tensors = control_part(state_dict)
    config = check_module(shapes_of(tensors), control_file)
    check_weights(tensors, control_file)
    padding = metadata.get("nextcontrol.stem_padding", AUTO) if stem_padding == AUTO else stem_padding
    file = ControlNeXtFile(
        control_file,
        tensors,
        config,
        _choose_variants(tensors, control_file, metadata.get("nextcontrol.variant", AUTO) if variant == AUTO else variant),
        int(padding) if padding in ("0", "1") else None,
        None if unet_file == NO_FILE else _load_unet(unet_file, unet_weights),
        _scale_in(metadata, control_file),
        _is_normalized_in(metadata, control_file),
    )
    count = sum(tensor.numel() for tensor in tensors.values())
    logger.info(
        "'%s': ControlNeXt of generation %d for %s, %d parameters",
        shown(control_file),
        config.generation,
        "/".join(file.variants),
        count,
    )
    return file


def check_choice(name: str, value: Any, options: tuple[str, ...]) -> None:
    """Refuse a value that is not among the options of a combo; older hosts do not.

    Args:
        name: Of the input.
        value: What came in.
        options: What may come in.

    Raises:
        ValueError: Naming the options.
    """
    if value not in options:
        raise ValueError(f"{name} is '{shown(value)}' and must be one of {', '.join(options)}: choose one of these.")


def _choose_variants(tensors: Mapping[str, Tensor], name: str, variant: str) -> tuple[str, ...]:
    kind = detect_kind(tensors)
    assert kind is not None  # check_module has seen to it
    possible = possible_variants(kind)
    if variant == AUTO:
        return possible
    if variant not in possible:
        raise ValueError(
            f"'{shown(name)}' is {kind.title} and cannot be used as variant '{shown(variant)}': choose "
            f"{' or '.join(possible)}, or auto."
        )
    return (variant,)


def _scale_in(metadata: Mapping[str, str], name: str) -> float | None:
    said = metadata.get("nextcontrol.scale")
    if said is None:
        return None
    try:
        scale = float(said)
    except ValueError:
        scale = math.nan
    if not math.isfinite(scale):
        raise UnsupportedCheckpointError(
            f"'{shown(name)}' says in its header that its scale is '{shown(said)}' and a number is expected: use an "
            "unmodified file."
        )
    return scale


def _is_normalized_in(metadata: Mapping[str, str], name: str) -> bool:
    said = metadata.get("nextcontrol.normalization", NORMALIZATIONS[0])
    if said not in NORMALIZATIONS:
        raise UnsupportedCheckpointError(
            f"'{shown(name)}' says in its header that its normalization is '{shown(said)}' and this version knows "
            f"{' and '.join(NORMALIZATIONS)}: update NextControl, or use an unmodified file."
        )
    return said == NORMALIZATIONS[0]


def _load_unet(name: str, mode: Any) -> UNetWeights:
    path = find_file(name, UNET_FOLDERS)
    state_dict, metadata = read_file(path, name)
    kind = detect_kind(state_dict)
    if kind is None or kind.id not in ("unet", "bundle"):
        raise UnsupportedCheckpointError(describe(shapes_of(state_dict), name, "a set of fine-tuned UNet weights"))
    tensors = unet_part(state_dict)
    check_weights(tensors, name)
    if mode == AUTO:
        mode = metadata.get("nextcontrol.unet_weights", AUTO)
        if mode not in MODES:
            raise UnsupportedCheckpointError(
                f"'{shown(name)}' says of its weights that they are '{shown(mode)}' and this version knows "
                f"{' and '.join(MODES[1:])}: update NextControl, or choose one of these as unet_weights."
            )
    return UNetWeights(name, (fingerprint(name, UNET_FOLDERS), mode), tensors, detect_unet_family(shapes_of(tensors)), mode)
