"""Every bad input gets one sentence before sampling starts, and the graph stays usable."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from host_models import narrow_module
from narrow import apply, control_for, hints, narrow_model, predict, save
from nextcontrol.models.detect import UnsupportedCheckpointError
from nextcontrol.models.torch_file import TorchFile
from nextcontrol.nodes.host.controlnext_file import load_controlnext_file
from nextcontrol.nodes.host.hints import check_image, to_masks
from rounding import assert_same_but_for_rounding

UNET_KEY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0.weight"


def load(name, unet="none", variant="auto", mode="auto", padding="auto"):
    return load_controlnext_file(name, unet, variant, mode, padding)


def folder(base_folder: Path) -> Path:
    path = base_folder / "models" / "controlnext"
    path.mkdir(parents=True, exist_ok=True)
    return path


def vectors(*keys: str) -> dict[str, torch.Tensor]:
    return {key: torch.zeros(4) for key in keys}


OTHERS = {
    "a stock ControlNet, not a ControlNeXt module. Load it with ComfyUI's 'Load ControlNet Model'": vectors(
        "control_model.input_hint_block.0.weight", "control_model.input_blocks.0.0.weight"
    ),
    "a stock ControlNet, not": vectors("controlnet_cond_embedding.conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"),
    "a T2I-Adapter": vectors("body.0.in_conv.weight"),
    "a Control-LoRA": vectors("lora_controlnet", "input_blocks.1.0.in_layers.2.up"),
    "a CtrLoRA Base ControlNet, not a ControlNeXt module. Load it with 'Load CtrLoRA Base'": vectors(
        "control_model.input_blocks.0.0.weight", "control_model.middle_block_out.0.weight"
    ),
    "a CtrLoRA LoRA, not a ControlNeXt module. Load it with 'Load CtrLoRA'": vectors(
        "control_model.time_embed.0.lora_layer.down.weight", "control_model.zero_convs.0.0.weight"
    ),
    "a ControlNet-LLLite": vectors("lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.cond_emb.weight"),
    "a LoRA, not": vectors("lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight"),
    "a full checkpoint": vectors("model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.decoder.conv_in.weight"),
    "a set of fine-tuned UNet weights, not a ControlNeXt module. Load it as unet_file": vectors(UNET_KEY),
    "a VAE": vectors("decoder.conv_in.weight"),
    "a text or image encoder": vectors("text_model.embeddings.token_embedding.weight"),
    "a third-party ControlNeXt encoder for SD3": vectors("control_image_embed.proj.weight"),
    "not a ControlNeXt module: it holds 'bar', 'foo'. Choose another file": vectors("foo", "bar"),
}


@pytest.mark.parametrize("sentence", OTHERS)
def test_a_file_of_another_kind_is_named_in_both_slots(sentence, base_folder):
    name = save(base_folder, f"other{list(OTHERS).index(sentence)}.safetensors", OTHERS[sentence])
    with pytest.raises(UnsupportedCheckpointError) as error:
        load(name)
    assert f"'{name}' is " in str(error.value)
    assert sentence in str(error.value)
    control = control_for(base_folder).name
    if "UNet" not in sentence:
        with pytest.raises(UnsupportedCheckpointError, match=r"not a set of fine-tuned UNet weights"):
            load(control, unet=name)


def test_a_control_in_the_unet_slot_is_named(base_folder):
    name = control_for(base_folder).name
    with pytest.raises(UnsupportedCheckpointError, match=r"is a ControlNeXt module .*Load it as control_file"):
        load(name, unet=name)


def test_an_incomplete_module_is_compared_with_the_nearest(base_folder):
    tensors = narrow_module()
    del tensors["mid_convs.1.weight"], tensors["mid_convs.1.bias"]
    name = save(base_folder, "incomplete.safetensors", tensors)
    expected = r"nearest is a ControlNeXt module .*, 50 of 52 keys; missing 'mid_convs.1.weight', 'mid_convs.1.bias'"
    with pytest.raises(UnsupportedCheckpointError, match=expected):
        load(name)
    tensors = {key: tensor for key, tensor in narrow_module().items() if not key.startswith("embedding.3")}
    name = save(base_folder, "without_stem.safetensors", tensors)
    with pytest.raises(
        UnsupportedCheckpointError, match=r"50 of 52 keys; missing 'embedding.3.weight', 'embedding.3.bias'; use"
    ):
        load(name)


def test_a_module_with_something_extra_or_misshapen_is_refused(base_folder):
    name = save(base_folder, "extra.safetensors", narrow_module() | vectors("surprise"))
    with pytest.raises(UnsupportedCheckpointError, match=r"52 of 52 keys; not known 'surprise'"):
        load(name)
    name = save(base_folder, "misshapen.safetensors", narrow_module() | {"down_res.1.norm1.weight": torch.zeros(7)})
    with pytest.raises(
        UnsupportedCheckpointError, match=r"'down_res.1.norm1.weight' of shape \(7,\), where the others ask for \(32,\)"
    ):
        load(name)


def test_a_module_whose_channels_do_not_divide_is_refused(base_folder):
    tensors = narrow_module() | {f"mid_convs.0.{i}.{kind}": torch.zeros(60) for i in (2, 4) for kind in ("weight", "bias")}
    tensors |= {f"mid_convs.0.{i}.weight": torch.zeros(60, 60, 3, 3) for i in (0, 3)}
    name = save(base_folder, "undivided.safetensors", tensors)
    with pytest.raises(UnsupportedCheckpointError, match="do not divide into its groups"):
        load(name)


@pytest.mark.parametrize("length", [0, 7, 5000])
@pytest.mark.parametrize("extension", ["safetensors", "bin"])
def test_a_truncated_file_is_refused(length, extension, base_folder):
    path = folder(base_folder) / f"truncated{length}.{extension}"
    whole = folder(base_folder) / f"whole.{extension}"
    if extension == "bin":
        torch.save(narrow_module(), whole)
    else:
        save(base_folder, whole.name, narrow_module())
    path.write_bytes(whole.read_bytes()[:length])
    with pytest.raises(UnsupportedCheckpointError, match=rf"'{path.name}' .*download it again"):
        load(path.name)


class Bomb:
    """A pickle that leaves a file behind when it is run."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("as_torch", [True, False])
def test_code_in_a_pickle_is_refused_and_never_run(as_torch, base_folder, tmp_path):
    path, trace = folder(base_folder) / f"bomb{as_torch}.bin", tmp_path / "ran"
    if as_torch:
        torch.save({"weight": Bomb(trace)}, path)
    else:
        path.write_bytes(pickle.dumps({"weight": Bomb(trace)}))
    with pytest.raises(UnsupportedCheckpointError, match=r"holds code, which is never run"):
        load(path.name)
    assert not trace.exists()


def test_pickles_of_tensors_and_wrapped_files_load(base_folder):
    tensors = narrow_module()
    wrapped = {
        "plain.bin": tensors,
        "nested.pt": {"state_dict": tensors, "epoch": 3},
        "parallel.pth": {f"module.{key}": tensor for key, tensor in tensors.items()},
        "compiled.bin": {f"_orig_mod.module.{key}": tensor for key, tensor in tensors.items()},
        "raw.bin": {f"controlnext.{key}": tensor for key, tensor in tensors.items()}
        | {f"unet.{UNET_KEY}": torch.zeros(64, 64)},
        "raw_parallel.bin": {f"controlnet.module.{key}": tensor for key, tensor in tensors.items()}
        | {f"unet.{UNET_KEY}": torch.zeros(64, 64)},
    }
    expected = predict(apply(narrow_model(), control_for(base_folder), hints()))
    for name, content in wrapped.items():
        torch.save(content, folder(base_folder) / name)
        control = load(name, unet=name if name.startswith("raw") else "none", mode="delta")
        assert_same_but_for_rounding(predict(apply(narrow_model(), control, hints())), expected)


def test_a_pickle_that_would_need_many_copies_of_itself_is_not_begun(base_folder, monkeypatch):
    numbers = torch.zeros(1024, 1024)
    torch.save({str(number): numbers.T for number in range(200)}, folder(base_folder) / "copies.bin")
    monkeypatch.setattr(TorchFile, "tensor", lambda *_: pytest.fail("it is read"))
    with pytest.raises(UnsupportedCheckpointError, match=r"'copies.bin' .* 838860800 bytes together and the file has 4"):
        load("copies.bin")


def test_nothing_but_numbers_is_refused(base_folder):
    torch.save({"epoch": 3}, folder(base_folder) / "numbers.bin")
    with pytest.raises(UnsupportedCheckpointError, match=r"'numbers.bin' holds no tensors"):
        load("numbers.bin")
    torch.save([torch.zeros(3)], folder(base_folder) / "list.bin")
    with pytest.raises(UnsupportedCheckpointError, match=r"'list.bin'"):
        load("list.bin")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value, base_folder):
    tensors = narrow_module()
    tensors["mid_convs.1.bias"][3] = value
    name = save(base_folder, f"broken{value}.safetensors", tensors)
    with pytest.raises(UnsupportedCheckpointError, match=r"NaN or infinite values in 'mid_convs.1.bias'"):
        load(name)
    unet = save(base_folder, f"broken_unet{value}.safetensors", {UNET_KEY: torch.full((64, 64), value, dtype=torch.float16)})
    with pytest.raises(UnsupportedCheckpointError, match=rf"NaN or infinite values in '{UNET_KEY}'"):
        load(control_for(base_folder).name, unet=unet)


def test_a_missing_file_names_its_folder(base_folder, pack_nodes):
    with pytest.raises(
        FileNotFoundError, match=r"'absent.safetensors' is not in any of models/controlnext, models/controlnet: put it"
    ):
        load("absent.safetensors")
    answer = pack_nodes["NextControlLoadControlNeXt"].validate_inputs("absent.safetensors", "none")
    assert "put it into models/controlnext" in answer
    assert pack_nodes["NextControlLoadControlNeXt"].validate_inputs(control_for(base_folder).name, "none") is True


EMPTY = {
    ("NextControlLoadControlNeXt", "control_file"): ("models/controlnext or models/controlnet", {"unet_file": "none"}),
    ("NextControlLoadCtrLoRABase", "base_file"): ("models/ctrlora or models/controlnet", {}),
    ("NextControlInspectFile", "file"): ("models/controlnext or models/ctrlora or models/controlnet or", {}),
    ("NextControlConvertFile", "file"): ("models/controlnext or models/ctrlora or models/controlnet or", {"name": ""}),
}


@pytest.mark.parametrize(("node_id", "combo"), EMPTY)
def test_a_combo_without_any_file_says_where_to_put_one(node_id, combo, pack_nodes, monkeypatch):
    from nextcontrol.nodes.host import folders

    monkeypatch.setattr(folders.folder_paths, "get_filename_list", lambda _: [])
    node = pack_nodes[node_id]
    (shown,) = next(spec for spec in node.define_schema().inputs if spec.id == combo).options
    places, others = EMPTY[node_id, combo]
    first = places.split(" ")[0]
    assert shown == f"no file yet: put one into {first}"
    answer = node.validate_inputs(**{combo: shown}, **others)
    assert answer.startswith(f"There is no weight file in {places}")
    assert answer.endswith(f"put one into {first}, press R on the canvas and choose it.")


def test_no_combo_of_files_is_ever_empty(pack_nodes, monkeypatch):
    from nextcontrol.nodes.host import folders

    monkeypatch.setattr(folders.folder_paths, "get_filename_list", lambda _: [])
    for node_id, node in pack_nodes.items():
        for spec in node.define_schema().inputs:
            assert getattr(spec, "options", True), (node_id, spec.id)


def test_both_path_separators_find_a_file(base_folder):
    (folder(base_folder) / "sub").mkdir(exist_ok=True)
    save(base_folder, "sub/deep.safetensors", narrow_module())
    assert load("sub\\deep.safetensors").variants == load("sub/deep.safetensors").variants


@pytest.mark.parametrize(
    ("generation", "variant", "choices"), [(3, "sd15_v0", "sd15 or sdxl"), (1, "sdxl", "sd15_v0"), (2, "svd_v2", "svd_v1")]
)
def test_a_variant_that_the_file_cannot_be_is_refused(generation, variant, choices, base_folder):
    name = save(base_folder, f"narrow_{generation}_0.safetensors", narrow_module(generation))
    with pytest.raises(ValueError, match=rf"cannot be used as variant '{variant}': choose {choices}"):
        load(name, variant=variant)


def test_unknown_choices_are_refused(base_folder, pack_nodes):
    name = control_for(base_folder).name
    with pytest.raises(ValueError, match=r"variant is 'sd3' and must be one of auto, sd15"):
        load(name, variant="sd3")
    with pytest.raises(ValueError, match=r"unet_weights is 'add'"):
        load(name, mode="add")
    with pytest.raises(ValueError, match=r"stem_padding is '2'"):
        load(name, padding="2")
    with pytest.raises(ValueError, match=r"uncond is 'maybe'"):
        pack_nodes["NextControlApplyControlNeXt"].execute(
            narrow_model(), control_for(base_folder), hints(), 1.0, 0.0, 1.0, None, "maybe"
        )


def test_a_control_on_a_model_of_another_family_is_refused(base_folder):
    for variant, family, sentence in [
        ("sd15_v0", "sdxl", "is a ControlNeXt for SD1.5 and the model is SDXL"),
        ("svd_v1", "sd15", "is a ControlNeXt for SVD and the model is SD1.5"),
        ("sd15_v0", "svd", "is a ControlNeXt for SD1.5 and the model is SVD"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            apply(narrow_model(family), control_for(base_folder, variant), hints())
    forced = load(control_for(base_folder).name, variant="sdxl")
    with pytest.raises(ValueError, match=r"is a ControlNeXt for SDXL and the model is SD1.5: load a SDXL checkpoint"):
        apply(narrow_model(), forced, hints())


def test_a_control_of_another_width_is_refused(base_folder):
    wide = narrow_module() | {"mid_convs.1.weight": torch.zeros(320, 64, 1, 1), "mid_convs.1.bias": torch.zeros(320)}
    name = save(base_folder, "wide_control.safetensors", wide)
    with pytest.raises(ValueError, match=r"makes controls of 320 channels and this SD1.5 model has 64"):
        apply(narrow_model(), load(name), hints())


def test_a_family_without_controlnext_is_refused(base_folder):
    model = narrow_model().clone()
    config = model.model.model_config
    context_dim, config.unet_config["context_dim"] = config.unet_config["context_dim"], 1024
    try:
        with pytest.raises(ValueError, match=r"ControlNeXt exists for SD1.5, SDXL, SVD"):
            apply(model, control_for(base_folder), hints())
    finally:
        config.unet_config["context_dim"] = context_dim


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (torch.zeros(1, 64, 96, 4), r"image has 4 channels \(RGB with alpha\) and RGB is expected: drop the alpha"),
        (torch.zeros(1, 64, 96, 1), r"image has 1 channels \(grayscale\)"),
        (torch.zeros(1, 64, 1, 3), r"image is 1x64 pixels and each side needs 8 or more"),
        (torch.zeros(0, 64, 96, 3), r"image has no frames \(0, 64, 96, 3\)"),
        (torch.zeros(64, 96, 3), r"image has the shape \(64, 96, 3\)"),
        (torch.full((1, 64, 96, 3), float("nan")), r"image has NaN or infinite pixels"),
    ],
)
def test_a_hint_that_cannot_be_read_is_refused(image, sentence, base_folder, pack_nodes):
    for call in (
        lambda: check_image(image, "image"),
        lambda: apply(narrow_model(), control_for(base_folder), image),
        lambda: pack_nodes["NextControlCanny"].execute(image, 64, 100, 200),
    ):
        with pytest.raises(ValueError, match=sentence):
            call()


def test_a_mask_that_cannot_be_read_is_refused():
    with pytest.raises(ValueError, match=r"mask has the shape \(1, 2, 3, 4\)"):
        to_masks(torch.zeros(1, 2, 3, 4), "mask")
    with pytest.raises(ValueError, match=r"mask has the shape \(0, 3, 4\)"):
        to_masks(torch.zeros(0, 3, 4), "mask")
    with pytest.raises(ValueError, match=r"mask has NaN"):
        to_masks(torch.full((3, 4), float("nan")), "mask")


def test_a_bad_input_leaves_the_model_usable(base_folder):
    model = narrow_model()
    before = predict(model)
    with pytest.raises(ValueError, match="alpha"):
        apply(model, control_for(base_folder), torch.zeros(1, 64, 96, 4))
    assert torch.equal(predict(model), before)
