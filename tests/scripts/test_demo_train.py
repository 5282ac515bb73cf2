"""The demo model's training: it goes on exactly where it was, and its parts compute what they say."""

from __future__ import annotations

import contextlib
from functools import partial

import demo_train_autoencoder as autoencoder
import demo_train_kit
import demo_train_measure as measuring
import demo_train_model as model
import demo_train_pictures as drawn
import numpy as np
import pytest
import torch
from demo_train_kit import Run, indices
from demo_train_muon import Muon, orthogonal
from nextcontrol.models.demo_autoencoder import DemoAutoencoder
from nextcontrol.nodes.host.demo_model import build_clip
from torch import nn

import nodes

WIDTH = 40


pytestmark = pytest.mark.usefixtures("one_thread", "gradients")


def network_of(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))


def loss_of(network: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    return (network(rows) - rows.roll(1, dims=1)).square().mean()


def parts_of(network: nn.Module, step: int) -> list[partial[torch.Tensor]]:
    rows = torch.randn(16, WIDTH, generator=torch.Generator().manual_seed(step))
    return [partial(loss_of, network, part) for part in rows.split(4)]


class KilledError(Exception):
    """Stands for the end of the process."""


def trained(path, total, *kills, threads=2):
    """The averaged weights after a training that was killed before each of the steps `kills`, and the network's own."""
    for kill in (*kills, None):
        # What a process that was killed had in memory is lost: every run starts with other weights, and reads its state.
        network = network_of(seed=0 if not path.exists() else 99)
        run = Run(path, total, 1e-2, {"network": network})

        def parts(step, network=network, kill=kill):
            if step == kill:
                raise KilledError
            return parts_of(network, step)

        with contextlib.suppress(KilledError):
            run.train(parts, threads, 1.0)
    return run.average, [p.detach().clone() for p in network.parameters()]


def test_a_training_that_was_killed_ends_as_one_that_was_not(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_train_kit, "SAVE_SECONDS", 0.0)
    whole = trained(tmp_path / "whole.pt", 12)
    killed = trained(tmp_path / "killed.pt", 12, 5, 9)
    for ours, theirs in zip(whole, killed, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_the_number_of_threads_changes_nothing(tmp_path):
    one, three = (trained(tmp_path / f"{threads}.pt", 6, threads=threads) for threads in (1, 3))
    assert all(torch.equal(a, b) for a, b in zip(one[1], three[1], strict=True))


def test_a_run_ends_when_its_time_is_over_and_keeps_its_state(tmp_path):
    network = network_of()
    run = Run(tmp_path / "state.pt", 10**9, 1e-2, {"network": network})
    run.train(partial(parts_of, network), 1, 0.3 / 60)
    assert 0 < run.steps < 10**9
    assert Run(tmp_path / "state.pt", 10**9, 1e-2, {"network": network_of()}).steps == run.steps


def test_the_optimizer_learns(tmp_path):
    network = network_of()
    rows = torch.randn(64, WIDTH)
    before = float(loss_of(network, rows).detach())
    Run(tmp_path / "state.pt", 200, 5e-2, {"network": network}).train(partial(parts_of, network), 1, 1.0)
    assert float(loss_of(network, rows).detach()) < before / 3


@pytest.mark.parametrize("shape", [(48, 96), (96, 48)])
def test_steps_have_the_gradients_directions_and_equal_sizes(shape):
    left, right = (torch.linalg.qr(torch.randn(side, 48)).Q for side in shape)
    found = orthogonal((left @ torch.diag(torch.linspace(0.1, 1.0, 48)) @ right.T)[None])[0]
    turned = left.T @ found @ right
    values = turned.diagonal()
    assert (turned - torch.diag(values)).abs().max() < 1e-3
    assert 0.6 < float(values.min()) < float(values.max()) < 1.3


def test_tables_and_vectors_are_left_to_adam():
    optimizer = Muon([torch.zeros(3000, 96), torch.zeros(64), torch.zeros(64, 32, 3, 3), torch.zeros(8, 128, 3, 3)], 0.0)
    assert [tuple(momentum.shape) for momentum in optimizer.momenta] == [(1, 64, 288)]
    assert len(optimizer.adam.param_groups[0]["params"]) == 3


def test_every_picture_comes_once_in_an_epoch_wherever_a_run_begins():
    found = [[*indices(10, 4, step)] for step in range(5)]
    flat = [row for rows in found for row in rows]
    assert sorted(flat[:10]) == sorted(flat[10:]) == [*range(10)]
    assert flat[:10] != flat[10:]
    assert [*indices(10, 4, 3)] == found[3]


# Pictures


def discs(count: int = 6) -> np.ndarray:
    """Coloured discs with opacity, bytes (N, 128, 128, 4)."""
    y, x = np.mgrid[:128, :128]
    pictures = np.zeros((count, 128, 128, 4), np.uint8)
    for place in range(count):
        is_inside = (x - 50 - 5 * place) ** 2 + (y - 64) ** 2 < 40**2
        pictures[place][is_inside] = (40 * place % 256, 200 - 30 * place % 200, 90, 255)
    return pictures


def test_pictures_stand_on_their_ground():
    flat = autoencoder.on_ground(discs(1), 0.25)
    assert torch.allclose(flat[0, :, 0, 0], torch.tensor(0.25))
    assert torch.allclose(flat[0, :, 64, 50] * 255, torch.tensor([0.0, 200.0, 90.0]))


def test_edges_follow_the_outline_and_nothing_else():
    lines = autoencoder.edges(autoencoder.on_ground(discs(1)))[0, 0]
    y, x = torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij")
    distance = ((x - 50).square() + (y - 64).square()).sqrt()
    assert set(lines.unique().tolist()) == {0.0, 1.0}
    assert (distance[lines > 0] - 40).abs().max() < 2
    assert 150 < float(lines.sum()) < 600


def test_pictures_for_pairs_are_warped_by_their_seed_alone(monkeypatch):
    pictures = autoencoder.on_ground(discs())
    again = [drawn.warped(pictures, seed) for seed in (0, 0, 1)]
    assert torch.equal(again[0], again[1])
    assert all((one - other).abs().mean() > 0.01 for one, other in zip(again[0], again[2], strict=True))
    for limit, value in {"SMALLEST": 1.0, "TURN": 0.0, "BEND": 0.0}.items():
        monkeypatch.setattr(drawn, limit, value)
    assert torch.allclose(drawn.warped(pictures, 0), pictures, atol=1e-4)


def test_a_picture_that_is_made_smaller_stays_whole_on_white(monkeypatch):
    monkeypatch.setattr(drawn, "TURN", 0.0)
    monkeypatch.setattr(drawn, "BEND", 0.0)
    found = 1 - drawn.warped(torch.zeros(50, 1, 64, 64), 0)[:, 0]
    widths, heights = found.amax(1).sum(1) / 64, found.amax(2).sum(1) / 64
    assert torch.allclose(found.mean((1, 2)), widths * heights, atol=0.01), "a whole rectangle"
    for sides in (widths, heights):
        assert drawn.SMALLEST - 0.02 < sides.min() < drawn.SMALLEST + 0.1
        assert 0.9 < sides.max() <= 1


@pytest.fixture(scope="module")
def network():
    with torch.inference_mode(mode=False):
        torch.manual_seed(1)
        return DemoAutoencoder().requires_grad_(requires_grad=False)


def test_parts_hold_pictures_in_both_ranges(network):
    parts = autoencoder.parts_of(discs(20), 3)
    batch = torch.cat([pictures for pictures, _ in parts])
    assert batch.shape == (16, 3, 128, 128)
    is_hint = batch.flatten(1).amin(dim=1) >= 0
    assert int(is_hint.sum()) == 16 - autoencoder.PLAIN - autoencoder.COLORED
    assert torch.isfinite(autoencoder.loss_of(network, *parts[0]))


def noise_share(network: DemoAutoencoder, flat: torch.Tensor) -> float:
    """Variance of the noise that is drawn around latents, as a part of their own."""
    mean, log_variance = network.distribution(flat)
    return float(log_variance.exp().mean() / mean.var(dim=(0, 2, 3)).mean())


def test_normalising_changes_latents_and_not_pictures():
    torch.manual_seed(2)
    network = DemoAutoencoder().requires_grad_(requires_grad=False)
    flat = autoencoder.on_ground(discs()) * 2 - 1
    before = network.decode(network.encode(flat))
    share = noise_share(network, flat)
    autoencoder.normalise(network, discs())
    assert 0.25 < noise_share(network, flat) / share < 4
    assert (network.decode(network.encode(flat)) - before).abs().max() < 1e-3
    rows = network.encode(flat).movedim(1, -1).flatten(0, 2) * autoencoder.SCALE
    assert rows.mean(dim=0).abs().max() < 1e-2
    assert (torch.cov(rows.T) - torch.eye(4)).abs().max() < 2e-2


# Text


def test_training_sees_the_text_as_the_hosts_clip_gives_it(tmp_path):
    vocabulary = torch.tensor([518, 736, 3055, 49406, 49407])
    text = model.new_text_model(vocabulary)
    weights = {key: tensor.half() for key, tensor in text.state_dict().items()}
    text.load_state_dict({key: tensor.float() for key, tensor in weights.items()})
    clip = build_clip(weights, vocabulary, tmp_path)
    for caption in ("red apple", "", "a word that no picture has"):
        expected = nodes.CLIPTextEncode().encode(clip, caption)[0][0][0]
        tokens = torch.tensor([[token for token, _ in clip.tokenize(caption)["l"][0]]])
        assert (model.text_features(text, tokens) - expected).abs().max() < 5e-3


# Measuring


def test_a_picture_is_nearest_to_itself_and_to_its_mirror_image():
    truth = autoencoder.on_ground(discs())
    noisy = truth + 0.05 * torch.randn(truth.shape)
    assert measuring.ranks_of(noisy, truth, [*range(6)]) == [0] * 6
    assert measuring.ranks_of(truth.flip(-1), truth, [*range(6)]) == [0] * 6
    assert measuring.ranks_of(truth[:1], truth, [5]) == [5]
