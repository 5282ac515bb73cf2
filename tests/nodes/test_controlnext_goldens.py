"""Every published ControlNeXt variant, through our nodes and the host's own UNet, against the reference's numbers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from comfy.model_patcher import ModelPatcher
from host_models import GOLDENS, SHAPES, build_model, evaluate, prompt
from nextcontrol.models.controlnext import timestep_features
from safetensors.torch import load_file, save_file
from seeded import seeded_state_dict, seeded_tensor

EXPECTED = load_file(GOLDENS / "controlnext.safetensors")
IMAGE_VARIANTS = ("sd15", "sd15_v0", "sdxl")
SIGMA = 15.59
"""Of the video goldens."""


def save_files(folder: Path, variant: str, scale: float | None = None) -> tuple[str, str]:
    """The reference's seeded weights as two files in the host's model folder."""
    target = folder / "models" / "controlnext"
    target.mkdir(parents=True, exist_ok=True)
    control = seeded_state_dict(SHAPES[variant]["control"])
    if scale is not None:
        assert "scale" in control
        control["scale"] = torch.tensor(scale)
    names = (f"{variant}_{scale}.safetensors", f"{variant}_unet.safetensors")
    save_file(control, target / names[0])
    if not (target / names[1]).exists():
        save_file(seeded_state_dict(SHAPES[variant]["unet"]), target / names[1])
    return names


def sinusoids(values: list[float]) -> torch.Tensor:
    """(1, 256 * len(values)), cosines first."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import timestep_embedding

    return timestep_embedding(torch.tensor(values), 256).flatten()[None]


def predict(model: ModelPatcher, variant: str) -> torch.Tensor:
    """The UNet's output for the golden inputs, in the shape of the golden file."""
    context_width = {"sd15": 768, "sdxl": 2048, "svd": 1024}[variant.split("_", maxsplit=1)[0]]
    if variant.startswith("svd"):
        latent = seeded_tensor("latent", [1, 3, 8, 8, 12])[0]
        context = seeded_tensor("context", [1, 1, context_width])
        # The noise is in the first channels; the image latent that is joined behind it is not scaled.
        cond = prompt(context, y=sinusoids([6, 127, 0.02]), c_concat=latent[:, 4:], num_video_frames=3)
        return evaluate(model, [[cond]], latent[:, :4], SIGMA)[0][None]
    latent, context = seeded_tensor("latent", [2, 4, 8, 12]), seeded_tensor("context", [2, 77, context_width])
    pooled = seeded_tensor("pooled", [2, 1280])
    sigmas = model.get_model_object("model_sampling").sigmas
    rows = []
    for i, step in enumerate((500, 20)):
        y = {"y": torch.cat([pooled[i : i + 1], sinusoids([1024, 1024, 0, 0, 1024, 1024])], 1)} if variant == "sdxl" else {}
        rows.append(evaluate(model, [[prompt(context[i : i + 1], **y)]], latent[i : i + 1], float(sigmas[step]))[0])
    return torch.cat(rows)


def golden_hint(variant: str) -> torch.Tensor:
    """(N, 64, 96, 3)."""
    shape = [1, 3, 3, 64, 96] if variant.startswith("svd") else [2, 3, 64, 96]
    return (0.25 * seeded_tensor("hint", shape) + 0.5).reshape(-1, 3, 64, 96).movedim(1, -1)


@pytest.mark.parametrize("scale", [1.0, 0.6])
@pytest.mark.parametrize("variant", ["sd15", "sd15_v0", "sdxl", "svd_v1", "svd_v2"])
def test_the_unet_predicts_what_the_reference_predicts(variant, scale, pack_nodes, base_folder):
    learned = variant in ("sd15_v0", "svd_v1")
    # A learned scale stands in the file: at 1 for sd15_v0, where strength multiplies it, and behind a sigmoid for svd_v1.
    in_file = (1.0 if variant == "sd15_v0" else scale) if learned else None
    strength = 1.0 if variant == "svd_v1" else scale
    control_file, unet_file = save_files(base_folder, variant, in_file)
    (control,) = pack_nodes["NextControlLoadControlNeXt"].execute(control_file, unet_file, "auto", "replace").result
    hint = golden_hint(variant)
    model = build_model(variant, seed=1)
    predictions = []
    # One picture at a time, as the two rows have timesteps of their own; a clip goes at once.
    for image in [hint] if variant.startswith("svd") else hint.split(1):
        arguments = (model, control, image, strength, 0.0, 1.0)
        (patched,) = pack_nodes["NextControlApplyControlNeXt"].execute(*arguments).result
        predictions.append(predict(patched, variant))
    found = predictions[0] if len(predictions) == 1 else torch.stack([p[i] for i, p in enumerate(predictions)])
    torch.testing.assert_close(found, EXPECTED[f"{variant}.noise_pred_scale_{scale}"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", ["sd15", "sdxl", "svd_v2"])
def test_the_replaced_unet_alone_predicts_what_the_reference_predicts_without_control(variant, pack_nodes, base_folder):
    control_file, unet_file = save_files(base_folder, variant)
    (control,) = pack_nodes["NextControlLoadControlNeXt"].execute(control_file, unet_file, "auto", "replace").result
    black = torch.zeros(8, 12)
    arguments = (build_model(variant, seed=1), control, golden_hint(variant), 1.0, 0.0, 1.0, black)
    (patched,) = pack_nodes["NextControlApplyControlNeXt"].execute(*arguments).result
    torch.testing.assert_close(predict(patched, variant), EXPECTED[f"{variant}.noise_pred_no_control"], rtol=1e-4, atol=1e-4)


def test_the_time_features_are_those_of_the_reference():
    features = timestep_features(torch.tensor([1.0, 999.0, math.log(700) / 4]), 128)
    columns = features[:, [0, 1, 63, 64, 65, 127]]
    expected = [
        [0.540302, 0.647906, 1.000000, 0.841471, 0.761720, 0.000115],
        [0.999650, -0.398992, 0.993353, -0.026461, -0.916955, 0.115107],
        [-0.066924, 0.151955, 1.000000, 0.997758, 0.988387, 0.000189],
    ]
    torch.testing.assert_close(columns, torch.tensor(expected), rtol=0, atol=5e-5)  # fp32 angles of up to 999
