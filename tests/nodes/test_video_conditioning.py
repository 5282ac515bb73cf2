"""Pose Video Conditioning: sizes from the hints, numbers and noise of the reference, the picture as CLIP and the VAE see it."""

from __future__ import annotations

import pytest
import torch
from host_models import build_model
from narrow import hints
from nextcontrol.nodes.host.layout import Size
from nextcontrol.nodes.host.video_conditioning import fit_reference, squash_for_clip
from seeded import seeded_tensor
from torch.nn import functional as F
from torch.testing import assert_close
from vae_stand_ins import Clip, Vae


def condition(pack_nodes, clip=None, image=None, vae=None, frames=None, **options):
    arguments = {"motion_bucket_id": 128, "fps": 7, "augmentation_level": 0.02, "clip_preprocess": "official", "seed": 0}
    node = pack_nodes["NextControlPoseVideoConditioning"]
    return node.execute(
        clip_vision=clip or Clip(),
        init_image=hints(1) if image is None else image,
        vae=vae or Vae(),
        hints=hints(5) if frames is None else frames,
        **{**arguments, **options},
    ).result


def test_the_latent_has_the_length_and_size_of_the_hints(pack_nodes):
    positive, negative, latent = condition(pack_nodes)
    assert latent["samples"].shape == (5, 4, 8, 12)
    assert not latent["samples"].any()
    ((embedding, options),) = positive
    assert embedding.shape == (1, 1, 1024)
    assert options["concat_latent_image"].shape == (1, 4, 8, 12)
    ((nothing, same),) = negative
    assert not nothing.any()
    assert not same["concat_latent_image"].any()
    assert {**same, "concat_latent_image": 0} == {**options, "concat_latent_image": 0}


def test_the_defaults_reach_the_unet_as_the_references_numbers(pack_nodes):
    defaults = {
        item.id: item.default
        for item in pack_nodes["NextControlPoseVideoConditioning"].GET_SCHEMA().inputs
        if hasattr(item, "default")
    }
    names = ("fps", "motion_bucket_id", "augmentation_level")
    adm = build_model("svd_narrow").model.encode_adm(**{name: defaults[name] for name in names})
    expected = [build_model("svd_narrow").model.embedder(torch.tensor([number])) for number in (6, 128, 0.02)]
    assert_close(adm, torch.cat(expected).flatten()[None])


def test_the_noise_has_half_the_level_as_pixels_are_in_0_to_1_and_comes_from_the_seed(pack_nodes):
    vae, grey = Vae(), torch.full((1, 256, 256, 3), 0.5)
    for seed in (0, 0, 1):
        condition(pack_nodes, vae=vae, image=grey, frames=torch.zeros(1, 256, 256, 3), augmentation_level=0.1, seed=seed)
    first, again, other = (seen - 0.5 for seen in vae.seen)
    assert first.std().item() == pytest.approx(0.05, rel=0.02)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    condition(pack_nodes, vae=vae, image=grey, frames=torch.zeros(1, 256, 256, 3), augmentation_level=0.0)
    assert torch.equal(vae.seen[-1], grey)


def test_clip_sees_the_whole_picture_or_what_the_host_shows_it(pack_nodes):
    clip, picture = Clip(), hints(1, 64, 96)
    condition(pack_nodes, clip, picture, clip_preprocess="host")
    condition(pack_nodes, clip, picture, clip_preprocess="official")
    (host, is_cropped), (official, is_cropped_too) = clip.calls
    assert torch.equal(host, picture)
    assert (is_cropped, is_cropped_too) == (True, False)
    assert official.shape == (1, 32, 32, 3)
    assert_close(official, squash_for_clip(picture.movedim(-1, 1), 32).movedim(1, -1))


def test_the_squash_is_a_gaussian_blur_and_a_bicubic_filter():
    pixels, side = seeded_tensor("pixels", [1, 3, 40, 60]), 8
    sigmas = [max((length / side - 1) / 2, 0.001) for length in (40, 60)]
    widths = [(int(max(4 * sigma, 3)) // 2) * 2 + 1 for sigma in sigmas]
    assert widths == [9, 13]
    kernels = []
    for sigma, width in zip(sigmas, widths, strict=True):
        places = torch.arange(width) - (width - 1) / 2
        kernel = torch.exp(-(places**2) / (2 * sigma**2))
        kernels.append(kernel / kernel.sum())
    padded = F.pad(pixels, (widths[1] // 2, widths[1] // 2, widths[0] // 2, widths[0] // 2), mode="reflect")
    kernel = torch.outer(*kernels)[None, None].repeat(3, 1, 1, 1)
    expected = F.interpolate(F.conv2d(padded, kernel, groups=3), (side, side), mode="bicubic", align_corners=True)
    assert_close(squash_for_clip(pixels, side), expected)


def test_a_picture_of_the_right_size_stays_and_others_are_cut_in_the_centre():
    picture = hints(1, 64, 96)
    assert torch.equal(fit_reference(picture, Size(8, 12)), picture)
    wide = torch.zeros(1, 64, 192, 3)
    wide[:, :, 64:128] = 1
    assert torch.equal(fit_reference(wide, Size(16, 16)), torch.ones(1, 128, 128, 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": torch.zeros(3, 60, 96, 3)}, "hints are 96x60 pixels and the latent needs multiples of 8: make them 96x56"),
        ({"frames": torch.zeros(0, 64, 96, 3)}, "hints has no frames"),
        ({"image": torch.zeros(1, 64, 96, 4)}, "init_image has 4 channels"),
        ({"clip": Clip(768)}, "clip_vision makes embeddings of 768 numbers and SVD reads 1024"),
        ({"vae": Vae(16)}, "vae makes latents of the shape"),
        ({"clip_preprocess": "x"}, "clip_preprocess is 'x' and must be one of official, host"),
    ],
)
def test_a_wrong_input_gets_one_sentence(change, message, pack_nodes):
    with pytest.raises(ValueError, match=message):
        condition(pack_nodes, **change)


def test_a_checkpoint_without_clip_vision_is_named(pack_nodes):
    node = pack_nodes["NextControlPoseVideoConditioning"]
    with pytest.raises(ValueError, match=r"clip_vision is missing in the checkpoint: load .*'Load Checkpoint Image Only"):
        node.execute(None, hints(1), Vae(), hints(2), 128, 7, 0.02, "official", 0)
