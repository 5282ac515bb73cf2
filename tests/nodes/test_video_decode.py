"""Decode Video: chunks without seams and with bounded memory, on the host's VAE class with SVD's temporal decoder."""

from __future__ import annotations

from functools import cache

import comfy.model_management
import comfy.sd
import pytest
import torch
from comfy.ldm.models.autoencoder import AutoencodingEngine
from seeded import seeded_tensor

CONFIG = {
    "double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1, 1, 1, 1],
    "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip


@cache
def small_vae():
    """The host's VAE around a narrow network of SVD's layout."""
    modules = "comfy.ldm.modules."
    network = AutoencodingEngine(
        regularizer_config={"target": "comfy.ldm.models.autoencoder.DiagonalGaussianRegularizer"},
        encoder_config={"target": modules + "diffusionmodules.model.Encoder", "params": CONFIG},
        decoder_config={
            "target": modules + "temporal_ae.VideoDecoder",
            "params": {**CONFIG, "video_kernel_size": [3, 1, 1], "alpha": 0.0},
        },
    )
    generator = torch.Generator().manual_seed(0)
    for name, parameter in network.named_parameters():
        if "mix_factor" not in name:
            scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * scale)
            parameter.data += float(parameter.ndim == 1 and name.endswith("weight"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comfy.sd, "AutoencodingEngine", lambda **_: network)  # the host's own has fixed widths
        return comfy.sd.VAE(sd=network.state_dict())


def latents(frames):
    return seeded_tensor("clip", [frames, 4, 4, 4])


def decode(pack_nodes, frames, chunk, overlap, vae=None):
    node = pack_nodes["NextControlDecodeVideo"]
    return node.execute({"samples": latents(frames)}, vae or small_vae(), chunk, overlap).result[0]


def off(pictures, expected):
    """Mean error of each frame."""
    return (pictures - expected).abs().mean(dim=(1, 2, 3))


@pytest.mark.parametrize("frames", [1, 2, 9])
def test_a_clip_of_one_chunk_is_what_vae_decode_makes(frames, pack_nodes):
    assert torch.equal(decode(pack_nodes, frames, 9, 4), small_vae().decode(latents(frames)))


def test_chunks_that_fade_have_smaller_seams_than_the_hosts(pack_nodes, monkeypatch):
    whole, vae = small_vae().decode(latents(32)), small_vae()
    faded = off(decode(pack_nodes, 32, 12, 6), whole)
    one = vae.memory_used_decode((1, 4, 4, 4), vae.vae_dtype)
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *_a, **_k: one * 12 + 1)
    hosts = off(vae.decode(latents(32)), whole)
    assert hosts.max() > 0.02
    assert faded.max() < 0.5 * hosts.max()


def test_where_memory_is_short_chunks_get_shorter_and_it_is_said(pack_nodes, monkeypatch, caplog):
    vae, seen = small_vae(), []
    one = vae.memory_used_decode((1, 4, 4, 4), vae.vae_dtype)
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *_a, **_k: one * 3 + 1)
    decoder = vae.first_stage_model.decoder
    handle = decoder.register_forward_pre_hook(lambda _m, inputs: seen.append(len(inputs[0])))
    try:
        pictures = decode(pack_nodes, 7, 6, 4)
    finally:
        handle.remove()
    assert set(seen) == {3}
    assert torch.isfinite(pictures).all()
    assert "Memory is short: 3 frames are decoded at a time in place of 6." in caplog.text


def test_a_cancel_stops_between_two_chunks(pack_nodes, cancel_at):
    vae, seen = small_vae(), []
    told = cancel_at(1, 4)
    handle = vae.first_stage_model.decoder.register_forward_pre_hook(lambda _m, inputs: seen.append(len(inputs[0])))
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            decode(pack_nodes, 9, 4, 2)
    finally:
        handle.remove()
    assert told == [1]
    assert seen == [4]


@pytest.mark.parametrize(
    ("frames", "overlap", "samples", "message"),
    [
        (4, 4, latents(3), "overlap must be from 1 to window - 1"),
        (4, 0, latents(3), "overlap must be from 1 to window - 1"),
        (4, 2, latents(3)[None], "samples has the shape"),
    ],
)
def test_a_wrong_input_gets_one_sentence(frames, overlap, samples, message, pack_nodes):
    with pytest.raises(ValueError, match=message):
        pack_nodes["NextControlDecodeVideo"].execute({"samples": samples}, small_vae(), frames, overlap)


def test_a_checkpoint_without_a_vae_is_named(pack_nodes):
    with pytest.raises(ValueError, match="vae is missing in the checkpoint: load an SVD checkpoint"):
        pack_nodes["NextControlDecodeVideo"].execute({"samples": latents(3)}, None, 4, 2)
