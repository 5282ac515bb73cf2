"""Every type of hint by name: what nodes, tests and dataset making go through."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_type_hints

from torch import Tensor

from .blur import blur
from .boxes import boxes
from .canny import canny
from .color_prompt import color_prompt
from .depth import depth
from .grayscale import grayscale
from .hed import hed, sketch
from .illusion import illusion
from .inpaint import inpaint
from .jpeg import jpeg
from .lineart import lineart, lineart_anime
from .lines import lines
from .normal import normal
from .normal_bae import normal_bae
from .openpose import openpose
from .outpaint import outpaint
from .palette import palette
from .pixel import pixel
from .pose_detect import pose
from .segment import segment
from .shuffle import shuffle
from .soft_edge import anyline, pidinet, teed


@dataclass(frozen=True)
class Preprocessor:
    """One type of hint."""

    make: Callable[..., Tensor]
    """(frames, resolution, **options) to hints; where `task` is set (frames, resolution, annotator, **options)."""
    task: str = ""
    """What the annotator that it needs was trained for, a key of `annotator.TASKS`, or which one of controlnet-aux it is, a
    key of `aux_detector.DETECTORS`; empty if it needs no weights."""
    background: Literal["black", "white", ""] = ""
    """Usual ground of a line or mask hint, by which an inverted one is found; empty for full pictures."""
    is_random: bool = False
    """Takes a `seed`."""
    annotators: Mapping[str, str] = field(default_factory=dict)
    """Tasks of further networks, by the argument that takes each."""
    hints: Mapping[str, str] = field(default_factory=dict)
    """Types of the hints that it draws on, by the argument that takes each."""


PREPROCESSORS: Mapping[str, Preprocessor] = {
    "canny": Preprocessor(canny, background="black"),
    "palette": Preprocessor(palette),
    "pixel": Preprocessor(pixel, is_random=True),
    "grayscale": Preprocessor(grayscale),
    "color_prompt": Preprocessor(color_prompt, background="white", is_random=True, hints={"lines": "lineart_anime"}),
    "blur": Preprocessor(blur),
    "jpeg": Preprocessor(jpeg),
    "illusion": Preprocessor(illusion),
    "shuffle": Preprocessor(shuffle, is_random=True),
    "inpaint": Preprocessor(inpaint, is_random=True),
    "outpaint": Preprocessor(outpaint),
    "depth": Preprocessor(depth, "depth"),
    "normal": Preprocessor(normal, "depth"),
    "segment": Preprocessor(segment, "segmentation"),
    "boxes": Preprocessor(boxes, "detection"),
    "hed": Preprocessor(hed, "hed", background="black"),
    "sketch": Preprocessor(sketch, "hed", background="white", is_random=True),
    "pidinet": Preprocessor(pidinet, "pidinet", background="black"),
    "teed": Preprocessor(teed, "teed", background="black"),
    "anyline": Preprocessor(anyline, "teed", background="black"),
    "lineart": Preprocessor(lineart, "lineart", background="white"),
    "lineart_coarse": Preprocessor(lineart, "lineart_coarse", background="white"),
    "lineart_anime": Preprocessor(lineart_anime, "lineart_anime", background="white"),
    "lines": Preprocessor(lines, "mlsd", background="black"),
    "normal_bae": Preprocessor(normal_bae, "normal_bae"),
    "pose": Preprocessor(pose, "pose", background="black", annotators={"detector": "detection"}),
    "openpose": Preprocessor(openpose, "openpose", background="black"),
}


def options_of(name: str) -> dict[str, Any]:
    """What a type of hint can be asked for beside `resolution` and `seed`.

    Args:
        name: A key of `PREPROCESSORS`.

    Returns:
        The kind of each option by its name, which is that of the node's input: bool, int, float or a Literal.
    """
    make = PREPROCESSORS[name].make
    kinds = get_type_hints(make)
    plain = [
        key for key, row in inspect.signature(make).parameters.items() if isinstance(row.default, bool | int | float | str)
    ]
    return {key: kinds[key] for key in plain if key not in {"resolution", "seed"}}
