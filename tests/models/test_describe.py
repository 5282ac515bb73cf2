"""A weight file is described from its tensors."""

from __future__ import annotations

import json

import pytest
import torch
from ctrlora_files import base_weights, condition_weights, published
from host_models import GOLDENS, SHAPES, narrow_module
from nextcontrol.models.controlnet import ControlNet
from nextcontrol.models.ctrlora import read_config
from nextcontrol.models.ctrlora_file import linear_names
from nextcontrol.models.describe import describe_file, to_lines
from nextcontrol.models.extract import extract_part
from training_files import LAYERS, bundle, finetune, pretraining

FULL: dict[str, list[int]] = json.loads((GOLDENS / "ctrlora_sd15_base_shapes.json").read_text())


def empty(shapes, dtype=torch.float32):
    return {key: torch.empty(tuple(shape), dtype=dtype, device="meta") for key, shape in shapes.items()}


def full_base():
    return empty({f"control_model.{key}": shape for key, shape in FULL.items()})


def full_condition(rank=128):
    layers = linear_names(read_config(FULL))
    shapes = {f"{layer}.lora_layer.down.weight": (rank, FULL[f"{layer}.weight"][1]) for layer in layers}
    shapes |= {f"{layer}.lora_layer.up.weight": (FULL[f"{layer}.weight"][0], rank) for layer in layers}
    shapes |= {key: FULL[key] for key in FULL if "zero_convs" in key or "middle_block_out" in key or "norm" in key}
    return empty({f"control_model.{key}": shape for key, shape in shapes.items()})


def describe(tensors, metadata=None, size=1):
    return describe_file(tensors, "x.safetensors", metadata or {}, size)


def part_sizes(file):
    return {part.title: (part.tensors, part.parameters) for part in file.parts}


@pytest.mark.parametrize(("rank", "parameters"), [(32, 17_880_704), (128, 36_945_536), (512, 113_204_864)])
def test_a_condition_of_published_size_has_the_published_numbers(rank, parameters):
    """Counts from the paper's Table 1 and the sizes of the released files."""
    file = describe(full_condition(rank))
    assert (file.kind.id, file.family, file.ranks) == ("ctrlora_lora", "sd15", (rank,))
    assert (file.tensors, file.parameters) == (246, parameters)
    expected = {"LoRA": (164, rank * 198_592), "zero convolutions": (26, 11_479_680), "norms": (56, 46_080)}
    assert part_sizes(file) == expected
    assert file.problem == ""


def test_the_released_base_has_the_published_numbers_with_its_left_over_lora():
    file = describe(full_base() | full_condition())
    assert (file.kind.id, file.family, file.ranks) == ("ctrlora_base", "sd15", (128,))
    assert (file.tensors, file.parameters) == (488, 385_612_416)
    assert part_sizes(file)["body"] == (324 - 26 - 56, 348_666_880)
    plain = describe(full_base())
    assert (plain.tensors, plain.parameters, plain.ranks) == (324, 360_192_640, ())


def test_a_controlnet_of_published_size_has_the_published_numbers():
    file = describe({f"control_model.{key}": t for key, t in ControlNet(read_config(FULL), device="meta").state_dict().items()})
    assert (file.kind.id, file.family, file.problem) == ("controlnet", "sd15", "")
    assert (file.tensors, file.parameters) == (340, 361_279_120)
    expected = {"hint encoder": (16, 1_086_480), "zero convolutions": (26, 11_479_680), "body": (298, 348_712_960)}
    assert part_sizes(file) == expected


@pytest.mark.parametrize(
    ("variant", "families", "generation"),
    [
        ("sd15_v0", ("sd15",), 1),
        ("svd_v1", ("svd",), 2),
        ("sdxl", ("sd15", "sdxl", "svd"), 3),
    ],
)
def test_a_module_says_its_generation_and_what_it_may_be_for(variant, families, generation):
    tensors = empty(SHAPES[variant]["control"], torch.float16)
    file = describe(tensors)
    assert (file.families, file.generation, file.types) == (families, generation, ("fp16",))
    assert variant in file.variants
    assert file.advice == "Load it as control_file of 'Load ControlNeXt'."
    assert file.parameters == sum(tensor.numel() for tensor in tensors.values())
    assert (file.family, file.variant) == ((families[0], variant) if len(families) == 1 else (None, None))


def test_metadata_decides_where_tensors_do_not_and_only_there():
    assert describe(narrow_module(3), {"nextcontrol.variant": "sdxl_skip"}).variant == "sdxl_skip"
    assert describe(narrow_module(3), {"nextcontrol.variant": "sdxl_skip"}).family == "sdxl"
    assert describe(narrow_module(1), {"nextcontrol.variant": "sdxl"}).variant == "sd15_v0"


def test_a_bundle_is_described_by_its_two_halves():
    file = describe(bundle())
    module = narrow_module()
    assert (file.kind.id, file.generation) == ("bundle", 3)
    assert part_sizes(file) == {
        "control module": (len(module), sum(tensor.numel() for tensor in module.values())),
        "UNet": (1, 64 * 64),
    }


def test_a_training_checkpoint_is_described_by_its_parts():
    file = describe(finetune())
    assert file.kind.id == "ctrlora_checkpoint"
    assert file.ranks == (8,)
    assert {"LoRA", "zero convolutions", "norms", "body", "UNet", "VAE", "text encoder", "rest"} == set(part_sizes(file))
    assert part_sizes(file)["LoRA"][0] == 2 * len(LAYERS)
    assert part_sizes(file)["rest"] == (1, 5)
    assert file.tensors == len(finetune())


def test_a_pretraining_checkpoint_names_its_conditions():
    file = describe(pretraining())
    assert file.kind.id == "ctrlora_pretraining"
    assert file.conditions == ("hed", "canny", "normal")
    assert file.ranks == (2, 4, 8)
    assert part_sizes(file)["LoRA"][0] == 2 * len(LAYERS) * 4
    assert part_sizes(file)["norms"] == part_sizes(describe(published(base_weights())))["norms"]
    assert "Conditions: hed, canny, normal" in to_lines(file)


def test_mixed_ranks_and_types_are_all_listed():
    tensors = published(condition_weights())
    key = "control_model.time_embed.0.lora_layer"
    tensors[f"{key}.down.weight"] = torch.zeros(3, 64, dtype=torch.bfloat16)
    tensors[f"{key}.up.weight"] = torch.zeros(256, 3, dtype=torch.bfloat16)
    file = describe(tensors)
    assert file.ranks == (3, 8)
    assert file.types == ("fp32", "bf16")
    assert "Rank: 3 and 8" in to_lines(file)
    assert file.problem == ""


@pytest.mark.parametrize(
    ("tensors", "family"),
    [
        ({"down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": (320, 768)}, "sd15"),
        ({"down_blocks.2.attentions.0.transformer_blocks.9.attn2.to_k.weight": (1280, 2048)}, "sdxl"),
        ({"transformer.transformer_blocks.2.attn.to_k.lora_A.weight": (4, 3072)}, None),
        ({"conv_in.weight": (320, 4, 3, 3), "conv_in_condition.weight": (320, 4, 3, 3)}, "sdxl"),
    ],
)
def test_the_family_of_other_files_is_said_where_something_tells(tensors, family):
    assert describe(empty(tensors)).family == family


def test_the_text_has_one_fact_a_line():
    file = describe(full_condition(), {"nextcontrol.condition": "canny", "long": "word\n" * 1000}, 147_782_144)
    assert to_lines(file) == [
        "x.safetensors is a CtrLoRA LoRA.",
        "Load it with 'Load CtrLoRA'.",
        "Family: SD1.5",
        "Rank: 128",
        "Parameters: 36,945,536 in 246 tensors",
        "  LoRA: 25,419,776 in 164",
        "  zero convolutions: 11,479,680 in 26",
        "  norms: 46,080 in 56",
        "Type: fp32",
        "Size: 147.8 MB (147,782,144 bytes)",
        "Metadata:",
        f"  long: {('word ' * 40)[:200]}… (5,000 characters)",
        "  nextcontrol.condition: canny",
    ]


def test_a_module_of_several_variants_lists_them():
    lines = to_lines(describe(empty(SHAPES["sdxl"]["control"])))
    assert "Family: SD1.5 or SDXL or SVD" in lines
    assert "Variant: sd15 or sdxl or sdxl_skip or svd_v2" in lines
    assert "Generation: 3" in lines


def test_an_unknown_file_is_described_all_the_same():
    lines = to_lines(describe({"foo": torch.zeros(3, dtype=torch.int64)}))
    assert lines[0] == "x.safetensors is of an unknown kind."
    assert lines[1] == "'x.safetensors' is not a control file: it holds 'foo'. Choose another file."
    assert "Family: unknown" in lines
    assert "Parameters: 3 in 1 tensor" in lines
    assert "Type: int64" in lines


def without(tensors, *keys):
    return {key: tensor for key, tensor in tensors.items() if key not in keys}


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        (lambda: without(narrow_module(), "embedding.3.weight"), "51 of 52 keys; missing 'embedding.3.weight'"),
        (lambda: narrow_module() | {"surprise": torch.zeros(1)}, "not known 'surprise'"),
        (
            lambda: without(published(base_weights()), "control_model.time_embed.2.bias"),
            "is a CtrLoRA Base ControlNet without 'time_embed.2.bias'",
        ),
        (
            lambda: without(published(condition_weights()), "control_model.time_embed.0.lora_layer.up.weight"),
            "has half a LoRA for 'time_embed.0'",
        ),
        (
            lambda: published(condition_weights()) | {"control_model.time_embed.0.lora_layer.up.weight": torch.zeros(256, 5)},
            "does not fit the base at 'time_embed.0'",
        ),
        (
            lambda: without(pretraining(), "control_model.loras_dict.canny.3.up.weight"),
            f"has half a LoRA for '{LAYERS[3]}'",
        ),
    ],
)
def test_a_damaged_file_gets_the_sentence_of_its_loader(tensors, problem):
    file = describe(tensors())
    assert problem in file.problem
    assert f"Problem: {file.problem}" in to_lines(file)
    assert "'x.safetensors'" in file.problem


def test_what_is_extracted_describes_itself_as_whole():
    for tensors, part in ((finetune(), "lora"), (finetune(), "base"), (pretraining(), "control"), (bundle(), "control")):
        assert describe(extract_part(tensors, "x", part).tensors).problem == ""


def test_the_alpha_of_a_lora_is_said():
    layer = "control_model.middle_block.1.transformer_blocks.0.attn1.to_q"
    tensors = published(condition_weights()) | {f"{layer}.alpha": torch.tensor([4.0]), f"{layer[:-1]}k.alpha": torch.tensor(2)}
    file = describe(tensors)
    assert file.alphas == (2.0, 4.0)
    assert "Alpha: 2 and 4" in to_lines(file)
    assert file.problem == ""
    assert not any(line.startswith("Alpha") for line in to_lines(describe(published(condition_weights()))))


def test_what_others_have_written_is_short_and_printable():
    turned = "\u202ename"
    conditions = {
        f"loras_dict.{number}{turned}.0.{half}.weight": torch.zeros(1) for number in range(99) for half in ("down", "up")
    }
    metadata = {f"{number}{turned}" + "k" * 500: f"{turned}\x00" + "v" * 99_999 for number in range(500)}
    text = "\n".join(to_lines(describe(conditions, metadata)))
    assert text.replace("\n", "").isprintable()
    assert len(text) < 40_000
    assert " and 49 more" in text
    assert " and 450 more" in text
