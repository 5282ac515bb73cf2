"""Which prompt is the negative one, under every guider of the host and in the passes that its patches add."""

from __future__ import annotations

import inspect
import logging
import re
from pathlib import Path

import comfy.samplers
import comfy_extras.nodes_lt as lt
import pytest
import torch
from comfy_extras import nodes_custom_sampler as custom
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_perpneg import PerpNeg, PerpNegGuider
from comfy_extras.nodes_sag import SelfAttentionGuidance
from comfy_extras.nodes_slg import SkipLayerGuidanceDiT, SkipLayerGuidanceDiTSimple
from narrow import WIDTHS, apply, control_for, hints, narrow_model
from seeded import seeded_tensor

import nodes as host_nodes

pytestmark = pytest.mark.usefixtures("one_thread")
VALUES = {"positive": 1.0, "second": 2.0, "negative": 3.0, "empty": 4.0}
"""First number of each prompt's text, by which a call of the UNet is read."""
LEFT = {"area": (8, 6, 0, 0), "strength": 1.0, "set_area_to_bounds": False}
RIGHT = LEFT | {"area": (8, 6, 0, 6)}


def conditioning(name, **given):
    context = seeded_tensor(name, [1, 7, WIDTHS["sd15"]])
    context[0, 0, 0] = VALUES[name]
    return [[context, given]]


def out(node, *arguments, **named):
    """The first output of a node of the host, whichever API its version is written for."""
    if hasattr(node, "execute"):
        return node.execute(*arguments, **named).result[0]
    return getattr(node(), node.FUNCTION)(*arguments, **named)[0]


def cfg(model, positive=None, negative=None):
    texts = positive or conditioning("positive"), negative or conditioning("negative")
    return out(custom.CFGGuider, model, *texts, 4.0)


def dual(style, *scales):
    texts = [conditioning(name) for name in ("positive", "second", "negative")]
    return lambda model: out(custom.DualCFGGuider, model, *texts, *(scales or (4.0, 2.0)), style)


def perp_neg(model):
    texts = [conditioning(name) for name in ("positive", "negative", "empty")]
    return out(PerpNegGuider, model, *texts, 4.0, 1.0)


def windows(model):
    """More pictures than fit into a window of the host's, whose prompts are copies."""
    newer = {"freenoise": False} if "freenoise" in inspect.signature(ContextWindowsManualNode.execute).parameters else {}
    return out(ContextWindowsManualNode, model, 2, 1, "standard_static", 1, False, "pyramid", 0, **newer)


def two_models(model):
    texts = conditioning("positive"), 4.0, narrow_model().clone(), conditioning("negative")
    return out(custom.DualModelGuider, model, *texts)


def with_areas(make):
    """Prompts of areas, of which the host puts copies behind the others."""
    return lambda model: make(model, conditioning("positive", **LEFT), conditioning("negative", **RIGHT))


def dual_areas(model):
    texts = conditioning("positive", **LEFT), conditioning("second"), conditioning("negative", **RIGHT)
    return out(custom.DualCFGGuider, model, *texts, 4.0, 2.0, "regular")


def two_models_with_areas(model):
    texts = conditioning("positive", **LEFT), 4.0, narrow_model().clone(), conditioning("negative", **RIGHT)
    return out(custom.DualModelGuider, model, *texts)


BOTH = {"positive": True, "negative": False}
GUIDERS = {
    "Guider_Basic": (lambda model: out(custom.BasicGuider, model, conditioning("positive")), {"positive": True}),
    "CFGGuider": (cfg, BOTH),
    "CFGGuider, areas": (with_areas(cfg), BOTH),
    "Guider_DualCFG": (dual("regular"), BOTH | {"second": True}),
    "Guider_DualCFG, nested": (dual("nested"), BOTH | {"second": True}),
    "Guider_DualCFG, areas": (dual_areas, BOTH | {"second": True}),
    "Guider_DualCFG, without a negative": (dual("regular", 4.0, 1.0), {"positive": True, "second": True}),
    "Guider_PerpNeg": (perp_neg, BOTH | {"empty": False}),
    "the context windows": (lambda model: cfg(windows(model)), BOTH),
    "the context windows, dual": (lambda model: dual("regular")(windows(model)), BOTH | {"second": True}),
    "PAG": (lambda model: cfg(out(PerturbedAttentionGuidance, model, 1.0)), BOTH),
    "PAG, dual": (lambda model: dual("regular")(out(PerturbedAttentionGuidance, model, 1.0)), BOTH | {"second": True}),
    "SAG": (lambda model: cfg(out(SelfAttentionGuidance, model, 0.5, 2.0)), BOTH),
    "SLG": (lambda model: cfg(out(SkipLayerGuidanceDiT, model, 1.0, 0.0, 1.0, "7", "7")), BOTH),
    "SLG, simple": (lambda model: cfg(out(SkipLayerGuidanceDiTSimple, model, 0.0, 1.0, "7", "7")), BOTH),
}
"""Of the host, and whether each of its prompts is controlled where the negative one is not."""
if hasattr(custom, "DualModelGuider"):
    GUIDERS["Guider_DualModel"] = (two_models, BOTH)
    GUIDERS["Guider_DualModel, areas"] = (two_models_with_areas, BOTH)
if hasattr(lt, "LTXVDualCFGGuider"):
    texts = conditioning("positive"), conditioning("negative")
    GUIDERS["Guider_LTXAVDualCFG"] = (lambda model: out(lt.LTXVDualCFGGuider, model, *texts, 4.0, 2.0), BOTH)


@pytest.fixture
def controlled(base_folder):
    """A model whose negative prompt is not controlled, and what it does: for each prompt's text whether it was."""
    patched = apply(narrow_model(), control_for(base_folder), hints(), uncond="off")
    (patch,) = {f.__self__ for fs in patched.wrappers["diffusion_model"].values() for f in fs}
    seen = {}

    def note(executor, x, timesteps, context, y, control, options, **named):
        prompts = context.chunk(len(options["cond_or_uncond"]))
        plan = options.get(patch.key)
        for place, text in enumerate(prompts):
            name = next(name for name, value in VALUES.items() if value == float(text[0, 0, 0]))
            seen.setdefault(name, set()).add(plan is not None and plan.chunks[place].multiplier != 0)
        return executor(x, timesteps, context, y, control, options, **named)

    patched.add_wrapper_with_key("diffusion_model", "test", note)
    return patched, seen


def sample(guider, count=1):
    sampler, sigmas = comfy.samplers.sampler_object("euler"), torch.tensor([14.0, 3.0, 0.0])
    latent = torch.zeros(count, 4, 8, 12)
    return guider.sample(seeded_tensor("noise", latent.shape), latent, sampler, sigmas, disable_pbar=True)


@pytest.mark.parametrize("case", GUIDERS)
def test_the_negative_prompt_is_left_alone_and_no_other(case, controlled, caplog):
    model, seen = controlled
    make, expected = GUIDERS[case]
    with caplog.at_level(logging.INFO, "nextcontrol"):
        sample(make(model), count=3 if "windows" in case else 1)
    assert seen == {name: {is_on} for name, is_on in expected.items()}
    assert "does not tell" not in caplog.text


def test_every_guider_of_this_host_is_among_them():
    files = [*Path(custom.__file__).parent.glob("*.py"), Path(comfy.samplers.__file__)]
    found = {name for file in files for name in re.findall(r"class (\w+)\([\w.]*CFGGuider\)", file.read_text("utf-8"))}
    assert "Guider_DualCFG" in found
    assert found <= GUIDERS.keys()


def test_a_prompt_that_no_guider_knows_goes_by_its_place_and_the_log_says_so_once(controlled, caplog):
    """The older Perp-Neg node keeps an empty prompt of its own, and asks for it alone."""
    model, seen = controlled
    patched = out(PerpNeg, model, conditioning("empty"), 1.0)
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.INFO, "nextcontrol"):
            sample(cfg(patched))
        assert caplog.text.count("does not tell which prompt is the negative one") == 1
    assert seen == {"positive": {True}, "negative": {False}, "empty": {True}}


def test_several_controls_say_it_once_and_where_it_makes_no_difference_nothing_is_said(base_folder, caplog):
    control = control_for(base_folder)
    for uncond, count in (("off", 1), ("on", 0)):
        model = apply(apply(narrow_model(), control, hints(), uncond=uncond), control, hints(seed=1), uncond=uncond)
        caplog.clear()
        with caplog.at_level(logging.INFO, "nextcontrol"):
            sample(cfg(out(PerpNeg, model, conditioning("empty"), 1.0)))
        assert caplog.text.count("does not tell") == count


def test_a_guider_of_another_pack_with_an_order_and_copies_of_its_own_is_understood(controlled):
    """It keeps no prompts but those of the run."""

    class Own(comfy.samplers.CFGGuider):
        def predict_noise(self, x, timestep, model_options=None, seed=None):  # noqa: ARG002 - the host's signature
            prompts = [[dict(one) for one in self.conds[name]] for name in ("negative", "positive")]
            negative, positive = comfy.samplers.calc_cond_batch(self.inner_model, prompts, x, timestep, model_options)
            return negative + 4 * (positive - negative)

        def outer_predict_noise(self, *arguments, **named):
            self.original_conds = {}
            return super().outer_predict_noise(*arguments, **named)

    model, seen = controlled
    guider = Own(model)
    guider.set_conds(conditioning("positive"), conditioning("negative"))
    sample(guider)
    assert seen == {"positive": {True}, "negative": {False}}


def test_the_ordinary_run_is_bit_for_bit_the_one_without_names(base_folder, monkeypatch):
    def run():
        model = apply(narrow_model(), control_for(base_folder), hints(), uncond="off")
        latent = {"samples": torch.zeros(1, 4, 8, 12)}
        texts = conditioning("positive"), conditioning("negative")
        return host_nodes.common_ksampler(model, 0, 2, 4.0, "euler", "normal", *texts, latent)[0]["samples"]

    named = run()
    from nextcontrol.nodes.host.prompt_names import PromptNames

    monkeypatch.setattr(PromptNames, "negatives", lambda _self, _options, prompts: [place == 1 for place in prompts])
    assert torch.equal(run(), named)
