"""The comparison of cross normalization with zero convolution, in small: what is measured, and that nothing is done twice."""

from __future__ import annotations

import json

import pytest
import torch

pytestmark = pytest.mark.usefixtures("one_thread", "gradients")


def test_shapes_cover_their_own_picture_and_not_another():
    from shapes_model import draw_shapes, shape_overlap, to_latents, to_pictures

    pictures, hints = draw_shapes(16, torch.Generator().manual_seed(1))
    assert pictures.shape == hints.shape == (16, 3, 64, 64)
    assert set(hints.unique().tolist()) == {0.0, 1.0}
    latents = to_latents(pictures)
    assert shape_overlap(latents, latents) == 1
    assert shape_overlap(latents, latents.roll(1, 0)) < 0.5
    assert 0.5 < shape_overlap(latents.roll(1, 3), latents) < 0.9
    assert torch.allclose(to_pictures(latents), torch.nn.functional.avg_pool2d(pictures, 4), atol=1e-5)
    # Each line lies where a shape meets the ground.
    changes = (pictures[:, :, 1:, 1:] - pictures[:, :, :-1, :-1]).abs().sum(1) > 0
    assert (hints[:, 0, 1:, 1:][changes] == 1).all()


def test_the_same_seed_draws_the_same_shapes():
    from shapes_model import draw_shapes

    one, other, third = (draw_shapes(2, torch.Generator().manual_seed(seed))[0] for seed in (4, 4, 5))
    assert torch.equal(one, other)
    assert not torch.equal(one, third)


def test_every_way_is_run_once_and_a_second_call_runs_nothing(tmp_path, monkeypatch):
    import convergence

    monkeypatch.setattr(convergence, "HELD_OUT", 2)
    monkeypatch.setattr(convergence, "SAMPLING_STEPS", 2)
    monkeypatch.setattr(convergence, "BATCH", 2)
    results = convergence.compare(2, 2, 1, tmp_path)
    assert [(run["way"], run["seed"]) for run in results] == [(way, 0) for way in convergence.WAYS]
    assert [step for step, _ in results[0]["fidelity"]] == [0, 1, 2]
    assert all(0 <= value <= 1 for run in results for _, value in run["fidelity"])
    rows = convergence.table(results).splitlines()
    assert len(rows) == 2 + 3
    assert all(row.count("|") == 2 + len(convergence.WAYS) for row in rows)
    monkeypatch.setattr(convergence, "train_control", lambda *_: pytest.fail("a run was done twice"))
    assert convergence.compare(2, 2, 1, tmp_path) == json.loads(json.dumps(results))


def test_the_model_of_shapes_learns_and_is_kept(tmp_path, monkeypatch):
    import shapes_model

    monkeypatch.setattr(shapes_model, "BATCH", 4)
    monkeypatch.setattr(shapes_model, "AVERAGE", 0.9)
    said: list[str] = []
    first = shapes_model.train_model(40, 0, tmp_path / "shapes.safetensors", said.append)
    assert float(said[-1].rpartition(" ")[2]) < 0.7  # 1 at its start, which predicts nothing
    again = shapes_model.train_model(40, 0, tmp_path / "shapes.safetensors", pytest.fail)
    for name, tensor in first.model.diffusion_model.named_parameters():
        assert torch.equal(again.model.diffusion_model.get_parameter(name), tensor), name
