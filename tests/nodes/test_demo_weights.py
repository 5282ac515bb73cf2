"""The demo model's weights, as they ship: they draw what a prompt names."""

from __future__ import annotations

import pytest
import torch
from nextcontrol.nodes.host.demo_model import TEXT_FILE, UNET_FILE, VAE_FILE, load_demo_model
from nextcontrol.nodes.host.folders import DEMO

import nodes

FILES = (UNET_FILE, TEXT_FILE, VAE_FILE)
BUDGET = 24e6
"""Bytes of the files; what is left of 32 MB is for controls."""
RED, GREEN = "red apple", "green apple"
CENTER = slice(44, 84)


@pytest.fixture(scope="module")
def demo(pack_nodes):
    with torch.inference_mode():
        return pack_nodes["NextControlLoadDemoModel"].execute().args


def draw(demo, caption: str, seed: int = 1) -> torch.Tensor:
    """A picture (128, 128, 3) by the host's own nodes."""
    model, clip, vae = demo
    positive, negative = (nodes.CLIPTextEncode().encode(clip, text)[0] for text in (caption, ""))
    empty = nodes.EmptyLatentImage().generate(128, 128)[0]
    latent = nodes.KSampler().sample(model, seed, 14, 4.0, "euler", "normal", positive, negative, empty)[0]
    return nodes.VAEDecode().decode(vae, latent)[0][0]


@pytest.fixture(scope="module")
def pictures(demo):
    with torch.inference_mode():
        return {caption: draw(demo, caption) for caption in (RED, GREEN)}


def redness(picture: torch.Tensor) -> float:
    """How much redder than green the middle is."""
    return float((picture[CENTER, CENTER, 0] - picture[CENTER, CENTER, 1]).mean())


def is_on_white(picture: torch.Tensor) -> bool:
    """The training pictures stand on white, with something that is not white in the middle."""
    corners = torch.cat([picture[:12, :12], picture[:12, -12:], picture[-12:, :12], picture[-12:, -12:]])
    return float(corners.mean()) > 0.9 and float(picture[CENTER, CENTER].mean()) < 0.8


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * (a - b).square().mean().log10())


def test_the_files_leave_room_for_controls():
    assert sum((DEMO / name).stat().st_size for name in FILES) < BUDGET


def test_the_prompt_decides_the_colour(pictures):
    assert redness(pictures[RED]) > 0.25
    assert redness(pictures[GREEN]) < 0.0


@pytest.mark.parametrize("caption", [RED, GREEN])
def test_things_stand_on_white_as_in_the_training_pictures(pictures, caption):
    assert is_on_white(pictures[caption])


def test_the_same_weights_in_another_order_draw_mud(demo):
    """What the two tests above ask for is more than a network of this kind does by itself."""
    model, clip, vae = load_demo_model()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.model.diffusion_model.parameters():
        flat = parameter.data.flatten()
        parameter.data.copy_(flat[torch.randperm(len(flat), generator=generator)].view_as(parameter))
    found = [draw((model, clip, vae), caption) for caption in (RED, GREEN)]
    assert not all(map(is_on_white, found))
    assert not (redness(found[0]) > 0.25 and redness(found[1]) < 0.0)


def test_a_picture_survives_the_autoencoder(demo, pictures):
    for picture in pictures.values():
        back = demo[2].decode(demo[2].encode(picture[None]))[0]
        assert psnr(back, picture) > 27.0


def test_latents_have_the_deviation_that_the_sampler_expects(demo, pictures):
    latents = demo[2].encode(torch.stack(list(pictures.values())))
    assert 0.5 < float(demo[0].model.process_latent_in(latents).std()) < 2.0
