"""Tiled diffusion by other nodes: each tile gets its own part of hints and masks, or the log says once that it does not."""

from __future__ import annotations

import inspect
import itertools

import pytest
import torch
from comfy.context_windows import IndexListContextWindow
from ctrlora_files import control_of, load_small_base
from host_models import build_model, evaluate
from narrow import SIGMA, apply, control_for, hints, latents, narrow_model, text
from nextcontrol.nodes.host.attach import NETWORKS
from nextcontrol.nodes.host.tiles import Tile, find_tiles
from seeded import seeded_tensor
from stacking import entry, native, of, prompts, sample
from torch.nn import functional as F
from torch.testing import assert_close
from vae_stand_ins import Means

FULL = (16, 24)
TILES = list(itertools.product((0, 8), (0, 6, 12)))
"""Top and left; tiles of 8x12 cells that share a half with their neighbours."""
SIDES = (8, 12)
RAMP = torch.linspace(0, 1, 24 * 8).expand(1, 16 * 8, 24 * 8)


def part(x, tile):
    return x[..., tile[0] : tile[0] + SIDES[0], tile[1] : tile[1] + SIDES[1]]


def in_tiles(function, x, t, c, prompts_of_call, at_once, is_by_prompt):
    """A network evaluated tile by tile as tiled diffusion does it, the mean taken where tiles meet."""
    total, count = torch.zeros_like(x), torch.zeros_like(x)
    for start in range(0, len(TILES), at_once):
        some = TILES[start : start + at_once]
        tiles = torch.stack([part(x, tile) for tile in some])  # tile, prompt and row
        if is_by_prompt:
            rows = tiles.unflatten(1, (prompts_of_call, -1)).transpose(0, 1)
        more = {}
        for name, value in c.items():
            is_rows = isinstance(value, torch.Tensor) and len(value) == len(x)
            more[name] = value.repeat(len(some), *[1] * (value.ndim - 1)) if is_rows else value
            if is_rows and is_by_prompt:
                each = value.unflatten(0, (prompts_of_call, -1))
                more[name] = each[:, None].expand(-1, len(some), *[-1] * value.ndim).flatten(0, 2)
        found = function((rows if is_by_prompt else tiles).flatten(0, -4), t[:1].expand(len(some) * len(x)), **more)
        if is_by_prompt:
            found = found.unflatten(0, (prompts_of_call, len(some), -1)).transpose(0, 1).flatten(0, 2)
        for tile, result in zip(some, found.unflatten(0, (len(some), -1)), strict=True):
            part(total, tile).add_(result)
            part(count, tile).add_(1)
    return total / count


def tiled(model, at_once=2, level="function", is_by_prompt=False):
    """A model whose evaluations another node cuts into tiles, at one of the places where nodes do."""
    clone = model.clone()

    def function(apply_model, given):
        return in_tiles(
            apply_model, given["input"], given["timestep"], given["c"], len(given["cond_or_uncond"]), at_once, is_by_prompt
        )

    def wrapper(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **more):
        def call(x, t, c_crossattn, **_):
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, **more)

        count = len(transformer_options["cond_or_uncond"])
        return in_tiles(call, x, t, {"c_crossattn": c_crossattn}, count, at_once, is_by_prompt)

    if level == "function":
        clone.set_model_unet_function_wrapper(function)
    else:
        clone.add_wrapper_with_key("apply_model", "tiles", wrapper)
    return clone


def of_areas(model, given, latent):
    """The same by the host's own areas, one after the other."""
    results = [torch.zeros_like(latent) for _ in given]
    count = torch.zeros_like(latent)
    for tile in TILES:
        area = (*SIDES, *tile)
        found = evaluate(model, [[{**prompt, "area": area} for prompt in each] for each in given], latent, SIGMA)
        for total, result in zip(results, found, strict=True):
            part(total, tile).add_(part(result, tile))
        part(count, tile).add_(1)
    return [total / count for total in results]


@pytest.mark.parametrize("level", ["function", "apply_model"])
@pytest.mark.parametrize(("at_once", "is_by_prompt", "batch"), [(1, False, 1), (4, False, 2), (6, True, 2)])
def test_each_tile_gets_its_part_of_hint_and_mask(level, at_once, is_by_prompt, batch, base_folder, caplog):
    model = apply(narrow_model(), control_for(base_folder), hints(batch, 128, 192), mask=RAMP, uncond="off")
    model = apply(model, control_for(base_folder, seed=1), hints(1, 128, 192, seed=1))
    given, latent = [[text()], [text(name="negative")]], latents(batch, *FULL)
    found = evaluate(tiled(model, at_once, level, is_by_prompt), given, latent, SIGMA)
    for a, b in zip(found, of_areas(model, given, latent), strict=True):
        assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert "does not say" not in caplog.text
    assert (
        found[0] - evaluate(tiled(narrow_model(), at_once, level, is_by_prompt), given, latent, SIGMA)[0]
    ).abs().max() > 1e-2


def halved(apply_model, given):
    small = F.avg_pool2d(given["input"], 2)
    return F.interpolate(apply_model(small, given["timestep"], **given["c"]), scale_factor=2.0)


@pytest.mark.parametrize("latent", [latents(1, *FULL), torch.zeros(1, 4, *FULL)], ids=["noise", "none"])
def test_a_part_that_cannot_be_found_is_said_once_a_run(latent, base_folder, caplog):
    model = apply(narrow_model(), control_for(base_folder), hints(1, 128, 192))
    model = apply(model, control_for(base_folder, seed=1), hints(1, 128, 192, seed=1))
    if latent.any():
        model.set_model_unet_function_wrapper(halved)
    else:
        model = tiled(model)
    said = (
        "Another node evaluates the latent in parts or at other sizes (12x8 cells of 24x16) and does not say which part it is: "
        "each gets the whole hint and the whole mask."
    )
    for run in (1, 2):
        found = evaluate(model, [[text()], [text(name="negative")]], latent, SIGMA)
        assert all(result.isfinite().all() for result in found)
        assert [record.getMessage() for record in caplog.records if record.name == "nextcontrol"] == [said] * run


def test_a_latent_that_is_cut_above_the_host_is_said_once_and_a_whole_one_is_not(base_folder, caplog):
    model = apply(narrow_model(), control_for(base_folder), hints())

    def halves(executor, x, timestep, options=None, seed=None):
        return torch.cat([executor(side.contiguous(), timestep, options, seed) for side in x.chunk(2, dim=-1)], dim=-1)

    sample(model, *prompts(768))
    assert not caplog.records
    model.add_wrapper_with_key("predict_noise", "test", halves)
    sample(model, *prompts(768))
    assert [record.getMessage()[:70] for record in caplog.records] == [
        "Another node evaluates the latent in parts or at other sizes (6x8 cell"
    ]


@pytest.mark.parametrize("dim", [2, 3])
def test_windows_of_the_host_over_height_or_width_get_their_part(dim, base_folder, caplog):
    """Its context windows say which rows or columns they are."""
    model = apply(narrow_model(), control_for(base_folder), hints(1, 128, 192), mask=RAMP)
    latent, (start, count) = latents(1, *FULL), (4, 12)
    (run,) = [wrapper.__self__ for wrapper in model.get_wrappers("calc_cond_batch", NETWORKS)]
    run.shape = latent.shape
    newer = {"total_frames": FULL[dim - 2]} if "total_frames" in inspect.signature(IndexListContextWindow).parameters else {}
    window = IndexListContextWindow(list(range(start, start + count)), dim=dim, **newer)
    model.model_options["transformer_options"]["context_window"] = window
    (found,) = evaluate(model, [[text()]], latent.narrow(dim, start, count), SIGMA)
    run.shape = None
    del model.model_options["transformer_options"]["context_window"]
    area = (count, 24, start, 0) if dim == 2 else (16, count, 0, start)
    (expected,) = evaluate(model, [[text(area=area)]], latent, SIGMA)
    assert_close(found, expected.narrow(dim, start, count), rtol=1e-4, atol=1e-4)
    assert not caplog.records


def test_tiles_are_told_apart_by_their_numbers_alone():
    whole = latents(2, 8, 8)
    one, two = whole[..., 1:5, 2:6], whole[..., 4:8, 0:4]
    assert find_tiles(torch.cat([one, one, two, two]), whole, 2) == [
        Tile(1, 2, 0), Tile(1, 2, 1), Tile(4, 0, 0), Tile(4, 0, 1)
    ]  # fmt: skip
    assert find_tiles(torch.cat([one, two]), whole.half(), 1) == [Tile(1, 2, 0), Tile(4, 0, 0)]
    for other in (one * 1.1, one.flip(0), torch.cat([one, two, two]), latents(2, 9, 9), one[:1]):
        assert find_tiles(other, whole, 1) is None


# Controls of the host


def prepared(control, x, size):
    """The hint of a control at a latent's size, as nodes for tiled diffusion prepare it before they cut it."""
    scale = control.compression_ratio * (control.vae.downscale_ratio if control.vae is not None else 1)
    fitted = F.interpolate(control.cond_hint_original.float(), [side * scale for side in size])
    fitted = control.preprocess_image(fitted)
    if control.vae is not None:
        fitted = control.latent_format.process_in(control.vae.encode(fitted.movedim(1, -1)))
    return fitted.expand(x, -1, -1, -1)


def control_and_model(kind, base_folder):
    """A control on a picture of 128x192, and its model."""
    image = hints(1, 128, 192)
    if kind == "ctrlora":
        control = control_of(base_folder, load_small_base(base_folder))
        return control.set_cond_hint(image.movedim(-1, 1), 0.8, (0.0, 1.0), vae=Means()), build_model("ctrlora")
    entries = [entry(native(), 0.7, image=image, mask=RAMP), entry(native(seed=1), image=hints(1, 128, 192, seed=1))]
    if kind == "mixed":
        entries.append(entry(control_of(base_folder, load_small_base(base_folder)), image=image, mask=1 - RAMP))
    from nextcontrol.nodes.host.stack import apply_stack
    from nextcontrol.nodes.host.stack_entry import Options

    _, positive, *_ = apply_stack(build_model("ctrlora"), *prompts(), entries, Options(), Means(), None)
    return of(positive), build_model("ctrlora")


def call(control, model, rows, size, before=None):
    """What a control gives for two prompts at a size."""
    control.pre_run(model.model, model.get_model_object("model_sampling").percent_to_sigma)
    try:
        if before is not None:
            control.cond_hint = before
        given = {"c_crossattn": seeded_tensor("text", [1, 7, 96]).expand(rows, -1, -1)}
        return control.get_control(torch.zeros(rows, 4, *size), torch.full((rows,), SIGMA), given, 2, {})
    finally:
        control.cleanup()


@pytest.mark.parametrize("kind", ["ctrlora", "stack", "mixed"])
def test_a_node_that_writes_the_hint_of_tiles_or_cuts_a_copys_hint_gets_the_controls_of_the_tiles(kind, base_folder):
    """Tiled Diffusion writes `cond_hint`, tile by tile and prompt by prompt; Ultimate SD Upscale cuts `cond_hint_original`."""
    control, model = control_and_model(kind, base_folder)
    some, expected = [TILES[1], TILES[5]], []
    for top, left in some:
        copy = control.copy()
        copy.cond_hint_original = control.cond_hint_original[..., top * 8 : (top + 8) * 8, left * 8 : (left + 12) * 8]
        expected.append(call(copy, model, 2, SIDES))
    planes = prepared(control, 2, FULL)
    ratio = planes.shape[-2] // FULL[0]
    cut = torch.cat([
        planes[..., top * ratio : (top + 8) * ratio, left * ratio : (left + 12) * ratio] for top, left in some
    ])  # fmt: skip
    for _ in range(2):
        found = call(control, model, 4, SIDES, cut)
        for depth in ("output", "middle"):
            for result, *each in zip(found[depth], *(given[depth] for given in expected), strict=True):
                wanted = torch.cat([one.expand(2, -1, -1, -1) for one in each])
                assert_close(result, wanted, rtol=1e-3, atol=1e-4)
                assert (wanted[0] - wanted[2]).abs().max() > 1e-4
    # The control itself is as it was.
    again = call(control, model, 2, FULL)
    fresh = call(control_and_model(kind, base_folder)[0], model, 2, FULL)
    assert all(torch.equal(a, b) for a, b in zip(again["output"], fresh["output"], strict=True))
