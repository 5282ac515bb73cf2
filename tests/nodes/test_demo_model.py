"""The demo model's loader on weights made here: the host's objects, what the trainer needs of them, and clear errors."""

from __future__ import annotations

import pytest
import torch
from dynamic_vram import filled_layers
from nextcontrol.models.demo_autoencoder import DemoAutoencoder
from nextcontrol.nodes.host.backbone import check_model
from nextcontrol.nodes.host.demo_model import (
    TEXT_FILE,
    UNET_CONFIG,
    UNET_FILE,
    VAE_FILE,
    VOCABULARY,
    DemoSD15,
    load_demo_model,
)
from nextcontrol.nodes.host.encoders import HostPictures, HostTexts
from nextcontrol.nodes.host.unet_structure import DEMO_TEXT_WIDTH, family_of
from nextcontrol.nodes.host.vae_family import is_sdxl_vae
from safetensors.torch import load_file, save_file
from seeded import seeded_state_dict

import nodes

FILES = (UNET_FILE, TEXT_FILE, VAE_FILE)
TOKENS = [518, 736, 3055, 49406, 49407]


@pytest.fixture(scope="module")
def tensors():
    """Weights of each file; the shapes are those that the training writes."""
    with filled_layers():
        meta = DemoSD15(UNET_CONFIG).get_model({}, "", device="meta").diffusion_model.state_dict()
    width = DEMO_TEXT_WIDTH
    layer = {
        **{f"self_attn.{name}_proj.weight": (width, width) for name in ("q", "k", "v", "out")},
        **{f"self_attn.{name}_proj.bias": (width,) for name in ("q", "k", "v", "out")},
        **{f"layer_norm{i}.{name}": (width,) for i in (1, 2) for name in ("weight", "bias")},
        "mlp.fc1.weight": (4 * width, width),
        "mlp.fc1.bias": (4 * width,),
        "mlp.fc2.weight": (width, 4 * width),
        "mlp.fc2.bias": (width,),
    }
    text = {f"text_model.encoder.layers.{i}.{key}": shape for i in range(2) for key, shape in layer.items()} | {
        "text_model.embeddings.token_embedding.table.weight": (len(TOKENS) + 1, width),
        "text_model.embeddings.position_embedding.weight": (77, width),
        "text_model.final_layer_norm.weight": (width,),
        "text_model.final_layer_norm.bias": (width,),
        "text_projection.weight": (width, width),
    }
    shapes = {
        UNET_FILE: {key: tensor.shape for key, tensor in meta.items()},
        TEXT_FILE: text,
        VAE_FILE: {key: tensor.shape for key, tensor in DemoAutoencoder().state_dict().items()},
    }
    found = {name: {k: t.half() for k, t in seeded_state_dict(sizes).items()} for name, sizes in shapes.items()}
    found[TEXT_FILE][VOCABULARY] = torch.tensor(TOKENS, dtype=torch.int32)
    return found


@pytest.fixture
def folder(tensors, tmp_path):
    for name, weights in tensors.items():
        save_file(weights, tmp_path / name)
    return tmp_path


@pytest.fixture(scope="module")
def demo(tensors, tmp_path_factory):
    place = tmp_path_factory.mktemp("demo")
    for name, weights in tensors.items():
        save_file(weights, place / name)
    with torch.inference_mode():
        return load_demo_model(place)


def text_of(clip, caption: str) -> torch.Tensor:
    return nodes.CLIPTextEncode().encode(clip, caption)[0][0][0]


def test_the_hosts_own_nodes_sample_with_it(demo):
    model, clip, vae = demo
    positive, negative = (nodes.CLIPTextEncode().encode(clip, caption)[0] for caption in ("red apple", ""))
    empty = {"samples": torch.zeros(2, 4, 8, 8)}
    latent = nodes.KSampler().sample(model, 1, 2, 4.0, "euler", "normal", positive, negative, empty)[0]
    picture = nodes.VAEDecode().decode(vae, latent)[0]
    assert picture.shape == (2, 64, 64, 3)
    assert float(picture.min()) >= 0.0
    assert float(picture.max()) <= 1.0
    assert float(picture.std()) > 0.01


def test_the_log_says_that_it_is_a_demo(folder, caplog):
    with caplog.at_level("INFO", "nextcontrol"):
        load_demo_model(folder)
    assert [record.message for record in caplog.records if record.message.startswith("Demo model: ")]


def test_the_weights_that_run_are_those_of_the_files(demo, tensors):
    model, clip, vae = demo
    parts = (model.model.diffusion_model, clip.cond_stage_model.clip_l.transformer, vae.first_stage_model)
    for part, name in zip(parts, FILES, strict=True):
        state = part.state_dict()
        assert set(state) == set(tensors[name]) - {VOCABULARY}
        assert all(torch.equal(state[key].float(), tensors[name][key].float()) for key in state)


def test_the_pack_takes_it_for_sd15(demo):
    model, _, vae = demo
    assert family_of(model) == "sd15"
    assert not is_sdxl_vae(vae)
    check_model(model, DEMO_TEXT_WIDTH, "a base")
    assert model.model.model_config.unet_config["num_heads"] == 8


def test_the_trainer_encodes_with_its_vae(demo):
    vae = demo[2]
    pictures = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    pixels = pictures.movedim(-1, 1)
    mean, deviation = HostPictures(vae).encode(pixels, is_hint=False)
    assert mean.shape == deviation.shape == (1, 4, 8, 8)
    assert torch.allclose(mean, vae.encode(pictures), atol=1e-4)
    hint, _ = HostPictures(vae).encode(2 * pixels - 1, is_hint=True)
    assert torch.allclose(hint, mean, atol=1e-4)


def test_the_trainer_encodes_with_its_clip(demo):
    clip = demo[1]
    found = HostTexts(clip, DEMO_TEXT_WIDTH).encode("red apple")["context"]
    assert torch.equal(found, text_of(clip, "red apple")[0])


def test_words_of_the_vocabulary_differ_and_all_others_are_one(demo):
    clip = demo[1]
    words = ["red", "blue", "house", "tree"]
    tokens = [clip.tokenize(word)["l"][0][1][0] for word in words]
    known = [word for word, token in zip(words, tokens, strict=True) if token in TOKENS]
    others = [word for word in words if word not in known]
    assert known
    assert len(others) > 1
    assert (text_of(clip, known[0]) - text_of(clip, others[0])).abs().max() > 0.1
    assert torch.equal(text_of(clip, others[0]), text_of(clip, others[1]))
    assert text_of(clip, "red").shape == (1, 77, DEMO_TEXT_WIDTH)


def test_every_token_of_the_vocabulary_has_a_row_of_its_own(demo, tensors):
    transformer = demo[1].cond_stage_model.clip_l.transformer
    found = transformer.get_input_embeddings()(torch.tensor([0, *TOKENS]), out_dtype=torch.float32)
    rows = tensors[TEXT_FILE]["text_model.embeddings.token_embedding.table.weight"]
    assert torch.equal(found, rows.float())


def test_clip_skip_takes_another_layer(demo):
    skipped = nodes.CLIPSetLastLayer().set_last_layer(demo[1], -2)[0]
    assert (text_of(demo[1], "red apple") - text_of(skipped, "red apple")).abs().max() > 0.1


def test_the_vae_is_the_hosts_object_around_our_network(demo):
    vae = demo[2]
    assert isinstance(vae.first_stage_model, DemoAutoencoder)
    assert vae.patcher.model is vae.first_stage_model
    assert vae.size == sum(tensor.nbytes for tensor in vae.first_stage_model.state_dict().values())
    assert vae.spacial_compression_encode() == vae.spacial_compression_decode() == 8


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"'{name}' is not in .*install NextControl again"):
        load_demo_model(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_cut_short_is_named(folder, name):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=rf"'{name}' is damaged .*install NextControl again"):
        load_demo_model(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_tensor_that_is_missing_or_of_another_shape_is_named(folder, name):
    tensors = load_file(folder / name)
    key = max(tensors)
    for changed in ({k: t for k, t in tensors.items() if k != key}, tensors | {key: torch.zeros(3, 3, 3)}):
        save_file(changed, folder / name)
        with pytest.raises(ValueError, match=rf"'{name}' is damaged \(.*'{key}'"):
            load_demo_model(folder)
