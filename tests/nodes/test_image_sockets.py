"""What comes through sockets of pictures and masks, hint nodes apart: every float type, and masks that are none."""

from __future__ import annotations

import folder_paths
import pytest
import torch
from ctrlora_files import control_of, load_small_base
from host_models import build_model
from narrow import apply, control_for, hints, latents, narrow_model, predict
from nextcontrol.nodes.extension import NODES
from nextcontrol.nodes.host import hints as hints_module
from nextcontrol.nodes.host.hints import check_image, to_masks
from nextcontrol.preprocessors.pose_json import to_json
from poses import standing
from stacking import LEFT, native, prompts, sample
from vae_stand_ins import Clip, Means, Vae

TYPES = [torch.float16, torch.bfloat16, torch.float64]
INTEGERS = [torch.uint8, torch.int32, torch.int64, torch.bool]
SOFT = torch.linspace(0, 1, 96).expand(1, 64, 96)
NO_ALPHA = torch.zeros(1, 64, 64)
SAID = "this is what Load Image gives for a picture without transparency"


def apply_controlnext(nodes, base_folder, image, mask):
    node = nodes["NextControlApplyControlNeXt"]
    return predict(node.execute(narrow_model(), control_for(base_folder), image, 0.8, 0.0, 1.0, mask).result[0])


def stack_of(make_control, model, width):
    def run(nodes, base_folder, image, mask):
        node, control = nodes["NextControlStackControl"], make_control(base_folder)
        (stack,) = node.execute(0.8, 0.0, 1.0, control, image, mask).result
        given = nodes["NextControlApplyStack"].execute(model(), *prompts(width), 1.0, "sum", False, stack, Means()).result
        return sample(*given)

    return run


def align_pose(nodes, base_folder, image, mask):
    given = {"mode": "none", "person": "largest", "person_index": 0, "smooth": 0.0, "fill_gaps": 0, "style": "dwpose"}
    people = to_json([standing((0.5, 0.5, 1))])
    return nodes["NextControlAlignPose"].execute(people, people, 128, 64, image=image, **given).result[2]


def pose_video(nodes, base_folder, image, mask):
    node, vae = nodes["NextControlPoseVideoConditioning"], Vae()
    node.execute(Clip(), image, vae, hints(2).to(image.dtype), 128, 7, 0.02, "official", 0)
    return vae.seen[0]


RUNS = {
    "NextControlApplyControlNeXt": apply_controlnext,
    "NextControlStackControl": stack_of(control_for, narrow_model, 768),
    "a ControlNet in a stack": stack_of(lambda _: native("sd15_narrow"), narrow_model, 768),
    "a CtrLoRA in a stack": stack_of(
        lambda folder: control_of(folder, load_small_base(folder)), lambda: build_model("ctrlora"), 96
    ),
    "NextControlAlignPose": align_pose,
    "NextControlPoseVideoConditioning": pose_video,
}
MASKED = [name for name in RUNS if name not in ("NextControlAlignPose", "NextControlPoseVideoConditioning")]


def test_every_node_that_takes_pictures_is_tried():
    """The hint nodes are in test_every_hint.py."""
    others = [node for node in NODES if not node.__module__.rpartition(".")[2].startswith("hint_")]
    takers = {
        node.define_schema().node_id
        for node in others
        if any(spec.get_io_type() in ("IMAGE", "MASK") for spec in node.define_schema().inputs)
    }
    assert takers == {name for name in RUNS if name.startswith("NextControl")}


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("size", [(64, 96), (72, 100)], ids=["right size", "to be resized"])
def test_every_float_type_does_what_its_values_do(name, dtype, size, pack_nodes, base_folder):
    image, mask = hints(1, *size).to(dtype), SOFT.to(dtype)
    found = RUNS[name](pack_nodes, base_folder, image, mask)
    assert torch.equal(found, RUNS[name](pack_nodes, base_folder, image.float(), mask.float()))
    assert found.dtype == torch.float32


@pytest.mark.parametrize("dtype", TYPES)
def test_a_clip_whose_sum_overflows_is_finite_and_none_of_it_is_copied(dtype, monkeypatch):
    clip = torch.ones(40, 64, 96, 3, dtype=dtype)
    largest = []
    real = torch.Tensor.float
    monkeypatch.setattr(torch.Tensor, "float", lambda self: largest.append(self.numel()) or real(self))
    check_image(clip, "image")
    assert max(largest) == clip[0].numel()
    monkeypatch.undo()
    assert torch.equal(to_masks(clip[..., 0], "mask"), torch.ones(40, 64, 96))
    for place in ((0, 0, 0, 0), (39, 63, 95, 2)):
        for value in (torch.nan, torch.inf, -torch.inf):
            bad = clip.clone()
            bad[place] = value
            with pytest.raises(ValueError, match="NaN or infinite"):
                check_image(bad, "image")
            with pytest.raises(ValueError, match="NaN or infinite"):
                to_masks(bad[..., place[-1]], "mask")


@pytest.mark.parametrize("dtype", INTEGERS)
def test_values_that_are_no_floats_are_one_sentence(dtype, pack_nodes, base_folder):
    image, mask, kind = hints().to(dtype), torch.ones(1, 64, 96).to(dtype), str(dtype).removeprefix("torch.")
    for name, run in RUNS.items():
        with pytest.raises(
            ValueError, match=f"(image|hints) has values of the type {kind} and floats from 0 to 1 are expected"
        ):
            run(pack_nodes, base_folder, image, None)
        if name in MASKED:
            with pytest.raises(ValueError, match=f"mask has values of the type {kind} and floats from 0 to 1 are expected"):
                run(pack_nodes, base_folder, hints(), mask)


# A mask that is none


@pytest.mark.parametrize("mask", [NO_ALPHA, NO_ALPHA[0], NO_ALPHA.expand(3, -1, -1), NO_ALPHA.half()])
@pytest.mark.parametrize("name", MASKED)
def test_what_load_image_gives_without_transparency_is_no_mask(name, mask, pack_nodes, base_folder, caplog):
    run = RUNS[name]
    found = run(pack_nodes, base_folder, hints(), mask)
    assert [SAID in record.getMessage() for record in caplog.records] == [True]
    assert torch.equal(found, run(pack_nodes, base_folder, hints(), None))


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize(
    ("image", "mask"),
    [
        (hints(), torch.zeros(1, 64, 96)),
        (hints(), torch.zeros(1, 8, 12)),
        (hints(), torch.zeros(1, 128, 128)),
        (hints(1, 64, 64), NO_ALPHA),
    ],
    ids=["the picture's size", "the latent's size", "another size", "a picture of 64x64"],
)
def test_every_other_mask_of_zeros_is_off_bit_for_bit(name, image, mask, pack_nodes, base_folder, caplog):
    found = RUNS[name](pack_nodes, base_folder, image, mask)
    assert torch.equal(found, RUNS[name](pack_nodes, base_folder, image, torch.zeros(1, 64, 96)))
    if name == "NextControlApplyControlNeXt":
        assert torch.equal(found, predict(narrow_model()))
    assert SAID not in caplog.text


def test_the_smallest_thing_in_a_64x64_mask_makes_it_a_mask(caplog):
    mask = NO_ALPHA.clone()
    mask[0, 63, 63] = 1e-3
    assert hints_module.real_mask(mask, hints()) is mask
    assert not caplog.records


@pytest.mark.parametrize("shape", ["brush", "rectangle"])
def test_inpaint_draws_its_own_hole_where_there_is_no_mask(shape, pack_nodes, monkeypatch, caplog):
    monkeypatch.setattr("nextcontrol.nodes.host.hint_output.ui.PreviewImage", len)
    node = pack_nodes["NextControlInpaint"]
    found = node.execute(hints(), 64, shape, 3, NO_ALPHA).result
    assert [SAID in record.getMessage() for record in caplog.records] == [True]
    assert all(torch.equal(a, b) for a, b in zip(found, node.execute(hints(), 64, shape, 3).result, strict=True))


def test_a_preview_that_cannot_be_written_ends_no_run(pack_nodes, tmp_path, monkeypatch, caplog):
    place = tmp_path / "a file"
    place.touch()
    monkeypatch.setattr(folder_paths, "temp_directory", str(place / "temp"))
    found = pack_nodes["NextControlGrayscale"].execute(hints(), 64)
    people = to_json([standing((0.5, 0.5, 1))])
    options = {"mode": "none", "person": "largest", "person_index": 0, "smooth": 0.0, "fill_gaps": 0, "style": "dwpose"}
    aligned = pack_nodes["NextControlAlignPose"].execute(people, people, 64, 64, **options)
    assert found.result[0].any()
    assert found.ui is aligned.ui is None
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert all("preview cannot be written" in text and str(tmp_path) not in text.partition("(")[0] for text in said)


# Hints that are not used


def note(count, batch, name="hint"):
    return f"The {name} has {count} frames and the latent batch {batch}: the last {count - batch} are not used."


def counted(caplog):
    texts = [record.getMessage() for record in caplog.records if "not used" in record.getMessage()]
    caplog.clear()
    return texts


def of_batch(model, batch, steps=2):
    for _ in range(steps):  # steps of one run
        predict(model, latents(batch))


def test_a_controlnext_says_once_a_run_that_hints_or_masks_are_cut(base_folder, caplog):
    model = apply(narrow_model(), control_for(base_folder), hints(5))
    for _ in range(2):
        sample(model, *prompts(768), batch=2)
        assert counted(caplog) == [note(5, 2)]
    sample(model, *prompts(768), batch=5)
    sample(model, *prompts(768), batch=7)
    assert counted(caplog) == []
    masked = apply(narrow_model(), control_for(base_folder), hints(1), mask=SOFT.expand(3, -1, -1))
    sample(masked, *prompts(768), batch=2)
    assert counted(caplog) == [note(3, 2, "mask")]


def test_a_ctrlora_says_once_a_run_that_hints_are_cut_alone_and_in_a_stack(base_folder, pack_nodes, caplog):
    one, model = control_of(base_folder, load_small_base(base_folder)), build_model("ctrlora")
    one = one.copy().set_cond_hint(hints(4).movedim(-1, 1), 1.0, (0.0, 1.0), vae=Means())
    given = [[[embedding, {**options, "control": one}] for embedding, options in prompt] for prompt in prompts()]
    for _ in range(2):
        sample(model, *given, batch=3)
        assert counted(caplog) == [note(4, 3)]
    node, apply_stack = pack_nodes["NextControlStackControl"], pack_nodes["NextControlApplyStack"]
    (stack,) = node.execute(1.0, 0.0, 1.0, one, hints(4), LEFT).result
    (stack,) = node.execute(1.0, 0.0, 1.0, native(), hints(6), None, stack).result
    for _ in range(2):
        sample(*apply_stack.execute(model, *prompts(), 1.0, "sum", False, stack, Means()).result, batch=3)
        assert sorted(counted(caplog)) == [note(4, 3), note(6, 3)]
