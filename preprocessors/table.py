"""Every type of hint by name: what nodes, tests and dataset making go through."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from .blur import blur
from .canny import canny
from .color_prompt import color_prompt
from .grayscale import grayscale
from .illusion import illusion
from .inpaint import inpaint
from .jpeg import jpeg
from .outpaint import outpaint
from .palette import palette
from .pixel import pixel
from .shuffle import shuffle


@dataclass(frozen=True)
class Preprocessor:
    """One type of hint."""

    make: Callable[..., Tensor]
    """(frames, resolution, **options) to hints; where `task` is set (frames, resolution, annotator, **options)."""
    task: str = ""
    """What the annotator that it needs was trained for, a key of `annotator.TASKS`; empty if it needs no weights."""
    background: Literal["black", "white", ""] = ""
    """Usual ground of a line or mask hint, by which an inverted one is found; empty for full pictures."""
    is_random: bool = False
    """Takes a `seed`."""


PREPROCESSORS: Mapping[str, Preprocessor] = {
    "canny": Preprocessor(canny, background="black"),
    "palette": Preprocessor(palette),
    "pixel": Preprocessor(pixel, is_random=True),
    "grayscale": Preprocessor(grayscale),
    "color_prompt": Preprocessor(color_prompt, background="white", is_random=True),
    "blur": Preprocessor(blur),
    "jpeg": Preprocessor(jpeg),
    "illusion": Preprocessor(illusion),
    "shuffle": Preprocessor(shuffle, is_random=True),
    "inpaint": Preprocessor(inpaint, is_random=True),
    "outpaint": Preprocessor(outpaint),
}
