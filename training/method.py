"""A method: which tensors train, how the control enters the diffusion model, and what is saved.

A method is data plus one small file: a class here for what it computes, and a recipe in `nodes/host` for what it is built from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

from torch import Tensor

from .backbone import Control

HintForm = Literal["latent", "pixels"]
Published = dict[str, dict[str, Tensor]]
"""Suffix of a file's name ("" for the main one) to its tensors, keys as published, on the CPU."""


class Method(Protocol):
    """What is trained on a diffusion model."""

    @property
    def hint_form(self) -> HintForm:
        """How it reads hints: scaled latents, or pixels in [0, 1]."""
        ...

    def parameters(self) -> dict[str, Tensor]:
        """What is trained, by name, in a fixed order: fp32 tensors that take gradients, the same objects each time."""
        ...

    def rate_factor(self, name: str) -> float:
        """Learning rate of a tensor, as a multiple of the run's."""
        ...

    def control(self, noisy: Tensor, hints: Tensor, times: Tensor, context: Tensor, condition: str) -> Control:
        """The control of some hints, with the weights as they are now.

        Args:
            noisy: (B, 4, h, w), as the diffusion model sees it.
            hints: (B, ...), in the method's form.
            times: (B,), as the diffusion model sees them.
            context: (B, L, D), text.
            condition: Of the hints, where there are several.

        Returns:
            For `Backbone.predict`.
        """
        ...

    def published(self, tensors: Mapping[str, Tensor]) -> Published:
        """The files that the loaders read.

        Args:
            tensors: The trained tensors by the names of `parameters`, or an average of them.

        Returns:
            Copies on the CPU.
        """
        ...
