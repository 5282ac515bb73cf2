"""The demo model's controls, as they ship: results follow hints that no training has seen."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from demo_train_controls import BASE, HINTS, hints_of
from nextcontrol.nodes.host.folders import DEMO
from prove_metrics import edge_f1

import nodes

CANNY = "demo_controlnext_canny"
FILES = {
    f"{BASE}_canny": "canny",
    f"{BASE}_palette": "palette",
    f"{BASE}_pixel": "pixel",
    "demo_ctrlora_grayscale": "grayscale",
}
"""LoRAs on the base, and what each follows."""
BUDGET = 32e6
"""Bytes of all weights that ship."""
PROMPT, STEPS, SEEDS = "balloon", 12, range(1, 7)
"""Several seeds: by three pictures alone chance decides."""


def shapes() -> torch.Tensor:
    """Three things in colours that the prompt does not ask for, (3, 128, 128, 3)."""
    drawn = [np.full((128, 128, 3), 255, np.uint8) for _ in range(3)]
    cv2.ellipse(drawn[0], (64, 64), (48, 26), 0, 0, 360, (40, 90, 220), -1)
    cv2.rectangle(drawn[1], (34, 22), (96, 108), (60, 170, 60), -1)
    cv2.fillPoly(drawn[2], [np.array([(64, 16), (112, 108), (16, 108)])], (90, 60, 40))
    return torch.from_numpy(np.stack(drawn)).float() / 255


@pytest.fixture(scope="module")
def demo(pack_nodes):
    with torch.inference_mode():
        return pack_nodes["NextControlLoadDemoModel"].execute().args


@pytest.fixture(scope="module")
def controls(pack_nodes):
    """Each shipped control: (title, condition), and a function of model, prompts, VAE, hints and strength."""
    (base,) = pack_nodes["NextControlLoadCtrLoRABase"].execute(f"{BASE}.safetensors").args
    load = pack_nodes["NextControlLoadControlNeXt"]
    (module,) = load.execute(f"{CANNY}.safetensors", f"{CANNY}_unet.safetensors", "auto", "auto").args

    def with_controlnext(model, positive, negative, vae, hint, strength):
        apply = pack_nodes["NextControlApplyControlNeXt"]
        return *apply.execute(model, module, hint, strength, 0.0, 1.0).args, positive, negative

    def with_lora(file):
        (control,) = pack_nodes["NextControlLoadCtrLoRA"].execute(base, f"{file}.safetensors", 1.0).args

        def apply(model, positive, negative, vae, hint, strength):
            node = nodes.ControlNetApplyAdvanced()
            return model, *node.apply_controlnet(positive, negative, control, hint, strength, 0.0, 1.0, vae=vae)

        return apply

    with torch.inference_mode():
        return {CANNY: with_controlnext} | {file: with_lora(file) for file in FILES}


def draw(demo, apply=None, hint=None, strength=1.0) -> torch.Tensor:
    """Three pictures for each seed (18, 128, 128, 3), by the host's own nodes."""
    model, clip, vae = demo
    positive, negative = (nodes.CLIPTextEncode().encode(clip, text)[0] for text in (PROMPT, ""))
    if apply is not None:
        model, positive, negative = apply(model, positive, negative, vae, hint, strength)
    empty = nodes.EmptyLatentImage().generate(128, 128, 3)[0]
    settings = STEPS, 4.0, "euler", "normal", positive, negative, empty
    latents = [nodes.KSampler().sample(model, seed, *settings)[0] for seed in SEEDS]
    return torch.cat([nodes.VAEDecode().decode(vae, latent)[0] for latent in latents])


@pytest.fixture(scope="module")
def free(demo):
    with torch.inference_mode():
        return draw(demo)


def distance(condition: str, found: torch.Tensor, hint: torch.Tensor) -> float:
    """How far the results' own hints are from those asked for; 0 is the same."""
    own, hint = hints_of(condition, found), hint.repeat(len(SEEDS), 1, 1, 1)
    if condition == "canny":
        return 1 - float(edge_f1(own, hint).mean())
    return float((own - hint).abs().mean())


@pytest.mark.parametrize("name", [CANNY, *FILES])
def test_results_follow_the_hint_and_not_without_the_control(demo, controls, free, name):
    condition = FILES.get(name, "canny")
    hint = hints_of(condition, shapes())
    found = draw(demo, controls[name], hint)
    limit = 0.95 if condition == "canny" else 0.8  # A thin edge is soon missed by more than a pixel.
    assert distance(condition, found, hint) < limit * distance(condition, free, hint)


@pytest.mark.parametrize("name", [CANNY, f"{BASE}_canny"])
def test_strength_0_is_exactly_no_control(demo, controls, free, name):
    assert torch.equal(draw(demo, controls[name], hints_of("canny", shapes()), strength=0.0), free)


def test_every_condition_that_ships_has_a_file():
    assert set(FILES.values()) == set(HINTS)
    assert sum(path.stat().st_size for path in DEMO.rglob("*.safetensors")) < BUDGET
