"""Inspect and convert through the nodes, on the real host."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import comfy.model_management
import pytest
import server
import torch
from ctrlora_files import base_weights, condition_weights, published
from host_models import narrow_module
from narrow import apply, hints, narrow_model, predict
from nextcontrol.models.describe import describe_file
from nextcontrol.models.detect import UnsupportedCheckpointError
from nextcontrol.nodes.host import convert
from nextcontrol.nodes.host.controlnext_file import load_controlnext_file
from nextcontrol.nodes.host.ctrlora_load import load_base, load_condition
from nextcontrol.nodes.host.text import show_text
from rounding import assert_same_but_for_rounding
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from training_files import RANKS, UNET_KEY, bundle, finetune, pretraining

INSPECT, CONVERT = "NextControlInspectFile", "NextControlConvertFile"


@pytest.fixture
def models(base_folder, monkeypatch) -> Path:
    """The host's model folder; what a test adds to it is gone afterwards."""
    root = base_folder / "models"
    folders = [root / kind for kind in ("controlnext", "ctrlora", "controlnet", "diffusion_models")]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    before = set(root.rglob("*"))
    yield root
    for path in sorted(set(root.rglob("*")) - before):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def put(models, name, tensors, kind="controlnext", **metadata):
    path = models / kind / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata or None)
    else:
        torch.save(tensors, path)
    return name


def files_in(models):
    return {path.relative_to(models).as_posix() for path in models.rglob("*")}


def metadata_of(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def same(found, expected):
    return found.keys() == expected.keys() and all(
        torch.equal(found[key], expected[key]) and found[key].dtype == expected[key].dtype for key in expected
    )


@pytest.fixture
def run_convert(pack_nodes):
    def run(file, part="auto", dtype="keep", name="", condition=""):
        output = pack_nodes[CONVERT].execute(file, part, dtype, name, condition)
        assert output.ui.as_dict() == {"text": (output.result[0],)}
        return output.result[0]

    return run


# Inspect


def test_a_file_is_described_on_the_node_and_as_text(models, pack_nodes):
    name = put(models, "sub/canny.ckpt", published(condition_weights()), "ctrlora")
    output = pack_nodes[INSPECT].execute(name)
    text = output.result[0]
    assert text.startswith("sub/canny.ckpt is a CtrLoRA LoRA.\nLoad it with 'Load CtrLoRA'.\n")
    assert "\nRank: 8\n" in text
    assert f"({(models / 'ctrlora' / name).stat().st_size:,} bytes)" in text
    assert output.ui.as_dict() == {"text": (text,)}


@pytest.mark.parametrize("kind", ["controlnext", "ctrlora", "controlnet", "diffusion_models"])
def test_files_of_all_folders_are_offered(kind, models, pack_nodes):
    name = put(models, f"in_{kind}.safetensors", narrow_module(), kind)
    for node in (INSPECT, CONVERT):
        spec = next(spec for spec in pack_nodes[node].GET_SCHEMA().inputs if spec.id == "file")
        assert name in spec.options
    assert "ControlNeXt module" in pack_nodes[INSPECT].execute(name).result[0]


def test_metadata_of_a_file_is_shown(models, pack_nodes):
    name = put(models, "said.safetensors", narrow_module(), author="somebody", **{"nextcontrol.variant": "sdxl"})
    text = pack_nodes[INSPECT].execute(name).result[0]
    assert "Metadata:\n  author: somebody\n  nextcontrol.variant: sdxl" in text
    assert "\nVariant: sdxl\n" in text


@pytest.mark.parametrize("extension", ["safetensors", "bin"])
@pytest.mark.parametrize("node", [INSPECT, CONVERT])
def test_a_damaged_file_gives_the_sentence_of_the_loaders(extension, node, models, pack_nodes):
    name = put(models, f"cut.{extension}", narrow_module())
    path = models / "controlnext" / name
    path.write_bytes(path.read_bytes()[:3000])
    arguments = [name] if node == INSPECT else [name, "auto", "keep", "", ""]
    sentences = []
    for call in (lambda: pack_nodes[node].execute(*arguments), lambda: load_controlnext_file(name, "none", "auto", "auto")):
        with pytest.raises(UnsupportedCheckpointError) as error:
            call()
        sentences.append(str(error.value))
    assert sentences[0] == sentences[1]


def test_a_file_that_a_loader_refuses_is_described_with_its_sentence(models, pack_nodes):
    tensors = narrow_module()
    tensors["mid_convs.1.bias"][3] = float("nan")
    broken = put(models, "nan.safetensors", tensors)
    short = put(models, "short.safetensors", {key: t for key, t in narrow_module().items() if key != "mid_convs.1.bias"})
    for name in (broken, short):
        with pytest.raises(UnsupportedCheckpointError) as error:
            load_controlnext_file(name, "none", "auto", "auto")
        assert f"Problem: {error.value}" in pack_nodes[INSPECT].execute(name).result[0].splitlines()


def test_nan_outside_the_control_network_of_a_checkpoint_is_no_problem(models, pack_nodes):
    tensors = finetune()
    tensors["cond_stage_model.transformer.text_model.x.weight"] = torch.full((2,), -float("inf"))
    assert "Problem" not in pack_nodes[INSPECT].execute(put(models, "masked.ckpt", tensors)).result[0]


def test_a_missing_file_is_named_before_anything_runs(models, pack_nodes):
    sentence = "'absent.ckpt' is not in any of models/controlnext, models/ctrlora, models/controlnet, models/diffusion_models"
    assert sentence in pack_nodes[INSPECT].validate_inputs("absent.ckpt")
    assert sentence in pack_nodes[CONVERT].validate_inputs("absent.ckpt", "")
    name = put(models, "there.safetensors", narrow_module())
    assert pack_nodes[INSPECT].validate_inputs(name) is True
    assert pack_nodes[CONVERT].validate_inputs(name, "new") is True
    assert pack_nodes[CONVERT].validate_inputs(name, None) is True
    assert "name is '../x'" in pack_nodes[CONVERT].validate_inputs(name, "../x")


@pytest.mark.parametrize("node", [INSPECT, CONVERT])
def test_a_file_that_changed_on_disk_is_read_again(node, models, pack_nodes):
    name = put(models, "changing.safetensors", narrow_module())
    arguments = {"file": name} if node == INSPECT else {"file": name, "part": "auto", "dtype": "keep", "name": ""}
    first = pack_nodes[node].fingerprint_inputs(**arguments)
    assert pack_nodes[node].fingerprint_inputs(**arguments) == first
    os.utime(models / "controlnext" / name, ns=(1, 1))
    assert pack_nodes[node].fingerprint_inputs(**arguments) != first


def test_the_choices_of_a_conversion_are_part_of_its_fingerprint(models, pack_nodes):
    name = put(models, "choices.safetensors", narrow_module())
    fingerprints = [
        pack_nodes[CONVERT].fingerprint_inputs(file=name, part="auto", dtype=dtype, name=new)
        for dtype, new in (("keep", ""), ("fp16", ""), ("keep", "x"))
    ]
    assert all(fingerprints.count(fingerprint) == 1 for fingerprint in fingerprints)


@pytest.mark.parametrize("client", ["page", None])
def test_a_line_is_sent_as_it_is_to_the_page_that_asked_for_the_job(client, monkeypatch):
    sent = []
    host = SimpleNamespace(client_id=client, send_sync=lambda *message: sent.append(message))
    monkeypatch.setattr(server.PromptServer, "instance", host, raising=False)
    text = "a: 1\n  title: <img src=x onerror=alert(1)>"
    show_text(text, "7")
    show_text("nobody asked", None)
    assert sent == ([("nextcontrol.text", {"node": "7", "text": text}, "page")] if client else [])
    monkeypatch.delattr(server.PromptServer, "instance")
    show_text("no server", "7")


def test_text_is_returned_to_the_page(models, pack_nodes):
    name = put(models, "shown.safetensors", narrow_module())
    for node, arguments in ((INSPECT, (name,)), (CONVERT, (name, "auto", "keep", "shown_too"))):
        output = pack_nodes[node].execute(*arguments)
        assert output.ui.as_dict() == {"text": output.result}


# What is written


@pytest.mark.parametrize("extension", ["bin", "safetensors"])
def test_a_converted_module_loads_and_computes_the_same(extension, models, run_convert):
    source = put(models, f"source.{extension}", narrow_module())
    name = run_convert(source, name="converted")
    assert name == "converted.safetensors"
    assert same(load_file(models / "controlnext" / name), narrow_module())
    controls = (load_controlnext_file(file, "none", "auto", "auto") for file in (name, source))
    assert_same_but_for_rounding(*(predict(apply(narrow_model(), control, hints())) for control in controls))


@pytest.mark.parametrize("generation", [1, 2, 3])
def test_every_generation_survives_bit_for_bit(generation, models, run_convert):
    tensors = narrow_module(generation)
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    name = run_convert(put(models, "generation.bin", tensors))
    assert name == "generation.safetensors"
    assert same(load_file(models / "controlnext" / name), tensors)


def test_both_halves_of_a_bundle_load(models, run_convert):
    source = put(models, "raw.bin", bundle())
    control, unet = run_convert(source), run_convert(source, "unet")
    assert (control, unet) == ("raw_control.safetensors", "raw_unet.safetensors")
    assert same(load_file(models / "controlnext" / control), narrow_module())
    assert list(load_file(models / "controlnext" / unet)) == [UNET_KEY]
    load_controlnext_file(control, unet, "auto", "delta")
    whole = run_convert(source, "all")
    assert whole == "raw.safetensors"
    load_controlnext_file(whole, whole, "auto", "delta")


def test_parts_of_a_finetune_load_as_they_were_trained(models, run_convert):
    source = put(models, "finetune.ckpt", {"state_dict": finetune(), "epoch": 3}, "ctrlora")
    base_file, lora_file = run_convert(source, "base"), run_convert(source)
    assert (base_file, lora_file) == ("finetune_base.safetensors", "finetune_lora.safetensors")
    assert same(load_file(models / "ctrlora" / lora_file), published(condition_weights()))
    base = load_base(base_file, False, 0)
    assert same(
        dict(base.network.model.state_dict()),
        base_weights() | {key: t for key, t in condition_weights().items() if key in base_weights()},
    )
    condition, _ = load_condition(base, lora_file, "")
    assert same(condition.model.tensors(), condition_weights())


@pytest.mark.parametrize("task", RANKS)
def test_a_named_condition_loads_as_out_of_its_checkpoint(task, models, run_convert):
    source = put(models, "pretraining.ckpt", {"state_dict": pretraining()}, "ctrlora")
    name = run_convert(source, condition=f" {task} ")
    assert name == f"pretraining_{task}_lora.safetensors"
    base = load_base(source, False, 0)
    extracted, direct = load_condition(base, name, "")[0], load_condition(base, source, task)[0]
    assert same(extracted.model.tensors(), direct.model.tensors())
    metadata = metadata_of(models / "ctrlora" / name)
    assert metadata["nextcontrol.rank"] == str(RANKS[task])
    assert metadata["nextcontrol.condition"] == task


@pytest.mark.parametrize(("dtype", "torch_dtype"), [("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_types_are_rounded_as_torch_does_and_integers_stay(dtype, torch_dtype, models, run_convert):
    tensors = published(condition_weights()) | {"control_model.time_embed.0.lora_layer.up.weight": torch.ones(256, 8).double()}
    name = run_convert(put(models, "typed.pt", tensors, "ctrlora"), dtype=dtype)
    assert name == f"typed_{dtype}.safetensors"
    assert same(load_file(models / "ctrlora" / name), {key: tensor.to(torch_dtype) for key, tensor in tensors.items()})


def test_all_types_and_shapes_survive_the_writer(tmp_path):
    generator = torch.Generator().manual_seed(0)
    types = list(convert._HEADER_TYPES)
    tensors = {str(dtype): torch.randint(0, 2, (3, 5), generator=generator).to(dtype) for dtype in types}
    tensors |= {"scalar": torch.tensor(2.5), "nothing": torch.zeros(0, 4), "turned": torch.arange(12.0).reshape(3, 4).T}
    tensors |= {"ümlaut": torch.ones(1, dtype=torch.uint8), "same": tensors["turned"]}
    path = tmp_path / "all.safetensors"
    with path.open("wb") as stream:
        convert._write(stream, tensors, None, {"a": "é"}, "x")
    found = load_file(path)
    assert found.keys() == tensors.keys()
    assert all(found[key].dtype == tensor.dtype and found[key].shape == tensor.shape for key, tensor in tensors.items())
    assert all(torch.equal(found[key].float(), tensor.float()) for key, tensor in tensors.items())
    assert metadata_of(path) == {"a": "é"}
    length = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + length])
    assert length % 8 == 0
    assert all(header[key]["data_offsets"][0] % tensor.element_size() == 0 for key, tensor in tensors.items())


def test_metadata_says_what_the_file_is_and_keeps_what_was_said(models, run_convert):
    source = put(models, "sub/old.safetensors", narrow_module(1), author="somebody", **{"nextcontrol.source": "older.bin"})
    name = run_convert(source, dtype="fp16")
    assert name == "sub/old_fp16.safetensors"
    assert metadata_of(models / "controlnext" / name) == {
        "author": "somebody",
        "nextcontrol.kind": "controlnext_g1",
        "nextcontrol.family": "sd15",
        "nextcontrol.variant": "sd15_v0",
        "nextcontrol.source": "sub/old.safetensors",
    }
    # An only condition needs no name, and is named all the same.
    only = {key: tensor for key, tensor in pretraining().items() if not re.search(r"loras_dict\.(hed|canny)", key)}
    metadata = metadata_of(models / "ctrlora" / run_convert(put(models, "only.ckpt", only), "lora"))
    assert metadata["nextcontrol.condition"] == "normal"
    metadata = metadata_of(models / "controlnext" / run_convert(put(models, "three.bin", narrow_module(3))))
    assert metadata == {"nextcontrol.kind": "controlnext_g3", "nextcontrol.source": "three.bin"}
    metadata = metadata_of(models / "ctrlora" / run_convert(put(models, "c.ckpt", published(condition_weights()))))
    assert metadata == {"nextcontrol.kind": "ctrlora_lora", "nextcontrol.rank": "8", "nextcontrol.source": "c.ckpt"}


def test_what_the_old_file_said_is_corrected_where_the_new_one_differs(models, run_convert):
    said = {"nextcontrol.rank": "8", "nextcontrol.condition": "canny", "nextcontrol.family": "sd15", "nextcontrol.steps": "9"}
    put(models, "said.safetensors", published(base_weights() | condition_weights()), "ctrlora", **said)
    about = {
        part: metadata_of(models / "ctrlora" / run_convert("said.safetensors", part, name=f"said_{part}"))
        for part in ("base", "lora")
    }
    common = {"nextcontrol.family": "sd15", "nextcontrol.steps": "9", "nextcontrol.source": "said.safetensors"}
    assert about["base"] == common | {"nextcontrol.kind": "ctrlora_base"}
    assert about["lora"] == said | common | {"nextcontrol.kind": "ctrlora_lora"}


def test_a_chosen_variant_goes_along(models, run_convert):
    source = put(models, "skip.safetensors", narrow_module(3), **{"nextcontrol.variant": "sdxl_skip"})
    name = run_convert(source, dtype="bf16")
    assert metadata_of(models / "controlnext" / name)["nextcontrol.family"] == "sdxl"
    assert load_controlnext_file(name, "none", "auto", "auto").variants == ("sdxl_skip",)


def test_the_new_file_is_recognised_as_its_metadata_says(models, run_convert):
    for make, part in ((finetune, "lora"), (finetune, "base"), (bundle, "unet"), (pretraining, "all")):
        kind = "ctrlora" if make is not bundle else "controlnext"
        path = models / kind / run_convert(put(models, "many.ckpt", make(), "diffusion_models"), part, name=f"{part}_{kind}")
        about = describe_file(load_file(path), path.name, {}, 0)
        assert metadata_of(path)["nextcontrol.kind"] == about.kind.id
        (models / "diffusion_models" / "many.ckpt").unlink()


# Where it is written


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("new", "new.safetensors"), ("new.safetensors", "new.safetensors"), ("new.CKPT", "new.safetensors"),
        ("a/b/new", "a/b/new.safetensors"), ("a\\new", "a/new.safetensors"), (" v1.5 ", "v1.5.safetensors"),
        ("中文", "中文.safetensors"), ("..dots", "..dots.safetensors"),
    ],
)  # fmt: skip
def test_a_name_may_have_sub_folders_and_any_extension(name, expected, models, run_convert):
    found = run_convert(put(models, "named.bin", narrow_module()), name=name)
    assert found == expected
    assert (models / "controlnext" / expected).is_file()
    load_controlnext_file(found, "none", "auto", "auto")


BAD_NAMES = [
    "../x", "a/../../x", "..", ".", "/x", "\\x", "\\\\server\\x", "C:x", "C:\\x", "a//x", "x/", "x/.safetensors", "a./x",
    "a /x", "x\0", "x\n.y", "x?", "a|b", ".safetensors", "...", "x.",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_outside_the_folder_or_impossible_somewhere_is_refused(name, models, pack_nodes, run_convert):
    source = put(models, "refused.bin", narrow_module())
    before = files_in(models.parent)
    with pytest.raises(ValueError, match=r"^name is .* and must be a file name, with sub-folders inside the model folder"):
        run_convert(source, name=name)
    assert "must be a file name" in pack_nodes[CONVERT].validate_inputs(source, name)
    assert files_in(models.parent) == before


def test_the_hosts_default_folder_is_used(models, run_convert, monkeypatch, tmp_path):
    import folder_paths

    monkeypatch.setitem(
        folder_paths.folder_names_and_paths, "ctrlora", ([str(tmp_path), str(models / "ctrlora")], {".safetensors"})
    )
    run_convert(put(models, "elsewhere.ckpt", published(condition_weights())), name="deep/er")
    assert files_in(tmp_path) == {"deep", "deep/er.safetensors"}


def test_nothing_is_ever_overwritten(models, run_convert):
    source = put(models, "twice.bin", narrow_module())
    name = run_convert(source)
    path = models / "controlnext" / name
    content = path.read_bytes()
    for arguments in ({}, {"name": "twice"}, {"name": "twice.safetensors", "dtype": "fp16"}):
        with pytest.raises(
            ValueError, match=r"^'models/controlnext/twice.safetensors' is there already and files are never over"
        ):
            run_convert(source, **arguments)
    assert path.read_bytes() == content
    itself = put(models, "itself.safetensors", narrow_module())
    with pytest.raises(ValueError, match="is there already"):
        run_convert(itself)


def test_a_name_that_is_taken_is_seen_before_anything_is_written(models, run_convert, monkeypatch):
    name = run_convert(put(models, "early.bin", narrow_module()))
    monkeypatch.setattr(convert, "_write", lambda *_: pytest.fail("has begun to write"))
    with pytest.raises(ValueError, match="is there already"):
        run_convert("early.bin", name=name)


def test_a_file_that_appears_meanwhile_is_not_overwritten(models, run_convert, monkeypatch):
    source = put(models, "race.bin", narrow_module())
    path = models / "controlnext" / "race.safetensors"
    write = convert._write

    def write_slowly(*arguments):
        write(*arguments)
        path.write_text("mine")

    monkeypatch.setattr(convert, "_write", write_slowly)
    with pytest.raises(ValueError, match="is there already"):
        run_convert(source)
    assert path.read_text() == "mine"
    assert not list(path.parent.glob(".*"))


def test_an_error_leaves_nothing_behind(models, run_convert):
    tensors = narrow_module()
    tensors["time_embedding.linear_2.bias"][0] = 70000
    source = put(models, "wide.bin", tensors)
    before = files_in(models)
    sentence = r"^'wide.bin' has values up to 70000 in 'time_embedding.linear_2.bias' and fp16 ends at 65504: choose bf16, fp32"
    for name in ("new", "deep/er/new"):
        with pytest.raises(ValueError, match=sentence):
            run_convert(source, dtype="fp16", name=name)
        assert files_in(models) == before
    run_convert(source, dtype="bf16", name="deep/er/new")


def test_nan_is_refused_with_the_sentence_of_the_loaders(models, run_convert):
    tensors = narrow_module()
    tensors["mid_convs.1.bias"][3] = float("nan")
    source = put(models, "nans.bin", tensors)
    before = files_in(models)
    with pytest.raises(UnsupportedCheckpointError, match=r"^'nans.bin' has NaN or infinite values in 'mid_convs.1.bias'"):
        run_convert(source)
    assert files_in(models) == before


def test_a_cancelled_conversion_leaves_nothing_behind(models, run_convert, monkeypatch):
    source = put(models, "cancelled.bin", narrow_module())
    before = files_in(models)
    seen = []

    def update(bar, count):
        seen.append(len(list((models / "controlnext" / "cancelled").iterdir())))
        if len(seen) == 3:
            comfy.model_management.interrupt_current_processing()

    monkeypatch.setattr(comfy.utils.ProgressBar, "update", update)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run_convert(source, name="cancelled/new")
    assert seen == [1, 1, 1]
    assert files_in(models) == before


def test_progress_is_told_for_each_tensor(models, run_convert, monkeypatch):
    told = []
    monkeypatch.setattr(comfy.utils.ProgressBar, "update", lambda _, count: told.append(count))
    run_convert(put(models, "progress.bin", narrow_module()))
    assert told == [1] * len(narrow_module())


def test_a_folder_that_cannot_be_written_is_one_sentence(models, run_convert, monkeypatch):
    source = put(models, "full.bin", narrow_module())
    before = files_in(models)

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(convert, "_write", fail)
    with pytest.raises(
        ValueError, match=r"^'models/controlnext/full.safetensors' cannot be written \(No space left on device\)"
    ):
        run_convert(source)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"^'models/controlnext/full.bin/x.safetensors' cannot be written"):
        run_convert(source, name="full.bin/x")
    with pytest.raises(ValueError, match="cannot be written"):
        run_convert(source, name="x" * 300)
    assert files_in(models) == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"part": "vae"}, r"^part is 'vae' and must be one of auto, all, base, lora, control, unet: choose"),
        ({"dtype": "int8"}, r"^dtype is 'int8' and must be one of keep, fp32, fp16, bf16: choose"),
        ({"part": "lora"}, r"^part is 'lora' and 'choice.bin' is a ControlNeXt module"),
        ({"condition": "hed"}, r"^condition is 'hed' and 'choice.bin' is no pretraining checkpoint"),
    ],
)
def test_a_choice_that_does_not_fit_is_refused(arguments, sentence, models, run_convert):
    source = put(models, "choice.bin", narrow_module())
    with pytest.raises(ValueError, match=sentence):
        run_convert(source, **arguments)


def test_a_file_of_another_kind_is_named(models, run_convert):
    source = put(models, "other.safetensors", {"lora_unet_x.lora_up.weight": torch.zeros(2)})
    with pytest.raises(UnsupportedCheckpointError, match=r"^'other.safetensors' is a LoRA, not a ControlNeXt or CtrLoRA file"):
        run_convert(source)
    with pytest.raises(FileNotFoundError, match="absent"):
        run_convert("absent.bin")


@pytest.mark.parametrize("layout", ["safetensors", "ckpt"])
@pytest.mark.parametrize("dtype", ["keep", "bf16"])
def test_a_lora_with_alpha_stays_what_it_was(layout, dtype, models, pack_nodes):
    own, layer = condition_weights(), "middle_block.1.transformer_blocks.0.attn1.to_q"
    up, alpha = f"{layer}.lora_layer.up.weight", torch.tensor([len(own[f"{layer}.lora_layer.down.weight"]) / 4])
    base = load_base(put(models, "alpha_base.safetensors", published(base_weights()), "ctrlora"), False, 0)
    whole = published(own | {f"{layer}.alpha": alpha})
    source = put(models, "alpha.ckpt", whole, "ctrlora")
    (name,) = pack_nodes[CONVERT].execute(source, "auto", dtype, f"alpha {layout} {dtype}", "", layout).result
    before, after = (load_condition(base, file, "")[0].model.tensors() for file in (source, name))
    rounded = {key: tensor if dtype == "keep" else tensor.bfloat16().float() for key, tensor in before.items()}
    assert all(torch.equal(after[key].float(), tensor) for key, tensor in rounded.items())
    path = models / "ctrlora" / name
    written = load_file(path) if layout == "safetensors" else torch.load(path, weights_only=True)
    assert written.get(f"control_model.{layer}.alpha", alpha * 0).dtype == torch.float32  # no type rounds it
    factor = 1 if layout == "safetensors" else 0.25  # other programs know no alpha
    assert torch.equal(
        written[f"control_model.{up}"].float(), (own[up] * factor).to(written[f"control_model.{up}"].dtype).float()
    )
    assert (f"control_model.{layer}.alpha" in written) == (layout == "safetensors")
    assert ("Alpha: " in pack_nodes[INSPECT].execute(name).result[0]) == (layout == "safetensors")
