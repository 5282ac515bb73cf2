"""Previews: sampled exactly, without influence on the training; and models that predict v."""

from __future__ import annotations

import pytest
import torch
from nextcontrol.training.objective import DiscreteObjective, sd_alphas
from nextcontrol.training.preview import grid, sample
from tiny_training import CONTEXT, tiny_run, write_pairs
from torch.testing import assert_close

pytestmark = pytest.mark.usefixtures("one_thread", "gradients")


class Oracle:
    """A model that knows what the picture is."""

    device = torch.device("cpu")

    def __init__(self, prediction, clean):
        self.objective, self.clean = DiscreteObjective(sd_alphas(), prediction), clean

    def predict(self, noisy, timesteps, context, control, extras):  # noqa: ARG002
        """Exactly the noise, or v."""
        alphas = self.objective.alphas
        signal = alphas[timesteps][:, None, None, None].sqrt()
        spread = (1 - alphas[timesteps])[:, None, None, None].sqrt()
        clean = self.clean.expand(len(noisy), -1, -1, -1)
        noise = (noisy - signal * clean) / spread
        assert len(control.residuals) == 3
        assert context.shape == (len(noisy), 8, CONTEXT)
        return noise if self.objective.prediction == "eps" else signal * noise - spread * clean


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_a_model_that_knows_the_picture_draws_it(tmp_path, prediction):
    run = tiny_run(tmp_path, write_pairs(tmp_path / "pairs", 3), preview_steps=5)
    clean = torch.randn(1, 4, 8, 8)
    run.trainer.backbone = Oracle(prediction, clean)
    given = torch.randn(1, 4, 8, 8), torch.randn(1, 8, CONTEXT), torch.randn(1, 8, CONTEXT)
    drawn = sample(run.trainer, *given, seed=0, shape=(4, 8, 8))
    assert_close(drawn, clean, rtol=1e-3, atol=1e-3)


def test_a_preview_changes_nothing_and_is_the_same_every_time(tmp_path):
    pairs = write_pairs(tmp_path / "pairs", 3)
    plain, drawing = tiny_run(tmp_path / "a", pairs), tiny_run(tmp_path / "b", pairs)
    given = torch.randn(1, 4, 8, 8), torch.randn(1, 8, CONTEXT), torch.randn(1, 8, CONTEXT)
    first = sample(drawing.trainer, *given, seed=0, shape=(4, 8, 8))
    assert torch.equal(first, sample(drawing.trainer, *given, seed=0, shape=(4, 8, 8)))
    assert not torch.equal(first, sample(drawing.trainer, *given, seed=1, shape=(4, 8, 8)))
    batches = plain.source.batches(0)
    assert plain.trainer.update(batches) == drawing.trainer.update(batches)


def test_a_model_that_predicts_v_is_trained_on_v(tmp_path):
    pairs = write_pairs(tmp_path / "pairs", 3)
    noise, v = (tiny_run(tmp_path / kind, pairs, prediction=kind).trainer for kind in ("eps", "v"))
    batch = tiny_run(tmp_path / "x", pairs).source.batches(0)[0]
    alphas = sd_alphas()[batch.timesteps][:, None, None, None]
    noisy = alphas.sqrt() * batch.latents + (1 - alphas).sqrt() * batch.noise
    predicted = noise.predict(noisy, batch.hints, batch.timesteps, batch.context)
    target = alphas.sqrt() * batch.noise - (1 - alphas).sqrt() * batch.latents
    assert_close(v.loss(batch, batch.hints), (predicted - target).square().mean())
    assert_close(noise.loss(batch, batch.hints), (predicted - batch.noise).square().mean())


def test_pictures_of_any_shape_share_a_grid():
    wide, tall = torch.ones(3, 10, 40), torch.full((3, 40, 10), 0.5)
    picture = grid([[wide, tall], [tall, wide]], side=20)
    assert picture.shape == (3, 40, 40)
    assert picture[0, 10, 10] == 1
    assert picture[0, 10, 30] == 0.5
    assert picture[0, 0, 0] == 0
