"""Previews of clips: the text is one row for each clip, and the rows without it have the trained weights and no control."""

from __future__ import annotations

import torch
from nextcontrol.training.backbone import Control
from nextcontrol.training.config import TrainConfig
from nextcontrol.training.draws import generator_for
from nextcontrol.training.objective_edm import EdmObjective
from nextcontrol.training.preview import sample
from nextcontrol.training.trainer import Trainer
from seeded import seeded_tensor
from torch.testing import assert_close

FRAMES = 3


class Backbone:
    """Predicts what it can of all that it is given."""

    device = torch.device("cpu")
    objective = EdmObjective()

    def __init__(self):
        self.asked = []

    def predict(self, noisy, times, context, control, extras):  # noqa: ARG002
        """Linear in everything, so that guidance can be worked out by hand."""
        self.asked.append((len(noisy), context.clone(), control, extras["reference"].clone()))
        own = context.mean() + extras["reference"].mean() + control.weights["w"]
        return noisy * 0.1 + own + (control.inject(noisy) - noisy if control.inject else 0)


class Method:
    """A control that adds the mean of the hints."""

    hint_form = "pixels"
    weight = torch.tensor(0.3)

    def parameters(self):
        """One number."""
        return {"w": self.weight.requires_grad_()}

    def rate_factor(self, _name):
        """1."""
        return 1.0

    def control(self, noisy, hints, times, context, condition):  # noqa: ARG002
        """Weights and something to add."""
        return Control(site="after_down0", inject=lambda x: x + hints.mean(), weights={"w": self.weight})


def test_the_rows_without_the_reference_have_trained_weights_and_no_control():
    backbone, config = Backbone(), TrainConfig(preview_steps=1, preview_guidance=3.0)
    trainer = Trainer(Method(), backbone, config)
    hints, context = seeded_tensor("hints", [FRAMES, 3, 64, 64]) + 1, seeded_tensor("context", [1, 1, 16])
    extras = {"reference": seeded_tensor("reference", [1, 4, 8, 8])}
    empty, nothing = torch.zeros(1, 1, 16), {"reference": torch.zeros(1, 1, 1, 1)}
    given = (trainer, hints, context, empty, 0, (4, 8, 8), extras, "", nothing)
    found = sample(*given, is_empty_controlled=False)
    (count, told, control, reference), (count_too, untold, without, none) = backbone.asked
    assert count == count_too == FRAMES
    assert torch.equal(told, context)
    assert not untold.any()
    assert control.inject is not None
    assert (without.inject, without.site, list(without.weights)) == (None, None, ["w"])
    assert torch.equal(reference, extras["reference"])
    assert none.shape == reference.shape
    assert not none.any()
    # Guidance 3 counts what the reference and the control tell three times, and the rest once.
    more = context.mean() + extras["reference"].mean() + hints.mean()

    def predict(x, levels):
        return backbone.objective.network_input(x, levels)[0] * 0.1 + 0.3 + 3 * more

    noise = torch.stack([torch.randn((4, 8, 8), generator=generator_for("preview", 0, row)) for row in range(FRAMES)])
    assert_close(found, backbone.objective.sample(predict, noise, 1), rtol=1e-4, atol=1e-4)
