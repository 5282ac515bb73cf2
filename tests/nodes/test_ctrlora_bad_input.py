"""Every file that is or is not CtrLoRA's, through the loaders: the right tensors are used, and the rest gets one sentence."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from ctrlora_files import (
    SHAPES,
    GivenLatents,
    base_weights,
    condition_weights,
    load_small_base,
    numbered,
    published,
    run_control,
)
from host_models import build_model
from narrow import narrow_model, save
from nextcontrol.models.adapted import LORA
from nextcontrol.models.ctrlora import CtrLoRA, read_config
from nextcontrol.models.ctrlora_file import is_replaced, linear_names
from nextcontrol.models.detect import UnsupportedCheckpointError
from nextcontrol.models.state_dict import shapes_of
from rounding import assert_same_but_for_rounding
from seeded import seeded_tensor

QUERY = "middle_block.1.transformer_blocks.0.attn1.to_q"
STOCK = {"control_model.input_hint_block.0.weight": torch.zeros(4), "control_model.input_blocks.0.0.weight": torch.zeros(4)}


@pytest.fixture
def load(pack_nodes, base_folder):
    """The two loaders in a row, as a graph has them; tensors in place of a name are saved first."""

    def named(tensors: Any, name: str) -> str:
        return save(base_folder, f"bad_{name}.safetensors", tensors, folder="ctrlora") if isinstance(tensors, dict) else tensors

    def load(name: str, base: Any = None, lora: Any = "none", condition: str = "", embedded: bool = False) -> Any:
        base = named(published(base_weights()), "base") if base is None else named(base, f"{name}_base")
        loaded = pack_nodes["NextControlLoadCtrLoRABase"].execute(base, embedded, 0)[0]
        lora = named(lora, f"{name}_lora")
        return pack_nodes["NextControlLoadCtrLoRA"].execute(loaded, lora, 1.0, condition)[0]

    return load


def results(control: Any) -> list[torch.Tensor]:
    applied = control.copy().set_cond_hint(numbered(0), 1.0, vae=GivenLatents("hint_latent"))
    found = run_control(applied, build_model("ctrlora"), seeded_tensor("context", [1, 7, 96]), torch.tensor([3.0]))
    return [*found["output"], *found["middle"]]


def assert_same(one: Any, other: Any) -> None:
    for a, b in zip(results(one), results(other), strict=True):
        assert_same_but_for_rounding(a, b)


def assert_different(one: Any, other: Any) -> None:
    assert any((a - b).abs().max() > 1e-3 for a, b in zip(results(one), results(other), strict=True))


def folder(base_folder: Path) -> Path:
    path = base_folder / "models" / "ctrlora"
    path.mkdir(parents=True, exist_ok=True)
    return path


# Files that are used


def test_a_left_over_lora_in_the_base_is_ignored_and_not_required(load):
    left_over = {key: tensor for key, tensor in condition_weights("other.").items() if LORA in key}
    released = published(base_weights() | left_over)
    assert_same(load("left_over", released), load("clean"))
    lora = published(condition_weights())
    assert_same(load("left_over", released, lora), load("clean", None, lora))


def test_the_embedded_lora_is_the_same_lora_from_a_file(load):
    extracted = published(base_weights() | condition_weights())
    own = load("extracted", extracted, embedded=True)
    assert_same(own, load("apart", None, published(condition_weights())))
    assert_different(own, load("extracted", extracted))


def test_another_lora_takes_the_place_of_the_embedded_one(load):
    extracted = published(base_weights() | condition_weights())
    lora = published(condition_weights("other."))
    found, expected = (results(load("other", extracted, lora, embedded=embedded)) for embedded in (True, False))
    assert all(map(torch.equal, found, expected))


def test_a_base_without_a_lora_has_none_to_embed(load):
    with pytest.raises(ValueError, match=r"'bad_base.safetensors' has no LoRA of its own: switch embedded_lora off\."):
        load("clean", embedded=True)


def checkpoint() -> dict[str, torch.Tensor]:
    """What a finetuning run writes: everything of SD beside the control network, with names that a filter could take."""
    return published(base_weights() | condition_weights()) | {
        "model.diffusion_model.input_blocks.0.0.weight": torch.full((64, 4, 3, 3), float("nan")),
        f"model.diffusion_model.{QUERY.replace('attn1.to_q', 'norm1')}.weight": torch.full((128,), 9.0),
        "first_stage_model.encoder.norm_out.weight": torch.ones(128),
        "cond_stage_model.transformer.text_model.final_layer_norm.weight": torch.ones(768),
        "logvar": torch.zeros(1000),
    }


@pytest.mark.parametrize("extension", ["safetensors", "ckpt"])
def test_a_training_checkpoint_serves_as_base_and_as_lora(extension, load, base_folder):
    name = f"training.{extension}"
    if extension == "ckpt":
        torch.save({"state_dict": checkpoint(), "epoch": 3, "global_step": 7}, folder(base_folder) / name)
    else:
        save(base_folder, name, checkpoint(), folder="ctrlora")
    expected = load("apart", None, published(condition_weights()))
    assert_same(load("", name, name), expected)
    assert_same(load("", name, "none", embedded=True), expected)
    assert_same(load("training", None, name), expected)


def test_a_full_parameter_finetune_is_used_without_a_lora(load):
    weights = base_weights(seed=3)
    network = CtrLoRA(read_config(shapes_of(weights)), device="meta")
    network.load_state_dict(weights, assign=True)
    latent = seeded_tensor("hint_latent", [2, 4, 8, 12])[:1]
    timestep = build_model("ctrlora").get_model_object("model_sampling").timestep(torch.tensor([3.0]))
    expected = network(latent, timestep, seeded_tensor("context", [1, 7, 96]), heads=4)
    for found, one in zip(results(load("finetune", published(weights))), expected, strict=True):
        assert_same_but_for_rounding(found, one)


def test_ranks_may_differ_from_layer_to_layer(load):
    mixed, padded = condition_weights(), condition_weights()
    for layer in {key.partition(LORA)[0] for key in mixed if LORA in key and "attn" in key}:
        down, up = f"{layer}{LORA}down.weight", f"{layer}{LORA}up.weight"
        mixed[down], mixed[up] = mixed[down][:3], mixed[up][:, :3]
        padded[up] = padded[up] * (torch.arange(8) < 3)
    mixed_control, padded_control = load("mixed", None, published(mixed)), load("padded", None, published(padded))
    for one, other in zip(results(mixed_control), results(padded_control), strict=True):
        assert_same_but_for_rounding(one, other)
    assert_different(mixed_control, load("apart", None, published(condition_weights())))


# Pretraining checkpoints

LAYERS = linear_names(read_config({key: tuple(shape) for key, shape in SHAPES.items()}))


def pretraining(**conditions: str) -> dict[str, torch.Tensor]:
    """A base, several numbered LoRAs, and what the last of them leaves under its published names."""
    tensors = base_weights()
    for task, prefix in conditions.items():
        weights = condition_weights(prefix)
        for i, layer in enumerate(LAYERS):
            for half in ("down", "up"):
                tensors[f"loras_dict.{task}.{i}.{half}.weight"] = weights[f"{layer}{LORA}{half}.weight"]
        tensors |= {key: tensor.clone() for key, tensor in weights.items() if LORA in key}
    return published(tensors)


def test_layers_are_numbered_as_the_reference_registers_them():
    """Specification of the files: time embedding, then block by block, feed-forward before the attention to the text."""
    transformer = [
        "attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2",
        "attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0",
    ]  # fmt: skip
    expected = ["time_embed.0", "time_embed.2"]
    for block in ("input_blocks.1", "input_blocks.3", "middle_block"):
        expected += [f"{block}.0.emb_layers.1", *(f"{block}.1.transformer_blocks.0.{name}" for name in transformer)]
    assert [*expected, "middle_block.2.emb_layers.1"] == LAYERS


def test_a_condition_of_a_pretraining_checkpoint_is_the_same_lora_from_a_file(load):
    both = pretraining(canny="condition0.", depth="condition1.")
    for task, prefix in (("canny", "condition0."), ("depth", "condition1.")):
        # Pretraining shares zero convolutions and norms among its conditions: they are the base's.
        lora = {key: tensor for key, tensor in condition_weights(prefix).items() if LORA in key}
        shared = {key: tensor for key, tensor in base_weights().items() if is_replaced(key)}
        expected = load(f"cut_{task}", None, published(lora | shared))
        assert_same(load("pretraining", both, both, task), expected)
        assert_same(load("pretraining", None, both, task), expected)
    assert_same(load("pretraining", both), load("clean"))


@pytest.mark.parametrize("condition", ["", "segmentation"])
def test_a_pretraining_checkpoint_lists_its_conditions(condition, load):
    both = pretraining(canny="condition0.", depth="condition1.")
    sentence = rf"holds 2 conditions and condition is '{condition}': set it to one of canny, depth\.$"
    with pytest.raises(ValueError, match=sentence):
        load("pretraining", None, both, condition)


def test_a_pretraining_checkpoint_of_a_larger_base_is_refused(load):
    tensors = pretraining(canny="condition0.")
    tensors |= {
        f"control_model.loras_dict.canny.{len(LAYERS)}.{half}.weight": torch.zeros(shape)
        for half, shape in (("down", (8, 64)), ("up", (64, 8)))
    }
    with pytest.raises(UnsupportedCheckpointError, match=rf"does not fit the base at 'loras_dict.canny.{len(LAYERS)}'"):
        load("larger", None, tensors, "canny")


# Files in the wrong place

WRONG_BASE = {
    r"is a stock ControlNet, not a CtrLoRA Base ControlNet\. Load it with ComfyUI's 'Load ControlNet Model'": STOCK,
    r"is a CtrLoRA-XL Base ControlNet, not .*CtrLoRA-XL is not supported": {
        key: torch.zeros(8, 4, 3, 3) for key in ("conv_in.weight", "conv_in_condition.weight")
    },
    r"is a Control-LoRA, not a CtrLoRA Base ControlNet": {"lora_controlnet": torch.zeros(4)},
    r"is not a CtrLoRA Base ControlNet: it holds 'bar', 'foo'\. Choose another file": {
        "foo": torch.zeros(4), "bar": torch.zeros(4),
    },
}  # fmt: skip


@pytest.mark.parametrize("sentence", WRONG_BASE)
def test_a_file_of_another_kind_is_named_in_both_slots(sentence, load):
    number = list(WRONG_BASE).index(sentence)
    with pytest.raises(UnsupportedCheckpointError, match=sentence):
        load(f"kind{number}", WRONG_BASE[sentence])
    with pytest.raises(UnsupportedCheckpointError, match=sentence.replace("a CtrLoRA Base ControlNet", "a CtrLoRA LoRA")):
        load(f"kind{number}", None, WRONG_BASE[sentence])


def test_a_lora_in_the_slot_of_the_base_names_the_right_node(load):
    with pytest.raises(
        UnsupportedCheckpointError, match=r"is a CtrLoRA LoRA, not a CtrLoRA Base ControlNet\. Load it with 'Load CtrLoRA'\."
    ):
        load("swapped", published(condition_weights()))


def test_a_base_in_the_slot_of_the_lora_names_the_right_node(load):
    with pytest.raises(UnsupportedCheckpointError, match=r"is a CtrLoRA Base ControlNet: load it with 'Load CtrLoRA Base' and"):
        load("swapped", None, published(base_weights()))


def test_the_base_itself_is_no_condition_of_its_own(load):
    released = published(base_weights() | condition_weights("other."))
    with pytest.raises(UnsupportedCheckpointError, match=r"is the base itself, .* as lora_file, or none with embedded_lora"):
        load("itself", released, "bad_itself_base.safetensors")


# Damaged files


@pytest.mark.parametrize("half", ["up", "down"])
def test_half_a_lora_is_refused(half, load):
    tensors = condition_weights()
    del tensors[f"{QUERY}{LORA}{half}.weight"]
    with pytest.raises(UnsupportedCheckpointError, match=rf"has half a LoRA for '{QUERY}': it is damaged, download it again\."):
        load(f"half_{half}", None, published(tensors))


def test_a_condition_without_zero_convolutions_takes_the_bases_and_says_so(load, caplog):
    lora = {key: tensor for key, tensor in condition_weights().items() if LORA in key}
    shared = {key: tensor for key, tensor in base_weights().items() if is_replaced(key)}
    whole = load("with_shared", None, published(lora | shared))
    assert "lacks" not in caplog.text
    assert_same(load("lora_alone", None, published(lora)), whole)
    assert f"'bad_lora_alone_lora.safetensors' lacks {len(shared)} tensors such as" in caplog.text


@pytest.mark.parametrize("kind", ["weight", "bias"])
def test_half_a_zero_convolution_is_refused(kind, load):
    tensors = condition_weights()
    del tensors[f"zero_convs.1.0.{kind}"]
    with pytest.raises(UnsupportedCheckpointError, match=r"has only one of weight and bias for 'zero_convs.1.0': .*again\."):
        load(f"half_{kind}", None, published(tensors))


def test_a_condition_of_another_base_names_the_first_three_that_do_not_fit(load):
    tensors = condition_weights()
    text = [key for key in tensors if "attn2.to_k.lora_layer.down" in key or "attn2.to_v.lora_layer.down" in key]
    assert len(text) == 6
    for key in text:
        tensors[key] = torch.zeros(8, 1024)
    first = ", ".join(f"'{key.partition(LORA)[0]}'" for key in text[:3]).replace(".", r"\.")
    with pytest.raises(UnsupportedCheckpointError, match=rf"does not fit the base at {first} and 3 more: use the base that"):
        load("other_width", None, published(tensors))


@pytest.mark.parametrize("key", ["zero_convs.1.0.weight", "input_blocks.1.1.norm.bias"])
def test_a_tensor_of_another_shape_is_named(key, load):
    tensors = condition_weights()
    tensors[key] = torch.zeros(7)
    with pytest.raises(UnsupportedCheckpointError, match=rf"does not fit the base at '{key}'"):
        load(f"shape_{key}", None, published(tensors))


@pytest.mark.parametrize("key", [f"input_blocks.9.0.emb_layers.1{LORA}", "zero_convs.11.0."])
def test_a_condition_of_a_larger_base_is_refused(key, load):
    halves = {"down.weight": (8, 64), "up.weight": (64, 8)} if LORA in key else {"weight": (64, 64, 1, 1), "bias": (64,)}
    tensors = condition_weights() | {f"{key}{half}": torch.zeros(shape) for half, shape in halves.items()}
    with pytest.raises(UnsupportedCheckpointError, match=rf"does not fit the base at '{key.removesuffix(LORA).strip('.')}"):
        load(f"larger_{key}", None, published(tensors))


def test_an_incomplete_base_is_refused(load):
    for name, changes, sentence in (
        ("without", {"zero_convs.2.0.bias": None}, r"without 'zero_convs.2.0.bias'"),
        ("unknown", {"zero_convs.2.0.gain": torch.zeros(4)}, r"with the unknown 'zero_convs.2.0.gain'"),
        ("misshapen", {"middle_block.1.norm.bias": torch.zeros(7)}, r"with a misshapen 'middle_block.1.norm.bias'"),
        ("cut", {"time_embed.0.weight": None}, r"is an incomplete CtrLoRA Base ControlNet \('time_embed.0.weight'\)"),
    ):
        tensors = {key: tensor for key, tensor in (base_weights() | changes).items() if tensor is not None}
        with pytest.raises(UnsupportedCheckpointError, match=rf"{sentence}.*: use a complete, unmodified file\."):
            load(name, published(tensors))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value, load):
    base = base_weights()
    base["zero_convs.2.0.bias"][3] = value
    with pytest.raises(UnsupportedCheckpointError, match=r"NaN or infinite values in 'zero_convs.2.0.bias'"):
        load(f"broken{value}", published(base))
    lora = condition_weights()
    lora[f"{QUERY}{LORA}up.weight"][3, 1] = value
    with pytest.raises(UnsupportedCheckpointError, match=rf"NaN or infinite values in '{QUERY}{LORA}up.weight'"):
        load(f"broken{value}", None, published(lora))
    embedded = published(base_weights() | {key: tensor for key, tensor in lora.items() if LORA in key})
    load(f"broken_left_over{value}", embedded)
    with pytest.raises(UnsupportedCheckpointError, match=rf"NaN or infinite values in '{QUERY}{LORA}up.weight'"):
        load(f"broken_left_over{value}", embedded, embedded=True)


@pytest.mark.parametrize("length", [0, 7, 5000])
def test_a_truncated_pickle_is_refused(length, load, base_folder):
    whole, cut = folder(base_folder) / "whole.ckpt", folder(base_folder) / f"cut{length}.ckpt"
    torch.save(published(condition_weights()), whole)
    cut.write_bytes(whole.read_bytes()[:length])
    for slots in ((cut.name, "none"), (None, cut.name)):
        with pytest.raises(UnsupportedCheckpointError, match=rf"'{cut.name}' .*download it again"):
            load("apart", *slots)


class Bomb:
    """A pickle that leaves a file behind when it is run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("as_torch", [True, False])
def test_code_in_a_pickle_is_refused_and_never_run(as_torch, load, base_folder, tmp_path):
    path, trace = folder(base_folder) / f"bomb{as_torch}.ckpt", tmp_path / "ran"
    if as_torch:
        torch.save(published(condition_weights()) | {"callback": Bomb(trace)}, path)
    else:
        path.write_bytes(pickle.dumps({"callback": Bomb(trace)}))
    for slots in ((path.name, "none"), (None, path.name)):
        with pytest.raises(UnsupportedCheckpointError, match=r"holds code, which is never run"):
            load("apart", *slots)
    assert not trace.exists()


def test_a_missing_file_names_its_folder(load, pack_nodes):
    places = "models/ctrlora, models/controlnet: put it into models/ctrlora"
    sentence = rf"'absent.ckpt' is not in any of {places}, press R on the canvas and choose it again\."
    for slots in (("absent.ckpt", "none"), (None, "absent.ckpt")):
        with pytest.raises(FileNotFoundError, match=sentence):
            load("apart", *slots)
    for node_id in ("NextControlLoadCtrLoRABase", "NextControlLoadCtrLoRA"):
        assert "put it into models/ctrlora" in pack_nodes[node_id].validate_inputs("absent.ckpt")
    assert pack_nodes["NextControlLoadCtrLoRA"].validate_inputs("none") is True


def test_an_unknown_posterior_is_refused(base_folder, pack_nodes):
    with pytest.raises(ValueError, match=r"posterior is 'mean' and must be one of mode, sample"):
        pack_nodes["NextControlLoadCtrLoRA"].execute(load_small_base(base_folder), "none", 1.0, "", "mean")


# What is wrong when sampling starts


def start(control: Any, model: Any = None, image: torch.Tensor | None = None, vae: Any = None) -> None:
    """The host's own call before the first step."""
    model = model or build_model("ctrlora")
    applied = control.copy().set_cond_hint(numbered(0) if image is None else image, 1.0, vae=vae)
    applied.pre_run(model.model, model.get_model_object("model_sampling").percent_to_sigma)


def test_a_missing_vae_is_named(load):
    with pytest.raises(ValueError, match=r"reads the hint through a VAE and none is connected: .*connect its vae\."):
        start(load("clean"))


def test_a_vae_of_another_family_is_refused(load):
    class Sixteen(GivenLatents):
        latent_channels = 16

    class Video(GivenLatents):
        latent_dim = 3

    for vae, found in (
        (Sixteen("hint_latent"), r"has 16 latent channels"),
        (Video("hint_latent"), r"has 4 latent channels for video"),
    ):
        with pytest.raises(ValueError, match=rf"The VAE {found} .*: connect the VAE of an SD1.5 checkpoint\."):
            start(load("clean"), vae=vae)


def test_a_vae_without_a_posterior_cannot_be_sampled(base_folder, pack_nodes):
    control = pack_nodes["NextControlLoadCtrLoRA"].execute(load_small_base(base_folder), "none", 1.0, "", "sample", 5)[0]
    with pytest.raises(ValueError, match=r"posterior is 'sample' and this VAE .*: set it to mode"):
        start(control, vae=GivenLatents("hint_latent"))


@pytest.mark.parametrize("family", ["sd15", "sdxl", "svd"])
def test_a_model_of_another_text_width_or_family_is_refused(family, load):
    width = {"sd15": 768, "sdxl": 2048, "svd": 1024}[family]
    sentence = rf"text of width 96 and the model is of the family \w+ \(text width {width}\): load an SD1.5"
    with pytest.raises(ValueError, match=sentence):
        start(load("clean"), narrow_model(family), vae=GivenLatents("hint_latent"))


def test_a_video_model_of_the_same_text_width_is_refused(load):
    model = narrow_model("svd")
    config = model.model.model_config.unet_config
    width, config["context_dim"] = config["context_dim"], 96
    try:
        with pytest.raises(ValueError, match=r"of the family SVD_img2vid"):
            start(load("clean"), model, vae=GivenLatents("hint_latent"))
    finally:
        config["context_dim"] = width


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (torch.zeros(1, 4, 64, 96), r"image has 4 channels \(RGB with alpha\) and RGB is expected: drop the alpha"),
        (torch.zeros(1, 1, 64, 96), r"image has 1 channels \(grayscale\)"),
        (torch.zeros(1, 3, 64, 1), r"image is 1x64 pixels and each side needs 8 or more"),
        (torch.zeros(0, 3, 64, 96), r"image has no frames"),
        (torch.full((1, 3, 64, 96), float("nan")), r"image has NaN or infinite pixels"),
    ],
)
def test_a_hint_that_cannot_be_read_is_refused(image, sentence, load):
    with pytest.raises(ValueError, match=sentence):
        start(load("clean"), image=image, vae=GivenLatents("hint_latent"))
