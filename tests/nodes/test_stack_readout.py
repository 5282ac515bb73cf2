"""The readout of a stack says what each control added, and where."""

from __future__ import annotations

import json
from types import SimpleNamespace

import folder_paths
import numpy as np
import pytest
import torch
from comfy_extras.nodes_model_downscale import PatchModelAddDownscale
from host_models import build_model
from narrow import control_for, hints, narrow_model
from nextcontrol.models.combine import norm
from nextcontrol.nodes.host import readout as readout_module
from nextcontrol.nodes.host.layout import Area, Size
from nextcontrol.nodes.host.stack_entry import Entry
from PIL import Image
from seeded import seeded_tensor
from stacking import LEFT, SIZE, Adapter, control, entry, native, of, prompts, residuals, sample, stacked


def test_the_readout_says_how_large_each_part_is(base_folder):
    model = build_model("ctrlora")
    entries = [
        entry(control("native", base_folder), 0.3),
        Entry(None, None, 0.0, (0.0, 1.0)),
        entry(control("ctrlora", base_folder)),
    ]
    patched, *conditioning, readout = stacked(entries, node="7")
    plain = sample(model, *stacked(entries)[1:3])
    records = readout.ui()["readout"]
    assert [record["text"] for record in records] == ["", ""]
    assert torch.equal(sample(patched, *conditioning), plain)
    assert [record["position"] for record in records] == [1, 3]
    assert records[1]["control"].startswith("CtrLoRA ")
    for record in records:
        assert set(record["share"]) == {"1/1", "1/2", "middle"}
        assert all(0 < share < 100 for share in record["share"].values())
        assert record["evaluations"] == 3
        shown = {part.rpartition(" ")[0]: part for part in record["text"].partition(": ")[2].split(", ")}
        assert shown == {group: f"{group} {share:.0%}" for group, share in record["share"].items()}
    assert [record["text"].partition(":")[0] for record in records] == ["1. ControlNet", "3. CtrLoRA"]


def test_the_share_is_the_norm_of_what_was_added_over_the_norm_of_the_feature(base_folder):
    model, one = build_model("ctrlora"), control("native", base_folder)
    patched, positive, _, readout = stacked([entry(one, 0.5)], node="7", is_resolution_weighted=True)
    options = {}
    added = residuals(of(positive), model, options=options)
    features = [seeded_tensor(f"feature{i}", list(residual.shape)) for i, residual in enumerate(added["output"])]
    middle = seeded_tensor("feature", list(added["middle"][0].shape))
    last = len(features) - 1
    for block in range(len(features)):
        options["block"] = ("output", block)
        of(positive).note_decoder(middle + added["middle"][0], features[last - block] + added["output"][last - block], options)
    readout.publish()
    (record,) = readout.ui()["readout"]
    shares = [(norm(a) / norm(f)).mean().item() for a, f in zip(added["output"], features, strict=True)]
    for group, ratio in (("1/1", 1), ("1/2", 2)):
        own = [share for share, a in zip(shares, added["output"], strict=True) if SIZE[0] // a.shape[-2] == ratio]
        assert record["share"][group] == pytest.approx(sum(own) / len(own), rel=1e-4)
    assert record["share"]["middle"] == pytest.approx((norm(added["middle"][0]) / norm(middle)).mean().item(), rel=1e-4)
    assert patched is not model


def test_the_readout_covers_controlnexts_and_what_the_cap_leaves_of_them(base_folder):
    model = narrow_model()
    entries = [entry(control_for(base_folder, seed=seed), image=hints(seed=seed)) for seed in (0, 1)]
    shares = {}
    for balance in ("sum", "cap"):
        patched, *conditioning, readout = stacked(entries, model=model, node="7", balance=balance)
        sample(patched, *conditioning)
        shares[balance] = [record["share"]["1/2"] for record in readout.ui()["readout"]]
    assert all(share > 0.1 for share in shares["sum"])
    assert all(capped < plain for capped, plain in zip(shares["cap"], shares["sum"], strict=True))


def test_the_heat_map_shows_where_a_masked_control_acted(base_folder):
    patched, *conditioning, readout = stacked([entry(control("native", base_folder), mask=LEFT)], node="7")
    sample(patched, *conditioning)
    (image,) = readout.ui()["images"]
    pixels = np.asarray(Image.open(f"{folder_paths.get_temp_directory()}/{image['subfolder']}/{image['filename']}"))
    half = pixels.shape[1] // 2
    assert pixels.shape[0] * 12 == pixels.shape[1] * 8
    assert np.ptp(pixels[:, half:].reshape(-1, 3), axis=0).max() == 0
    assert np.ptp(pixels[:, :half].reshape(-1, 3), axis=0).max() > 50


def test_without_a_readout_nothing_is_patched_for_it(base_folder):
    model, *_, readout = stacked([entry(control("native", base_folder), mask=LEFT)])
    assert readout is None
    assert not model.model_options["transformer_options"].get("patches")


def test_with_area_prompts_the_maps_show_the_whole_picture(base_folder):
    """A prompt for the right half: all that its control adds is there, whatever the size of the call."""
    whole, given = prompts(768), prompts(768)
    for _, options in (*given[0], *given[1]):
        options |= {"area": (4, 6, 4, 6), "strength": 1.0, "set_area_to_bounds": False}
    entries = [entry(native("sd15_narrow")), entry(control_for(base_folder), image=hints())]
    model, *area, readout = stacked(entries, model=narrow_model(), conditioning=given, node="7")
    sample(model, [*whole[0], *area[0]], [*whole[1], *area[1]])
    residual, following = (record["share"] for record in readout.ui()["readout"])
    assert set(residual) == {"1/1", "1/2", "middle"}
    assert set(following) == {"1/2"}
    heat = heats(readout)[0]
    assert np.ptp(heat[:4].reshape(-1, 3), axis=0).max() == 0
    assert np.ptp(heat[:, :6].reshape(-1, 3), axis=0).max() == 0
    assert np.ptp(heat[4:, 6:].reshape(-1, 3), axis=0).max() > 50


def test_one_row_for_all_has_the_share_of_as_many_rows():
    shares = []
    for count in (1, 2):
        *_, readout = stacked([entry(Adapter(), image=hints(count))], node="7")
        feature = seeded_tensor("feature", [2, 64, *SIZE])
        spot = readout_module.Spot("1/1", *whole())
        readout.note(1, spot, seeded_tensor("added", [1, 64, *SIZE]).expand(count, -1, -1, -1), feature)
        readout.publish()
        shares.append(readout.ui()["readout"][0]["share"]["1/1"])
    assert shares[0] == shares[1]
    added = seeded_tensor("added", [1, 64, *SIZE])
    assert shares[0] == pytest.approx((norm(added) / norm(feature)).mean().item(), rel=1e-4)


def test_the_numbers_are_json_also_where_the_model_overflows():
    *_, readout = stacked([entry(Adapter(), image=hints())], node="7")
    for value in (torch.nan, torch.inf, 1.0):
        added = torch.full((1, 64, *SIZE), value)
        readout.note(1, readout_module.Spot(f"{value}", *whole()), added, torch.ones(2, 64, *SIZE))
    readout.publish()
    (record,) = json.loads(json.dumps(readout.ui()["readout"], allow_nan=False))
    assert record["share"] == {"1.0": 1.0}


@pytest.mark.parametrize("client", ["page", None])
def test_only_a_page_that_asked_is_told(client, monkeypatch):
    sent = []
    server = SimpleNamespace(client_id=client, send_sync=lambda *message: sent.append(message))
    monkeypatch.setattr(readout_module.PromptServer, "instance", server, raising=False)
    *_, readout = stacked([entry(Adapter(), image=hints())], node="7")
    readout.note(1, readout_module.Spot("1/1", *whole()), torch.ones(1, 64, *SIZE), torch.ones(2, 64, *SIZE))
    readout.publish()
    assert [(event, message["node"], sid) for event, message, sid in sent] == ([("executed", "7", "page")] if client else [])


def test_a_run_starts_from_nothing_and_one_without_the_conditioning_says_nothing(base_folder):
    """Two samplers on one stack, and one that has the model output alone."""
    model, one = build_model("ctrlora"), control("native", base_folder)
    patched, *conditioning, readout = stacked([entry(one)], node="7")
    sample(patched, *conditioning)
    first = readout.ui()["readout"][0].copy()
    sample(patched, *prompts())
    assert readout.ui()["readout"][0] == first
    sample(model, *conditioning)
    sample(patched, *conditioning)
    assert readout.ui()["readout"][0] == first


@pytest.mark.parametrize("is_before", [False, True], ids=["after the stack", "before it"])
@pytest.mark.parametrize(("block", "factor", "after_skip"), [(2, 2.0, True), (2, 2.0, False), (1, 1.5, True), (1, 0.5, True)])
def test_features_that_another_node_shrinks_end_no_run_and_only_what_was_added_is_counted(
    block, factor, after_skip, is_before, base_folder, caplog
):
    """ComfyUI's Deep Shrink: the host leaves out what does not fit, a ControlNeXt follows the feature's size."""

    def shrink(model):
        node = PatchModelAddDownscale()
        return node.execute(model, block, factor, 0.0, 1.0, after_skip, "bicubic", "bicubic").result[0]

    entries = [entry(native("sd15_narrow"), mask=LEFT), entry(control_for(base_folder), image=hints(), mask=LEFT)]
    results = []
    for node in ("7", None):
        model = shrink(narrow_model()) if is_before else narrow_model()
        patched, *conditioning, readout = stacked(entries, model=model, node=node)
        results.append(sample(patched if is_before else shrink(patched), *conditioning))
        if node:
            residual, following = readout.ui()["readout"]
    assert torch.equal(*results)
    assert "readout" not in caplog.text
    assert residual["evaluations"] == following["evaluations"] == 3
    assert residual["share"]
    assert following["share"]
    assert all(0 < share < 100 for share in (*residual["share"].values(), *following["share"].values()))


@pytest.mark.parametrize(
    "broken", ["_warm", "_map_of", "_send", "note_later", "count_nothing", "disk"], ids=lambda name: name.strip("_")
)
def test_a_readout_that_fails_is_said_once_and_ends_no_run(broken, base_folder, monkeypatch, caplog):
    def fail(*_, **__):
        raise OSError(28, "No space left\non device")

    entries = [entry(native("sd15_narrow")), entry(control_for(base_folder), image=hints())]
    expected = sample(*stacked(entries, model=narrow_model())[:3])
    if broken == "disk":
        monkeypatch.setattr(readout_module, "_write", fail)
    else:
        monkeypatch.setattr(readout_module.Readout, broken if broken != "count_nothing" else "_note", fail)
    patched, *conditioning, readout = stacked(entries, model=narrow_model(), node="7")
    assert torch.equal(sample(patched, *conditioning), expected)
    said = [record.getMessage() for record in caplog.records if "readout" in record.getMessage()]
    assert said
    assert all(text.startswith("The readout of the control stack stops here and the run goes on (") for text in said)
    assert len(said) == (2 if broken == "disk" else 1)  # at the node, and after the run
    assert json.dumps(readout.ui())


def whole():
    """Size and areas of two prompts for the whole latent."""
    return Size(*SIZE), [Area(0, 0, *SIZE)] * 2


def heats(readout):
    """Of each control, one pixel for each cell of the latent."""
    return [
        np.asarray(
            Image.open(f"{folder_paths.get_temp_directory()}/{image['subfolder']}/{image['filename']}").resize(
                SIZE[::-1], Image.Resampling.NEAREST
            )
        )
        for image in readout.ui()["images"]
    ]
