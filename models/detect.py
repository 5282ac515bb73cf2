"""Say what a weight file is, from the names and shapes of its tensors: one ordered table.

Sources of the key names: dvlab-research/ControlNeXt@ab4b3ac, xyfJASON/ctrlora@b4422b4,
limerenceaid/CtrLoRA-XL@cc6d322, Comfy-Org/ComfyUI 0.3.64.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from .controlnext import GENERATIONS, ControlNeXt, ControlNeXtConfig, read_config
from .foreign import first_line, shown, some
from .injection import Family, variants_of
from .state_dict import shapes_of

Shapes = Mapping[str, tuple[int, ...]]


class UnsupportedCheckpointError(ValueError):
    """A weight file is not what was asked for; the message says what it is and what to do."""


@dataclass(frozen=True)
class Kind:
    """One kind of file and the names that give it away. Every pattern is a regular expression, searched in the keys."""

    id: str
    title: str
    """Completes "'x' is …"."""
    advice: str
    """One imperative sentence without the full stop, for somebody who put it in the wrong place."""
    has_all: tuple[str, ...] = ()
    has_any: tuple[str, ...] = ()
    has_none: tuple[str, ...] = ()
    has_shapes: tuple[tuple[str, tuple[int | None, ...]], ...] = ()
    """What tensors with such names measure, where their shapes are known; None is any number."""

    def matches(self, text: str, values: Mapping[str, object]) -> bool:
        """Whether the keys, one per line in `text`, and the shapes of their tensors fit."""

        def found(pattern: str) -> bool:
            return re.search(pattern, text, re.MULTILINE) is not None

        return (
            all(map(found, self.has_all))
            and (not self.has_any or any(map(found, self.has_any)))
            and not any(map(found, self.has_none))
            and all(_has_shape(values, pattern, shape) for pattern, shape in self.has_shapes)
        )


_MODULE = (r"^down_res\.0\.conv1\.weight$", r"^mid_convs\.1\.weight$", r"^time_embedding\.linear_1\.weight$")
_STEM, _THIRD, _MID_NORM = r"^embedding\.0\.weight$", r"^down_res\.2\.conv1\.weight$", r"^mid_convs\.0\.3\.weight$"
_LOAD_CONTROLNEXT = "Load it as control_file of 'Load ControlNeXt'"
_INTERIM = "Use a module published after August 2024"
_CORE_CONTROLNET = "Load it with ComfyUI's 'Load ControlNet Model'"
_XL = "Use a CtrLoRA made for SD1.5, CtrLoRA-XL is not supported"
_PEFT = r"(base_model\.model|down_blocks|mid_block)\..*\.lora_[AB]\."
_XL_IN = r"^(base_model\.model\.)?conv_in\.weight$"
_XL_CONDITION = r"^(base_model\.model\.)?conv_in_condition\.weight$"
_LATENT = (None, 4, 3, 3)
_CTRLORA_IN = r"^(control_model\.)?input_blocks\.0\.0\.weight$"
_CTRLORA_OUT = r"^(control_model\.)?middle_block_out\.0\.weight$"

KINDS: tuple[Kind, ...] = (
    Kind(
        "controlnext_g1", "a ControlNeXt module (SD1.5 of June 2024)", _LOAD_CONTROLNEXT,
        has_all=(*_MODULE, "^scale$"), has_none=(_STEM, _MID_NORM),
    ),
    Kind(
        "controlnext_g2", "a ControlNeXt module (SVD v1)", _LOAD_CONTROLNEXT,
        has_all=(*_MODULE, _STEM, _THIRD, "^scale$"),
    ),
    Kind(
        "controlnext_g3", "a ControlNeXt module (SD1.5, SDXL or SVD v2)", _LOAD_CONTROLNEXT,
        has_all=(*_MODULE, _STEM, _MID_NORM), has_none=(_THIRD,),
    ),
    Kind(
        "interim_june", "an interim ControlNeXt SDXL module of June 2024", _INTERIM,
        has_all=(*_MODULE, _MID_NORM), has_none=(_STEM,),
    ),
    Kind(
        "interim_july", "an interim ControlNeXt SDXL module of July 2024", _INTERIM,
        has_all=(*_MODULE, _STEM, _THIRD), has_none=("^scale$",),
    ),
    Kind(
        "controlnext_sd3", "a third-party ControlNeXt encoder for SD3", "Use a module for SD1.5, SDXL or SVD",
        has_any=(r"^control_image_embed\.",),
    ),
    Kind(
        "bundle", "raw ControlNeXt trainer output (module and UNet in one file)", _LOAD_CONTROLNEXT,
        has_all=(r"^controlne(xt|t)\.", r"^unet\."),
    ),
    # It reads the masked latent and the mask beside the noisy latent, in one convolution: TencentARC/BrushNet.
    Kind(
        "brushnet", "a BrushNet", "Load it with a pack that has a BrushNet loader",
        has_any=(r"^(module\.)?brushnet_(down|mid|up)_block",),
    ),
    # diffusers and PEFT names. XL is another network: it sees the noisy latent too, limerenceaid/CtrLoRA-XL@cc6d322.
    Kind(
        "ctrlora_xl_base", "a CtrLoRA-XL Base ControlNet", _XL,
        has_all=(_XL_IN, _XL_CONDITION), has_shapes=((_XL_IN, _LATENT), (_XL_CONDITION, _LATENT)),
    ),
    Kind(
        "ctrlora_xl_lora", "a PEFT adapter as CtrLoRA-XL has them", _XL,
        has_all=(r"\.lora_[AB]\.",), has_none=(rf"^(?!{_PEFT}).+$", r"\bup_blocks\."),
    ),
    Kind("control_lora", "a Control-LoRA", _CORE_CONTROLNET, has_any=("^lora_controlnet$",)),
    Kind("lllite", "a ControlNet-LLLite", "Load it with a pack that has an LLLite loader", has_any=("^lllite_",)),
    Kind(
        "controlnet", "a stock ControlNet", _CORE_CONTROLNET,
        has_any=(r"input_hint_block\.0\.weight$", r"controlnet_cond_embedding\.", r"^controlnet_blocks\."),
    ),
    Kind(
        "ctrlora_pretraining", "a CtrLoRA pretraining checkpoint (a base and several conditions)",
        "Load its base with 'Load CtrLoRA Base' and one of its conditions with 'Load CtrLoRA'",
        has_any=(r"^(control_model\.)?loras_dict\.",),
    ),
    Kind(
        "ctrlora_checkpoint", "a CtrLoRA training checkpoint (a full checkpoint with its control network)",
        "Load its base with 'Load CtrLoRA Base' and its LoRA with 'Load CtrLoRA'",
        has_all=(r"^model\.diffusion_model\.", _CTRLORA_IN, _CTRLORA_OUT),
    ),
    Kind(
        "ctrlora_base", "a CtrLoRA Base ControlNet", "Load it with 'Load CtrLoRA Base'",
        has_all=(_CTRLORA_IN, _CTRLORA_OUT), has_none=(r"^model\.diffusion_model\.",),
    ),
    Kind(
        "ctrlora_lora", "a CtrLoRA LoRA", "Load it with 'Load CtrLoRA'",
        has_all=(r"lora_layer\.down\.weight$",), has_none=(_CTRLORA_IN,),
    ),
    Kind(
        "t2i_adapter", "a T2I-Adapter", _CORE_CONTROLNET,
        has_any=(r"^(adapter\.)?body\.0\.(in_conv|resnets|block1)\.",),
    ),
    Kind(
        "checkpoint", "a full checkpoint", "Load it with ComfyUI's 'Load Checkpoint'",
        has_all=(r"^model\.diffusion_model\.",), has_any=(r"^first_stage_model\.", r"^cond(itioner|_stage_model)\."),
    ),
    Kind(
        "lora", "a LoRA", "Load it with ComfyUI's 'Load LoRA'",
        has_any=(r"\.lora_(up|down|A|B)\.", r"^lora_(unet|te)", r"\.(hada_w1_a|lokr_w1)$"),
    ),
    Kind(
        "unet", "a set of fine-tuned UNet weights", "Load it as unet_file of 'Load ControlNeXt'",
        has_any=(
            r"^(unet\.)?(down_blocks|up_blocks)\.\d+\.(attentions|resnets)\.", r"^(unet\.)?mid_block\.",
            r"^((model\.)?diffusion_model\.)?(input_blocks|output_blocks)\.\d+\.\d+\.", r"^middle_block\.\d+\.",
        ),
        has_none=(r"(encoder|decoder)\.", "^(post_)?quant_conv", r"^zero_convs\."),
    ),
    Kind("vae", "a VAE", "Load it with ComfyUI's 'Load VAE'", has_any=(r"(^|\.)decoder\.(conv_in|up)\.",)),
    Kind("clip", "a text or image encoder", "Load it with ComfyUI's 'Load CLIP'", has_any=(r"(text|vision)_model\.",)),
)  # fmt: skip

MODULE_KINDS = ("controlnext_g1", "controlnext_g2", "controlnext_g3")
_CONTEXT = re.compile(r"attn2\.to_[kv](\.lora_layer\.down)?\.weight$")


def detect_kind(keys: Mapping[str, object]) -> Kind | None:
    """The first kind of `KINDS` that fits, or None for a file nobody here knows."""
    text = "\n".join(key for key in keys if isinstance(key, str))
    return next((kind for kind in KINDS if kind.matches(text, keys)), None)


def _has_shape(values: Mapping[str, object], pattern: str, wanted: tuple[int | None, ...]) -> bool:
    known = [value for key, value in values.items() if value is not None and re.search(pattern, key)]
    shapes: list[tuple[int, ...]] = [tuple(getattr(value, "shape", value)) for value in known]  # type: ignore[arg-type]
    return all(
        len(shape) == len(wanted) and all(want in (None, side) for side, want in zip(shape, wanted, strict=True))
        for shape in shapes
    )


def possible_variants(kind: Kind) -> tuple[str, ...]:
    """The rows of `INJECTIONS` that a control module of this kind can serve."""
    return variants_of(MODULE_KINDS.index(kind.id) + 1)


def detect_unet_family(shapes: Shapes) -> Family | None:
    """The family of a UNet's or a ControlNet's weights in diffusers or ldm names, or None if nothing tells."""
    text = "\n".join(shapes)
    if re.search(r"temporal_|time_mixer|time_stack|time_pos_embed", text):
        return "svd"
    if re.search(r"transformer_blocks\.[2-9]\.|add_embedding\.", text):
        return "sdxl"
    widths = {shape[0] for key, shape in shapes.items() if "to_out.0.weight" in key and shape}
    contexts = {shape[1] for key, shape in shapes.items() if _CONTEXT.search(key) and len(shape) > 1}
    # Only SD1.5 attends at 320 channels, or to text of width 768.
    if 320 in widths or 768 in contexts:
        return "sd15"
    return "sdxl" if 2048 in contexts else None


def describe(shapes: Shapes, name: str, wanted: str) -> str:
    """One sentence about a file that is not what was wanted: what it is, or what it is nearest to.

    Args:
        shapes: Of the file, unwrapped.
        name: Of the file, as the user chose it.
        wanted: What the slot is for, with its article.

    Returns:
        A sentence in the form of STYLE.md.
    """
    kind = detect_kind(shapes)
    if kind is not None:
        return f"'{shown(name)}' is {kind.title}, not {wanted}. {kind.advice}."
    overlap, title = max((sum(key in shapes for key in keys) / len(keys), title) for title, keys in _published().items())
    if overlap > 0.5:
        return _compare(shapes, _published()[title], name, title)
    sample = some(list(shapes)[:2]) or "no tensors"
    return f"'{shown(name)}' is not {wanted}: it holds {sample}. Choose another file."


def check_module(shapes: Shapes, name: str) -> ControlNeXtConfig:
    """Make sure that every tensor of a control module is there, is known and fits the others.

    Args:
        shapes: Of the file, unwrapped and without a prefix.
        name: Of the file, for the error.

    Returns:
        The configuration that `load_controlnext` will build.

    Raises:
        UnsupportedCheckpointError: It is another kind of file, or an incomplete one.
    """
    kind = detect_kind(shapes)
    if kind is None or kind.id not in MODULE_KINDS:
        raise UnsupportedCheckpointError(describe(shapes, name, "a ControlNeXt module"))
    try:
        config = read_config(shapes)
        expected = shapes_of(ControlNeXt(config, device="meta").state_dict())
    except (KeyError, IndexError) as error:
        raise UnsupportedCheckpointError(_compare(shapes, _published()[kind.title], name, kind.title)) from error
    except ValueError as error:
        raise UnsupportedCheckpointError(
            f"'{shown(name)}' is {kind.title} whose channels do not divide into its groups ({first_line(error)}): use an "
            "unmodified file."
        ) from error
    except (TypeError, RuntimeError, OverflowError) as error:  # sizes that torch cannot count
        raise UnsupportedCheckpointError(
            f"'{shown(name)}' is {kind.title} of impossible sizes: the file is damaged, download it again."
        ) from error
    if expected.keys() != shapes.keys():
        raise UnsupportedCheckpointError(_compare(shapes, list(expected), name, kind.title))
    for key, shape in expected.items():
        if shape != shapes[key]:
            raise UnsupportedCheckpointError(
                f"'{shown(name)}' is {kind.title} with '{key}' of shape {shapes[key]}, where the others ask for {shape}: "
                "the file is damaged, download it again."
            )
    return config


@cache
def _published() -> dict[str, list[str]]:
    """The keys of the published modules, by title."""
    titles = {kind.id: kind.title for kind in KINDS}
    return {titles[id_]: list(ControlNeXt(GENERATIONS[i], device="meta").state_dict()) for i, id_ in enumerate(MODULE_KINDS)}


def _compare(shapes: Shapes, keys: list[str], name: str, title: str) -> str:
    missing = [key for key in keys if key not in shapes]
    known = set(keys)
    unknown = [key for key in shapes if key not in known]
    found = f"{len(keys) - len(missing)} of {len(keys)} keys"
    return (
        f"Unknown control file '{shown(name)}': nearest is {title}, {found}{_listed('missing', missing)}"
        f"{_listed('not known', unknown)}; use a complete, unmodified file."
    )


def _listed(lead: str, keys: Iterable[str]) -> str:
    listed = some(keys)
    return f"; {lead} {listed}" if listed else ""
