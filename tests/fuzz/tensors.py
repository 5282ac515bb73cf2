"""Damage to what a file of tensors holds: keys, types, forms, shapes, values, nesting, and what is no tensor."""

from __future__ import annotations

import argparse
import collections
import io
import os
import random
import warnings
from pathlib import Path
from typing import Any

import torch
from fuzz.damage import BLOCKS, WORDS
from torch import Tensor

ATTENTION = (
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0.weight",
    "control_model.input_blocks.1.1.attn2.to_k.weight",
    "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", "unet.mid_block.attentions.0.attn2.to_v.weight",
    "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_out.0.weight", "attn2.to_k.lora_layer.down.weight",
    "control_model.loras_dict.x.0.down.weight", "time_embed.0.weight", "scale", "embedding.0.weight",
    "down_res.0.conv1.weight",
)  # fmt: skip
OTHERS = (
    "lora_unet_down_blocks_0.lora_up.weight", "lllite_unet.0", "body.0.in_conv.weight", "decoder.conv_in.weight",
    "lora_controlnet",
    "text_model.encoder.x", "input_hint_block.0.weight", "conv_in_condition.weight", "brushnet_down_blocks.0.weight",
    "base_model.model.down_blocks.0.lora_A.weight", "control_image_embed.0", "controlnet_blocks.0.weight",
    "first_stage_model.decoder.conv_in.weight", "cond_stage_model.x", "up_blocks.0.resnets.0.conv1.weight", "x.alpha",
)  # fmt: skip
_TYPES = ("int64", "int32", "int16", "int8", "uint8", "uint16", "uint64", "bool", "complex64", "float64", "float16", "bfloat16",
          "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu")  # fmt: skip


class Evil:
    """Runs something when it is read by a reader that runs code."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.answer = call, arguments

    def __reduce__(self) -> Any:
        return self.answer


def damage_tensors(tensors: dict[Any, Any], draw: random.Random, outside: Path) -> tuple[str, Any]:
    """Change what a file holds.

    Args:
        tensors: By key.
        draw: What decides.
        outside: Where code would leave its mark.

    Returns:
        What was done, and what to save.
    """
    kept: dict[Any, Any] = dict(tensors)
    key = draw.choice(list(kept))
    kind = draw.choice((
        "keys", "keys", "other keys", "type", "type", "form", "form", "0-d", "shape", "shape", "dropped", "added",
        "values", "values",
        "foreign", "nested", "itself", "code", "blocks", "huge number", "whole", "odd scale",
    ))  # fmt: skip
    some = draw.sample(list(kept), draw.choice((1, 1, min(4, len(kept)), len(kept))))
    if kind == "keys":
        word = draw.choice(WORDS)
        kept[draw.choice((word, key + word, word + key))] = kept.pop(key)
    elif kind == "other keys":
        kept[draw.choice((0, None, 3.5, (1, 2), b"bytes", frozenset(), True, 10**40))] = kept[key]
    elif kind == "type":
        name = draw.choice(_TYPES)
        kept |= {one: _typed(kept[one], name) for one in some}
        kind = name
    elif kind == "form":
        kind, change = draw.choice(FORMS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kept |= {one: change(kept[one]) for one in some}
    elif kind == "0-d":
        kept[draw.choice([*ATTENTION, *some])] = torch.tensor(draw.choice((1.0, 0.0, float("nan"))))
    elif kind == "shape":
        kept |= {one: _shaped(kept[one], draw) for one in some}
    elif kind == "dropped":
        kept = {one: value for one, value in kept.items() if one not in some} or {key: kept[key]}
    elif kind == "added":
        kept |= {
            draw.choice(ATTENTION + OTHERS): torch.ones(draw.choice(((), (0,), (4,), (4, 4), (2, 2, 3, 3)))) for _ in range(3)
        }
    elif kind == "values":
        value = draw.choice((float("nan"), float("inf"), -float("inf"), 1e38, 7e4, 1e-45, 0.0))
        kept |= {one: _filled(kept[one], value, draw) for one in some}
    elif kind == "foreign":
        kept[draw.choice((key, "epoch", "state_dict", "model", "module"))] = draw.choice((
            1, "text", None, [1, 2], {"a": 1}, [torch.ones(2)], {}, {"x": torch.ones(2)}, (torch.ones(1),), 2**70,
        ))  # fmt: skip
    elif kind == "nested":
        for _ in range(draw.choice((1, 2, 5, 150))):
            kept = {draw.choice(("state_dict", "model", "module")): kept} | draw.choice(({}, {"epoch": 1}, {"model": {}}))
    elif kind == "itself":
        kept[draw.choice(("state_dict", "model", "module", key))] = kept
    elif kind == "code":
        mark = str(outside / "ran")
        kept[draw.choice((key, "more"))] = draw.choice((
            Evil(os.system, f"touch {mark}"), Evil(Path.touch, Path(mark)), Evil(os.mkdir, mark), Evil(exec, "x"),
            Evil(torch.load, mark), argparse.Namespace(a=1), Path(mark), io.StringIO("x"), collections.Counter(a=1),
        ))  # fmt: skip
    elif kind == "blocks":
        pattern, shared = draw.choice(BLOCKS), torch.ones(draw.choice(((1,), (1, 1), (1, 1, 1, 1))))
        kept |= {pattern.format(number): shared for number in range(draw.choice((200, 3000, 20_000)))}
    elif kind == "huge number":
        number = draw.choice((10**6, 10**9, 10**18, 10**30, "9" * 4301, -1, "٣", "1_0", "0x1"))
        kept[draw.choice(BLOCKS).format(number)] = kept[key]
    elif kind == "whole":
        return "the whole", draw.choice(
            (None, 1, "text", [kept], torch.ones(3), {}, {"a": 1}, (kept,), {"state_dict": []}, [[[]]])
        )
    else:
        kept[draw.choice(("scale", "controlnext.scale"))] = draw.choice((
            torch.ones(2), torch.ones(0), torch.ones(1, 1), *map(torch.tensor, (1, 1j, True, 1e300))
        ))  # fmt: skip
    return kind, kept


def _typed(tensor: Tensor, name: str) -> Tensor:
    dtype = getattr(torch, name, torch.int32)
    return (
        tensor.detach().to(dtype) if not name.startswith("uint") or name == "uint8" else tensor.detach().abs().long().to(dtype)
    )


def _shaped(tensor: Tensor, draw: random.Random) -> Tensor:
    flat = tensor.detach().reshape(-1)
    chosen = draw.randrange(7)
    if chosen == 0:
        return flat
    if chosen == 1:
        return flat[:0].reshape([0] * draw.randrange(1, 5))
    if chosen == 2:
        return tensor.T.contiguous() if tensor.ndim == 2 else tensor[None]
    if chosen == 3:
        return flat[:1].reshape(())
    if chosen == 4:
        return torch.cat([tensor, tensor]) if tensor.ndim else tensor[None, None]
    if chosen == 5:
        return flat.reshape([*tensor.shape, 1])
    return flat.reshape([1] * draw.choice((3, 30, 63)) + list(tensor.shape[:1]) + [-1]) if flat.numel() else tensor


def _filled(tensor: Tensor, value: float, draw: random.Random) -> Tensor:
    changed = tensor.detach().clone()
    if changed.numel() and changed.is_floating_point():
        changed.view(-1)[draw.randrange(changed.numel())] = value
    return changed


FORMS = (
    ("sparse", lambda t: t.detach().to_sparse()),
    ("sparse rows", lambda t: t.detach().to_sparse_csr() if t.ndim == 2 else t.detach().to_sparse()),
    ("quantized", lambda t: torch.quantize_per_tensor(t.detach().float(), 0.1, 0, torch.qint8)),
    ("meta", lambda t: t.detach().to("meta")),
    ("parameter", torch.nn.Parameter),
    ("stride 0", lambda t: torch.zeros(1).expand(t.shape or (1,))),
    ("stride 0, huge", lambda _: torch.zeros(1).expand(10**5, 10**5)),
    ("stride 0, beyond counting", lambda _: torch.zeros(1).expand(2**31, 2**31)),
    ("overlapping", lambda _: torch.ones(8).as_strided((4, 4), (1, 1))),
    ("part of more", lambda t: torch.zeros(4 * max(1, t.numel()))[: t.numel()].reshape(t.shape)),
    ("turned", lambda t: t.detach().flip(0).T if t.ndim == 2 else t.detach()),
    ("conjugate", lambda t: t.detach().to(torch.complex64).conj()),
    ("nested", lambda _: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])),
    ("buffer", torch.nn.Buffer),
)
"""Tensors that are not plain ones."""
