"""Weight files that say anything, through every node that reads one: each is one sentence or plain text."""

from __future__ import annotations

import json

import pytest
import torch
from ctrlora_files import base_weights, condition_weights, load_small_base, published
from host_models import narrow_module
from hostile_weights import archive, described, entry, headed, named, put, saved
from narrow import control_for
from nextcontrol.models.detect import UnsupportedCheckpointError
from nextcontrol.models.weight_bounds import MOST_TENSORS
from nextcontrol.nodes.host.controlnext_file import load_controlnext_file
from nextcontrol.nodes.host.convert import convert_file
from nextcontrol.nodes.host.ctrlora_load import load_base, load_condition
from nextcontrol.nodes.host.inspect_file import inspect_file
from safetensors.torch import save
from training_files import UNET_KEY, pretraining

TURNED = "\u202e"
MODULE = narrow_module()
FIRST = "embedding.0.weight"
BASE, LORA = published(base_weights()), published(condition_weights())
QUERY = "control_model.middle_block.1.transformer_blocks.0.attn1.to_q.lora_layer"
ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0.attn2"
ITSELF: dict[str, object] = {}
ITSELF["state_dict"] = ITSELF
HALF = torch.quantize_per_tensor(MODULE[FIRST], 0.1, 0, torch.qint8)
FILES = {
    "itself.ckpt": lambda: saved(ITSELF),
    "prefixes.ckpt": lambda: saved({"module." * 150_000 + "weight": torch.zeros(1)}),
    "repeated.pt": lambda: archive(named(described(b"J\xff\xff\xff\x7f", b"K\x00")), {"data/0": bytes(16)}),
    "repeated a little.pt": lambda: saved(MODULE | {FIRST: torch.ones(1).expand(MODULE[FIRST].shape)}),
    "many.safetensors": lambda: headed({f"b.{n}": entry((0,), "F32", (0, 0)) for n in range(MOST_TENSORS + 1)}),
    "many.pt": lambda: saved(dict.fromkeys(map(str, range(MOST_TENSORS + 1)), torch.zeros(1))),
    "many conditions.pt": lambda: saved(
        pretraining()
        | {f"control_model.loras_dict.c{n}.0.{h}.weight": torch.zeros(1) for n in range(1500) for h in ("down", "up")}
    ),
    "tuples.pt": lambda: saved({("a", 1): torch.zeros(1), 2: torch.zeros(1)}),
    "numbers.pt": lambda: saved({7: torch.zeros(1), **MODULE}),
    "lines.pt": lambda: saved(MODULE | {"a\nlora_controlnet": torch.zeros(1)}),
    "turned.safetensors": lambda: save(BASE | {f"control_model.{TURNED}x": torch.zeros(1)}),
    "long.safetensors": lambda: save(MODULE | {"x" * 100_000: torch.zeros(1)}),
    "sparse.pt": lambda: saved(MODULE | {FIRST: MODULE[FIRST].to_sparse()}),
    "quantized.pt": lambda: saved(MODULE | {FIRST: HALF}),
    "meta.pt": lambda: saved(MODULE | {FIRST: MODULE[FIRST].to("meta")}),
    "nested.pt": lambda: saved({UNET_KEY: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])}),
    "complex.pt": lambda: saved(MODULE | {FIRST: MODULE[FIRST] * 1j}),
    "whole numbers.pt": lambda: saved({key: tensor.to(torch.int16) for key, tensor in MODULE.items()}),
    "whole base.pt": lambda: saved({key: tensor.long() for key, tensor in BASE.items()}),
    "whole lora.safetensors": lambda: save(LORA | {f"{QUERY}.up.weight": LORA[f"{QUERY}.up.weight"].int()}),
    "points.pt": lambda: saved(dict.fromkeys((f"{ATTENTION}.to_k.weight", f"{ATTENTION}.to_out.0.weight"), torch.tensor(1.0))),
    "points of a lora.pt": lambda: saved(LORA | {f"{QUERY}.down.weight": torch.tensor(1.0)}),
    "a number too large.pt": lambda: saved(BASE | {f"control_model.input_blocks.{'9' * 200}.0.weight": torch.zeros(1)}),
    "stacked.pt": lambda: saved(pretraining() | {"control_model.loras_dict.hed.x.down.weight": torch.zeros(1)}),
    "a list.pt": lambda: saved([torch.zeros(1)]),
    "a text.pt": lambda: saved("x"),
    "metadata of numbers.safetensors": lambda: headed({"__metadata__": {"a": 1}, "x": entry()}),
    "a thousand sides.safetensors": lambda: headed({"x": entry([1] * 1000, place=[0, 4])}),
    "said.safetensors": lambda: save(MODULE, {"nextcontrol.variant": f"{TURNED}\n" + "1" * 9000}),
    "said of a scale.safetensors": lambda: save(MODULE, {"nextcontrol.scale": f"{TURNED}\n" + "1" * 9000}),
    "another mode.safetensors": lambda: save({UNET_KEY: torch.zeros(2, 2)}, {"nextcontrol.unet_weights": TURNED + "x" * 9000}),
}  # fmt: skip


def said_by(call):
    """What a call is refused with, if that is a sentence; empty where it is not refused."""
    refusal = None
    try:
        call()
    except (ValueError, FileNotFoundError) as error:
        refusal = error
    text = str(refusal or "")
    assert type(refusal) in (type(None), UnsupportedCheckpointError, ValueError, FileNotFoundError), repr(refusal)
    assert text.isprintable()
    assert len(text) < 600
    assert text.endswith("." if text else "")
    return text


@pytest.mark.parametrize("file", FILES)
def test_a_file_that_says_anything_is_one_sentence_or_plain_text(file, base_folder, caplog):
    name = f"hostile {file}"
    path = put(base_folder / "models" / "controlnet", name, FILES[file]())
    module, base = control_for(base_folder).name, load_small_base(base_folder)
    texts: list[str] = []
    refusals = [
        said_by(lambda: texts.append(inspect_file(name))),
        said_by(lambda: convert_file(name, "all", "keep", f"hostile new {file}")),
        said_by(lambda: convert_file(name, "auto", "fp16", f"hostile half {file}", "hed")),
        said_by(lambda: load_controlnext_file(name, "none", "auto", "auto")),
        said_by(lambda: load_controlnext_file(module, name, "auto", "auto")),
        said_by(lambda: load_base(name, True, 0)),
        said_by(lambda: load_condition(base, name, "")),
        said_by(lambda: load_condition(base, name, f"hed{TURNED}\n\ud800")),
    ]
    path.unlink()
    assert any(refusals)
    for text in (*texts, *(record.getMessage() for record in caplog.records)):
        assert text.replace("\n", "").isprintable()
        assert max(map(len, text.split("\n"))) < 1000
    if file.startswith(("whole", "complex", "sparse", "quantized", "meta", "repeated", "numbers", "long", "lines", "turned")):
        assert all(refusals[1:]), refusals


def test_metadata_that_is_carried_over_can_be_read_again(base_folder):
    told = {"author": "two\nlines\tä", "odd": f"{TURNED}\x00x", f"na{TURNED}me": "x", "n" * 500: "x", "modelspec.title": "y"}
    header = json.loads((whole := save(MODULE, told))[8 : 8 + int.from_bytes(whole[:8], "little")])
    name = put(base_folder / "models" / "controlnext", "told.safetensors", whole).name
    made = convert_file(name, "all", "keep", "told again")
    kept = json.loads(
        (again := (base_folder / "models" / "controlnext" / made).read_bytes())[8 : 8 + int.from_bytes(again[:8], "little")]
    )
    kept = {key: value for key, value in kept["__metadata__"].items() if not key.startswith("nextcontrol.")}
    assert header["__metadata__"] == told
    assert kept == {"author": "two\nlines\tä", "odd": "??x", "modelspec.title": "y"}
    text = inspect_file(name)
    assert "odd: ??x" in text
    assert text.replace("\n", "").isprintable()


def test_a_base_that_comes_through_a_link_is_checked_when_it_is_there(pack_nodes):
    for node, inputs in {
        "NextControlLoadCtrLoRABase": ("base_file",),
        "NextControlLoadCtrLoRA": ("lora_file",),
        "NextControlLoadControlNeXt": ("control_file", "unet_file"),
        "NextControlInspectFile": ("file",),
        "NextControlConvertFile": ("file", "name"),
    }.items():
        linked = dict.fromkeys(inputs)
        assert pack_nodes[node].validate_inputs(**linked) is True
        pack_nodes[node].fingerprint_inputs(**linked)
        assert isinstance(pack_nodes[node].validate_inputs(**dict.fromkeys(inputs, f"gone{TURNED}\ud800")), str)
        assert isinstance(
            pack_nodes[node].validate_inputs(**dict.fromkeys(inputs, 7) | ({"name": ""} if "name" in inputs else {})), str
        )
