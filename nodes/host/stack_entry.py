"""One control of a stack, and the stack's settings, as the user gives them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from comfy.controlnet import ControlBase
from torch import Tensor

from .controlnext_file import ControlNeXtFile
from .ctrlora_control import CtrLoRAControl
from .hints import check_image, is_no_mask, real_mask, to_masks


@dataclass(frozen=True)
class Entry:
    """One control of a stack, as the user set it; without a control and a hint where it is switched off."""

    control: ControlBase | ControlNeXtFile | None
    image: Tensor | None
    """(N, H, W, 3)."""
    strength: float
    percents: tuple[float, float]
    mask: Tensor | None = None
    """(M, H, W)."""
    curve: str = "constant"

    @property
    def is_off(self) -> bool:
        """Adds nothing whatever the control is, so that control and hint need not be there."""
        return is_off(self.strength, *self.percents)

    def with_real_mask(self, position: int) -> Entry:
        """Without what loaders give in the place of a mask, which is said."""
        if self.is_off or self.image is None:
            return self
        return replace(self, mask=real_mask(self.mask, self.image, f"mask of control {position}"))

    @property
    def is_blank(self) -> bool:
        """Its mask leaves nothing; only the fine-tuned weights of a ControlNeXt are left of it."""
        return self.mask is not None and not bool((self.mask > 0).any())

    @property
    def name(self) -> str:
        """For texts: what it is, and its file where that is known."""
        if isinstance(self.control, ControlNeXtFile):
            return f"ControlNeXt {self.control.name}"
        return f"CtrLoRA {self.control.name}" if isinstance(self.control, CtrLoRAControl) else type(self.control).__name__


@dataclass(frozen=True)
class Options:
    """How the controls are put together."""

    strength: float = 1.0
    """Of the whole stack."""
    balance: str = "sum"
    is_resolution_weighted: bool = False
    is_guessed: bool = False

    @property
    def is_conditional_only(self) -> bool:
        """The negative prompt is left without control."""
        return self.is_resolution_weighted or self.is_guessed


def is_off(strength: float, start_percent: float, end_percent: float) -> bool:
    """Whether a control with these settings adds nothing."""
    return strength == 0 or start_percent >= end_percent


def check_entry(entry: Entry, position: int) -> None:
    """Refuse a control that cannot be stacked.

    Args:
        entry: As the node was given it.
        position: In the stack, from 1, for the error.

    Raises:
        ValueError: It has no control, or its hint or mask is malformed.
    """
    if entry.is_off:
        return
    if not isinstance(entry.control, ControlBase | ControlNeXtFile):
        raise ValueError(
            f"Control {position} of the stack is no control ({type(entry.control).__name__}): connect a loader whose file "
            "could be read."
        )
    if entry.image is None:
        raise ValueError(f"Control {position} of the stack ({entry.name}) has no hint: connect its image.")
    with at(position, entry):
        check_image(entry.image, "image")
        if entry.mask is not None and not is_no_mask(entry.mask, entry.image):
            masks, frames = len(to_masks(entry.mask, "mask")), len(entry.image)
            if masks > 1 and frames > 1 and masks != frames:
                raise ValueError(f"The mask has {masks} frames and the hint {frames}: use one mask, or one for each frame.")


@contextmanager
def at(position: int, entry: Entry) -> Iterator[None]:
    """Puts a control's place in the stack before any error about it."""
    try:
        yield
    except ValueError as error:
        raise type(error)(f"Control {position} of the stack ({entry.name}): {error}") from error
