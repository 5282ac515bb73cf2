"""Describe a weight file from its tensors: what it is, how large, which node loads it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sized
from dataclasses import dataclass

import torch
from torch import Tensor

from .adapted import LORA
from .controlnet import HINT_BLOCK
from .ctrlora_file import (
    PREFIX,
    STACKED,
    alpha_value,
    base_tensors,
    check_base,
    condition_names,
    control_tensors,
    is_alpha,
    is_replaced,
    linear_names,
    read_condition,
)
from .detect import (
    MODULE_KINDS,
    Kind,
    Shapes,
    UnsupportedCheckpointError,
    check_module,
    describe,
    detect_kind,
    detect_unet_family,
    possible_variants,
)
from .foreign import shown
from .injection import FAMILY_TITLES, INJECTIONS, Family
from .state_dict import control_part, shapes_of

CTRLORA_BASES = ("ctrlora_base", "ctrlora_checkpoint", "ctrlora_pretraining")
CTRLORA_KINDS = ("ctrlora_lora", *CTRLORA_BASES)
CONTROLNEXT_KINDS = (*MODULE_KINDS, "bundle")
TYPE_NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
LONGEST = 200
"""Characters of a metadata value that are shown; some trainers put whole pictures there."""
MOST = 50
"""Of conditions, ranks and metadata that are listed."""

_BY_NAME: dict[str, Family] = {
    "interim_june": "sdxl", "interim_july": "sdxl", "ctrlora_xl_base": "sdxl", "ctrlora_xl_lora": "sdxl"
}  # fmt: skip
_PARTS = {
    "controlnext.": "control module", "controlnet.": "control module", "unet.": "UNet", "model.diffusion_model.": "UNet",
    "first_stage_model.": "VAE", "cond_stage_model.": "text encoder", "conditioner.": "text encoder",
}  # fmt: skip
_ORDER = ("LoRA", "hint encoder", "zero convolutions", "norms", "body", *dict.fromkeys(_PARTS.values()), "rest")
_DOWN = re.compile(r"(lora_layer\.|loras_dict\.[^.]+\.\d+\.)down\.weight$")


@dataclass(frozen=True)
class Part:
    """Tensors that belong together."""

    title: str
    tensors: int
    parameters: int


@dataclass(frozen=True)
class FileDescription:
    """What can be said of a weight file without running it."""

    name: str
    kind: Kind | None
    """None for a file that nobody here knows."""
    families: tuple[Family, ...]
    """Of the models it may be for; empty if nothing tells."""
    variants: tuple[str, ...]
    """Rows of `INJECTIONS` that it can serve."""
    generation: int | None
    """Of a ControlNeXt module."""
    ranks: tuple[int, ...]
    """Of the LoRA layers, each once, rising."""
    alphas: tuple[float, ...]
    """Of the LoRA layers, each once, rising; empty where none has one, and each counts as its rank."""
    conditions: tuple[str, ...]
    """Tasks of a pretraining checkpoint."""
    parts: tuple[Part, ...]
    types: tuple[str, ...]
    """Of the tensors, the commonest first."""
    size: int
    """Bytes on disk."""
    metadata: Mapping[str, str]
    advice: str
    """A sentence that names the node to load it with."""
    problem: str
    """Why our loaders refuse it, empty if they do not."""

    @property
    def family(self) -> Family | None:
        """The family, where only one is possible."""
        return self.families[0] if len(self.families) == 1 else None

    @property
    def variant(self) -> str | None:
        """The variant, where only one is possible."""
        return self.variants[0] if len(self.variants) == 1 else None

    @property
    def tensors(self) -> int:
        """How many there are."""
        return sum(part.tensors for part in self.parts)

    @property
    def parameters(self) -> int:
        """Numbers in all tensors together."""
        return sum(part.parameters for part in self.parts)


def describe_file(tensors: Mapping[str, Tensor], name: str, metadata: Mapping[str, str], size: int) -> FileDescription:
    """Say everything about a weight file that names, shapes, types and metadata tell.

    Args:
        tensors: Unwrapped; only their shapes and types are read, and the alphas of LoRAs.
        name: Of the file, as the user chose it.
        metadata: Of the file.
        size: Bytes on disk.

    Returns:
        The description.
    """
    shapes = shapes_of(tensors)
    kind = detect_kind(shapes)
    id_ = kind.id if kind else ""
    variants = _variants(control_part(shapes), metadata) if id_ in CONTROLNEXT_KINDS else ()
    own = control_tensors(tensors) if id_ in CTRLORA_KINDS else {}
    return FileDescription(
        name=name,
        kind=kind,
        families=_families(id_, shapes_of(own) or shapes, variants),
        variants=variants,
        generation=INJECTIONS[variants[0]].generation if variants else None,
        ranks=tuple(sorted({shape[0] for key, shape in shapes.items() if _DOWN.search(key) and shape})),
        alphas=_alphas(own),
        conditions=tuple(condition_names(own)),
        parts=_parts(shapes, id_),
        types=tuple(title for title, _ in Counter(map(type_name, (t.dtype for t in tensors.values()))).most_common()),
        size=size,
        metadata=metadata,
        advice=f"{kind.advice}." if kind else describe(shapes, name, "a control file"),
        problem=_problem(tensors, name, kind),
    )


def check_file(tensors: Mapping[str, Tensor], name: str, kind: Kind) -> None:
    """Make sure that one of our own files is complete, as its loader does. UNet weights are checked against a model, later.

    Args:
        tensors: Unwrapped.
        name: Of the file, for the error.
        kind: From `detect_kind`.

    Raises:
        UnsupportedCheckpointError: Something is missing, left over or of another shape.
    """
    if kind.id in CONTROLNEXT_KINDS:
        check_module(shapes_of(control_part(tensors)), name)
    if kind.id not in CTRLORA_KINDS:
        return
    own = control_tensors(tensors)
    if kind.id == "ctrlora_lora":
        read_condition(own, _shapes_behind(own), name)
        return
    base = base_tensors(own)
    config = check_base(base, name)
    shapes = shapes_of(base)
    stacked: dict[str, dict[str, Tensor]] = {condition: {} for condition in condition_names(own)}
    for key, tensor in own.items():
        if key.startswith(STACKED) and (condition := key.split(".", 2)[1]) in stacked:
            stacked[condition][key] = tensor
    read_condition({key: tensor for key, tensor in own.items() if not key.startswith(STACKED)}, shapes, name)
    layers = linear_names(config) if stacked else None
    for condition, tensors_of in stacked.items():
        read_condition(tensors_of, shapes, name, condition, layers)


def type_name(dtype: torch.dtype) -> str:
    """The short name of a type."""
    return TYPE_NAMES.get(dtype, str(dtype).removeprefix("torch."))


def to_lines(file: FileDescription) -> list[str]:
    """A description as plain text, one fact a line."""
    families = " or ".join(FAMILY_TITLES[family] for family in file.families) or "unknown"
    parts = [f"  {part.title}: {part.parameters:,} in {part.tensors}" for part in file.parts if len(file.parts) > 1]
    facts = {
        "Variant": " or ".join(file.variants),
        "Generation": str(file.generation or ""),
        "Rank": " and ".join(map(str, file.ranks[:MOST])) + _more(file.ranks),
        "Alpha": " and ".join(f"{alpha:g}" for alpha in file.alphas[:MOST]) + _more(file.alphas),
        "Conditions": ", ".join(map(shown, file.conditions[:MOST])) + _more(file.conditions),
        "Parameters": f"{file.parameters:,} in {_count(file.tensors, 'tensor')}",
    }
    return [
        f"{shown(file.name)} is {file.kind.title if file.kind else 'of an unknown kind'}.",
        file.advice,
        *([f"Problem: {file.problem}"] if file.problem else []),
        f"Family: {families}",
        *(f"{title}: {fact}" for title, fact in facts.items() if fact),
        *parts,
        f"Type: {', '.join(file.types)}",
        f"Size: {file.size / 1e6:,.1f} MB ({_count(file.size, 'byte')})",
        *(["Metadata:"] if file.metadata else []),
        *(f"  {shown(key)}: {_shortened(value)}" for key, value in sorted(file.metadata.items())[:MOST]),
        *([f" {_more(file.metadata)}"] if len(file.metadata) > MOST else []),
    ]


def _alphas(own: Mapping[str, Tensor]) -> tuple[float, ...]:
    values = (alpha_value(tensor) for key, tensor in own.items() if is_alpha(key))
    return tuple(sorted({value for value in values if value is not None}))


def _more(listed: Sized) -> str:
    return f" and {len(listed) - MOST} more" if len(listed) > MOST else ""


def _variants(module: Shapes, metadata: Mapping[str, str]) -> tuple[str, ...]:
    kind = detect_kind(module)
    if kind is None or kind.id not in MODULE_KINDS:
        return ()
    variants = possible_variants(kind)
    said = metadata.get("nextcontrol.variant")
    return (said,) if said in variants else variants


def _families(kind: str, shapes: Shapes, variants: Iterable[str]) -> tuple[Family, ...]:
    found = tuple(dict.fromkeys(INJECTIONS[variant].family for variant in variants))
    if found or kind in _BY_NAME:
        return found or (_BY_NAME[kind],)
    if not any(re.search(r"(down_blocks|input_blocks)\.", key) for key in shapes):
        return ()
    family = detect_unet_family(shapes)
    return (family,) if family else ()


def _parts(shapes: Shapes, kind: str) -> tuple[Part, ...]:
    has_prefix = any(key.startswith(PREFIX) for key in shapes)
    is_controlnet = kind == "controlnet" and any(HINT_BLOCK in key for key in shapes)  # not in diffusers' names
    counts = {title: [0, 0] for title in _ORDER}
    for key, shape in shapes.items():
        title = next((title for prefix, title in _PARTS.items() if key.startswith(prefix)), "rest")
        if (is_controlnet or kind in CTRLORA_KINDS) and key.startswith(PREFIX) == has_prefix:
            title = _controlnet_part(key) if is_controlnet else _ctrlora_part(key)
        counts[title][0] += 1
        counts[title][1] += torch.Size(shape).numel()
    return tuple(Part(title, *count) for title, count in counts.items() if count[0])


def _controlnet_part(key: str) -> str:
    if HINT_BLOCK in key:
        return "hint encoder"
    return "zero convolutions" if "zero_convs." in key or "middle_block_out." in key else "body"


def _ctrlora_part(key: str) -> str:
    if LORA in key or STACKED in key or is_alpha(key):
        return "LoRA"
    if is_replaced(key):
        return "norms" if "norm" in key else "zero convolutions"
    return "body"


def _problem(tensors: Mapping[str, Tensor], name: str, kind: Kind | None) -> str:
    if kind is None:
        return ""  # the advice has said it
    try:
        check_file(tensors, name, kind)
    except UnsupportedCheckpointError as error:
        return str(error)
    return ""


def _shapes_behind(condition: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shapes of a base that a condition fits, as far as the condition tells."""
    shapes = shapes_of(condition)
    down, up, weight = f"{LORA}down.weight", f"{LORA}up.weight", ".weight"
    for key, shape in list(shapes.items()):
        other = shapes.get(key.replace(up, down), ())
        if key.endswith(up) and len(shape) == len(other) == 2:
            shapes[key.replace(up, weight)] = (shape[0], other[1])
    return shapes


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _shortened(text: str) -> str:
    flat = " ".join(text.split())
    return shown(flat, LONGEST) if len(flat) <= LONGEST else f"{shown(flat[:LONGEST], LONGEST)}… ({len(text):,} characters)"
