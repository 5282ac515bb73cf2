"""The way of a hint into CtrLoRA, through the host's own VAE."""

from __future__ import annotations

from functools import cache

import comfy.sd
import pytest
import torch
from comfy.latent_formats import SD15, SDXL
from ctrlora_files import GivenLatents, control_of, load_small_base, run_control
from host_models import build_model
from nextcontrol.nodes.host.ctrlora_hint import HintLatents, Posterior
from nextcontrol.nodes.host.hints import fit_hint
from nextcontrol.nodes.host.layout import Size
from nextcontrol.nodes.host.vae_family import is_sdxl_vae
from seeded import seeded_tensor
from torch.testing import assert_close

SIZE = Size(8, 12)


@cache
def vae():
    """The host's KL autoencoder of SD1.5 with random weights."""
    from comfy.ldm.models.autoencoder import AutoencoderKL

    config = {
        "double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
        "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0,
    }  # fmt: skip
    stage = AutoencoderKL(ddconfig=config, embed_dim=4)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in stage.named_parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
        else:
            parameter.data.fill_(1.0 if name.endswith("weight") else 0.0)
    return comfy.sd.VAE(sd=stage.state_dict())


@pytest.fixture
def seen(monkeypatch):
    """What the VAE's encoder is given."""
    inputs = []
    encode = vae().first_stage_model.encode
    monkeypatch.setattr(vae().first_stage_model, "encode", lambda x: inputs.append(x) or encode(x))
    return inputs


def picture(count=1, height=64, width=96):
    return torch.rand(count, height, width, 3, generator=torch.Generator().manual_seed(1))


def latents(frames, posterior=None, size=SIZE, hints=(0,)):
    encoded = HintLatents(frames, vae(), posterior or Posterior())
    encoded.encode(hints, size)
    return torch.cat([encoded.latent(hint, size) for hint in hints])


def test_the_encoder_is_given_the_picture_as_it_is_in_0_to_1(seen):
    latents(picture())
    (given,) = seen
    assert_close(given.float(), picture().movedim(-1, 1), rtol=0, atol=1e-6)


def test_the_latent_is_the_mode_of_the_posterior():
    stage = vae().first_stage_model
    moments = stage.quant_conv(stage.encoder(picture().movedim(-1, 1).to(vae().vae_dtype))).float()
    assert_close(latents(picture()), moments[:, :4], rtol=1e-4, atol=1e-4)
    assert torch.equal(latents(picture()), latents(picture()))


def test_a_sample_is_drawn_by_its_seed_from_the_posterior():
    stage = vae().first_stage_model
    moments = stage.quant_conv(stage.encoder(picture().movedim(-1, 1).to(vae().vae_dtype))).float()
    noise = torch.randn(4, *SIZE, generator=torch.Generator().manual_seed(7))
    expected = moments[:, :4] + (0.5 * moments[:, 4:].clamp(-30, 20)).exp() * noise
    assert_close(latents(picture(), Posterior(True, 7)), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(latents(picture(), Posterior(True, 7)), latents(picture(), Posterior(True, 7)))
    assert not torch.equal(latents(picture(), Posterior(True, 8)), latents(picture(), Posterior(True, 7)))
    twice = latents(picture().expand(2, -1, -1, -1), Posterior(True, 7), hints=(0, 1))
    assert not torch.equal(twice[0], twice[1])


def test_a_larger_hint_is_reduced_by_area_so_that_thin_lines_stay(seen):
    lines = torch.zeros(1, 128, 192, 3)
    lines[:, ::16] = 1.0
    lines[:, :, ::16] = 1.0
    latents(lines)
    assert_close(seen[0].float().mean(), lines.mean(), rtol=0, atol=1e-3)
    assert (seen[0].float().amax(dim=(1, 2)) > 0.4).sum() >= 12
    assert torch.equal(fit_hint(lines, SIZE, is_area=True), torch.nn.functional.avg_pool2d(lines.movedim(-1, 1), 2))


def test_a_smaller_hint_and_another_aspect_fit(seen):
    latents(picture(1, 24, 200))
    assert seen[0].shape == (1, 3, 64, 96)
    assert seen[0].min() >= -1e-3
    assert seen[0].max() <= 1 + 1e-3


def test_each_hint_is_encoded_once_for_a_size(seen, base_folder):
    control = control_of(base_folder, load_small_base(base_folder, cache=0)).copy()
    control.set_cond_hint(picture(3).movedim(-1, 1), 1.0, (0.0, 1.0), vae=vae())
    model, sigma = build_model("ctrlora"), torch.tensor([1.0])
    text = seeded_tensor("context", [1, 77, 96])
    is_sdxl_vae(vae())  # encodes eight patches, once for a VAE
    seen.clear()
    for _ in range(2):
        run_control(control, model, text, sigma)
    assert [len(batch) for batch in seen] == [1]
    run_control(control, model, text.expand(3, -1, -1), sigma.expand(3))
    assert [len(batch) for batch in seen] == [1, 2]
    run_control(control, model, text, sigma, size=(4, 4))
    assert [batch.shape[-1] for batch in seen] == [96, 96, 32]
    run_control(control, model, text, sigma)  # the first size is still there, as regional prompts need it
    assert len(seen) == 3
    copy = control.copy()
    assert not copy._hints
    assert copy.base is control.base
    assert copy.condition is control.condition


def test_another_picture_on_the_same_condition_is_another_control(base_folder):
    base = load_small_base(base_folder)
    found = []
    for frames in (picture(), 1 - picture(), picture()):
        control = control_of(base_folder, base).copy()
        control.set_cond_hint(frames.movedim(-1, 1), 1.0, (0.0, 1.0), vae=vae())
        found.append(run_control(control, build_model("ctrlora"), seeded_tensor("context", [1, 77, 96]), torch.tensor([1.0])))
    assert torch.equal(found[0]["middle"][0], found[2]["middle"][0])
    assert not torch.equal(found[0]["middle"][0], found[1]["middle"][0])


class Colours(GivenLatents):
    """Latents that the host's preview map of a family turns into the picture's colours, with a little noise in them."""

    def __init__(self, latent_format):
        super().__init__("hint_latent")
        self.map = torch.linalg.pinv(torch.tensor(latent_format.latent_rgb_factors)) / latent_format.scale_factor
        self.first_stage_model = torch.nn.Identity()

    def encode(self, pixels):
        """See the class."""
        latents = (pixels[:, ::8, ::8] * 2 - 1) @ self.map
        return latents.movedim(-1, 1) + 0.3 * latents.std() * seeded_tensor("noise", [len(pixels), 4, 1, 1])


def test_an_sdxl_vae_is_told_from_one_of_sd15_by_its_latents_and_refused(base_folder):
    control = control_of(base_folder, load_small_base(base_folder))

    def start(vae):
        copy = control.copy().set_cond_hint(picture().movedim(-1, 1), 1.0, (0.0, 1.0), vae=vae)
        copy.pre_run(build_model("ctrlora").model, lambda percent: 1 - percent)

    start(Colours(SD15()))
    with pytest.raises(ValueError, match=r"The VAE is SDXL's, .*: connect the VAE of an SD1\.5 checkpoint\."):
        start(Colours(SDXL()))


def test_a_vae_that_says_nothing_of_colours_is_let_through():
    assert not is_sdxl_vae(vae())
