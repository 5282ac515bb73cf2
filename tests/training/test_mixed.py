"""Several conditions in one training: whose turn it is, what moves, and what a resumed run sees."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from nextcontrol.models.adapted import LORA, Group
from nextcontrol.models.ctrlora_file import condition_names, linear_names, read_condition, stack_conditions
from nextcontrol.models.state_dict import shapes_of, strip_prefix
from nextcontrol.training.backbone import Share
from nextcontrol.training.cache import TensorCache
from nextcontrol.training.checkpoint import StateStore
from nextcontrol.training.config import TrainConfig
from nextcontrol.training.encode import encode_dataset, split_held_out
from nextcontrol.training.loop import Hooks, Run
from nextcontrol.training.method_ctrlora_base import CtrLoRABaseMethod, start_lora
from nextcontrol.training.metrics import MetricsFile
from nextcontrol.training.mixed import MixedDataset, MixedSource, check_conditions, config_for, mixed_held_out
from nextcontrol.training.sensitivity import measure, with_partners
from nextcontrol.training.source import PairSource, held_out_batches
from nextcontrol.training.trainer import Trainer
from seeded import seeded_tensor
from shard_files import encode, sharded, source_of
from tiny_training import CONTEXT, HEADS, Encoders, TinyBackbone, dataset_of, encoded, tiny_base, write_pairs

SIZES = {"canny": 8, "depth": 5, "palette": 4}
CONFIG = TrainConfig(
    steps=20, rank=4, learning_rate=1e-2, save_every=50, preview_every=0, sensitivity_every=10, validation_pairs=2,
    weight_decay=0.1,
)  # fmt: skip


pytestmark = pytest.mark.usefixtures("one_thread", "gradients")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    return {name: write_pairs(root / name, count=count) for name, count in SIZES.items()}


def settings(**changes):
    return TrainConfig(**{**CONFIG.__dict__, **changes})


def data_of(folders, config, **dataset_settings):
    """Source and held-out pairs, as a run has them."""
    backbone = TinyBackbone()
    sources, held_out = {}, {}
    for name, folder in folders.items():
        own, dataset = config_for(config, name), encoded(folder, **dataset_settings)
        trained, held = split_held_out(dataset.items, config.validation_pairs)
        sources[name] = PairSource(dataset, trained, own, backbone.objective)
        held_out[name] = held_out_batches(dataset, held, own.seed, backbone.objective)
    return MixedSource(sources, config), mixed_held_out(held_out)


def method_of(config, **options):
    base = tiny_base()
    loras = {name: start_lora(base.config, config.rank, config.seed, name) for name in SIZES}
    return CtrLoRABaseMethod(base, loras, HEADS, **options)


def run_of(work, folders, hooks=None, **changes):
    config = settings(**changes)
    source, held_out = data_of(folders, config)
    trainer = Trainer(method_of(config), TinyBackbone(), config)
    store, metrics = StateStore(work / "states", 2), MetricsFile(work / "metrics.jsonl")
    return Run(trainer, source, held_out, store, metrics, {}, hooks or Hooks())


def same_batches(ours, theirs):
    for own, other in zip(ours, theirs, strict=True):
        assert (own.condition, own.names) == (other.condition, other.names)
        for a, b in zip(own[:5], other[:5], strict=True):
            assert torch.equal(a, b)


def test_every_round_visits_all_conditions_in_an_order_of_its_own(folders):
    source, _ = data_of(folders, settings())
    seen = [source.batches(step)[0].condition for step in range(30)]
    rounds = [tuple(seen[start : start + 3]) for start in range(0, 30, 3)]
    assert all(sorted(own) == sorted(SIZES) for own in rounds)
    assert len(set(rounds)) > 3
    other, _ = data_of(folders, settings(seed=1))
    assert [other.batches(step)[0].condition for step in range(30)] != seen


def test_a_smaller_dataset_begins_again_while_a_larger_one_has_new_pairs(folders):
    source, _ = data_of(folders, settings(validation_pairs=0))
    seen = Counter((batch.condition, batch.names) for step in range(3 * 40) for batch in source.batches(step))
    for name, count in SIZES.items():
        times = [number for (condition, _), number in seen.items() if condition == name]
        assert len(times) == count
        assert set(times) == {40 // count}


def test_conditions_have_draws_of_their_own(folders):
    source, _ = data_of(folders, settings(steps=9))
    batches = [batch for step in range(9) for batch in source.batches(step)]
    assert len({float(batch.noise.sum()) for batch in batches}) == 9
    assert len({int(batch.timesteps) for batch in batches}) > 5


@pytest.mark.parametrize("processes", [2, 3, 6])
def test_the_shares_of_several_processes_are_the_batches_of_one(folders, processes):
    source, _ = data_of(folders, settings(batch_size=2, accumulation_steps=6))
    for step in (0, 1, 7):
        alone = source.batches(step)
        assert [len(batch.latents) for batch in alone] == [2] * 6
        parts = [batch for rank in range(processes) for batch in source.batches(step, Share(rank, processes))]
        same_batches(alone, parts)


def test_conditions_can_lie_in_shards(tmp_path):
    """A source that streams is one like any other: each condition's pairs once an epoch, shared out among processes."""
    config, sources, held_out = settings(batch_size=2, accumulation_steps=6, steps=4), {}, {}
    for count, name in enumerate(("canny", "depth"), 7):
        folder = tmp_path / f"{name}_encoded"
        encode(sharded(write_pairs(tmp_path / name, count)), folder)
        sources[name] = source_of(folder, buffer_size=3, config=config_for(config, name))
        held_out[name] = sources[name].held_out()
    assert [batch.condition for batch in mixed_held_out(held_out)] == ["canny", "depth"] * 2
    source = MixedSource(sources, config)
    alone = [source.batches(step) for step in range(3)]
    seen = Counter((batch.condition, name) for own in alone for batch in own for name in batch.names)
    assert len(seen) == 5 + 6
    assert set(seen.values()) <= {3, 4}
    for step, own in enumerate(alone):
        same_batches(own, [batch for rank in range(3) for batch in source.batches(step, Share(rank, 3))])


def test_batches_depend_on_the_step_alone(folders):
    source, _ = data_of(folders, settings(accumulation_steps=2))
    forwards = [source.batches(step) for step in range(6)]
    fresh, _ = data_of(folders, settings(accumulation_steps=2))
    for step in (5, 0, 3):
        same_batches(forwards[step], fresh.batches(step))


def test_a_condition_that_is_not_in_an_update_is_left_exactly_alone(folders):
    """Before its first update and after it: no step, no weight decay, no moment that fades."""
    config = settings()
    source, _ = data_of(folders, config)
    trainer = Trainer(method_of(config), TinyBackbone(), config)
    parameters, seen = trainer.method.parameters(), Counter()
    for step in range(5):
        before = {key: tensor.detach().clone() for key, tensor in parameters.items()}
        (batch,) = source.batches(step)
        trainer.update([batch])
        seen[batch.condition] += 1
        for key, tensor in parameters.items():
            is_in = key.startswith(("base/", f"lora/{batch.condition}/"))
            assert torch.equal(tensor, before[key]) != is_in, key
        for name in SIZES:
            steps = {float(trainer.optimizer.state[t].get("step", 0)) for t in trainer.method.loras[name].tensors().values()}
            assert steps == {seen[name]}
    assert sorted(seen.values()) == [1, 2, 2]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_checkpointing_and_bf16_train_every_tensor(folders, precision):
    """Blocks that are computed twice give the same gradients, those of the time embedding that all of them share among them."""
    config = settings(precision=precision)
    source, _ = data_of(folders, config)
    gradients = []
    for checkpointing in (False, True):
        trainer = Trainer(method_of(config, checkpointing=checkpointing), TinyBackbone(), config)
        for lora in trainer.method.loras.values():
            for key, tensor in lora.tensors().items():
                tensor.data.copy_(seeded_tensor(key, tensor.shape) / 10)
        (batch,) = source.batches(0)
        trainer.loss(batch, batch.hints).backward()
        found = {key: tensor.grad for key, tensor in trainer.method.parameters().items()}
        gradients.append({key: grad for key, grad in found.items() if grad is not None})
        assert all(key.startswith(("base/", f"lora/{batch.condition}/")) for key in gradients[-1])
        assert all(grad.abs().max() > 0 for grad in gradients[-1].values())
    assert gradients[0].keys() == gradients[1].keys()
    assert len(gradients[0]) == len(trainer.method.base.state_dict()) + len(lora.tensors())
    for key, grad in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], grad, atol=1e-6 * float(grad.abs().max()), rtol=0)


def test_the_body_the_norms_and_the_zero_convolutions_are_shared_and_only_loras_are_not():
    names = list(method_of(settings()).parameters())
    own = {name.partition("/")[2].partition("/")[2] for name in names if name.startswith("lora/")}
    shared = {name.removeprefix("base/") for name in names if name.startswith("base/")}
    assert own
    assert all(LORA in key for key in own)
    assert shared == set(tiny_base().state_dict())
    assert len(names) == len(shared) + len(SIZES) * len(own)
    assert {key.partition(LORA)[0] for key in own} == set(linear_names(tiny_base().config))


def test_a_lora_starts_as_the_recipe_has_it_and_each_with_numbers_of_its_own():
    config = tiny_base().config
    canny, depth, again = (start_lora(config, 4, 0, name) for name in ("canny", "depth", "canny"))
    downs = [key for key in canny.tensors() if key.endswith("down.weight")]
    for key, tensor in canny.tensors().items():
        assert torch.equal(tensor, again.tensor(key))
        if key not in downs:
            assert tensor.abs().max() == 0
    assert all(not torch.equal(canny.tensor(key), depth.tensor(key)) for key in downs)
    deviation = torch.cat([canny.tensor(key).detach().flatten() for key in downs]).std()
    assert abs(float(deviation) * 4 - 1) < 0.05


@pytest.mark.parametrize(("step", "changes"), [(1, {}), (10, {"ema_decay": 0.5, "accumulation_steps": 2})])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, folders, step, changes):
    """After one update two conditions have no optimizer state yet."""
    changes = {"steps": 12} | changes
    whole = run_of(tmp_path / "whole", folders, **changes)
    whole.train()

    def stop(_trainer, report):
        if report.step == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_of(tmp_path / "cut", folders, Hooks(on_step=stop), **changes).train()
    run = run_of(tmp_path / "cut", folders, **changes)
    assert run.resume()
    assert run.trainer.step == step
    run.train()
    assert run.trainer.losses == whole.trainer.losses
    for ours, theirs in (
        (run.trainer.method.parameters(), whole.trainer.method.parameters()),
        (run.trainer.result(), whole.trainer.result()),
    ):
        assert all(torch.equal(ours[key], tensor) for key, tensor in theirs.items())
    kept = ("loss", "sensitivity_shuffled", "sensitivity_shuffled_canny", "held_out_loss")
    lines = [[[line.get(key) for key in kept] for line in own.metrics.lines()] for own in (run, whole)]
    assert lines[0] == lines[1]


@pytest.fixture(scope="module")
def trained(folders):
    """A method after twelve updates: all of its LoRAs do something."""
    with torch.inference_mode(mode=False), torch.enable_grad():
        config = settings()
        source, _ = data_of(folders, config)
        trainer = Trainer(method_of(config, is_stacked=True), TinyBackbone(), config)
        for step in range(12):
            trainer.update(source.batches(step))
    return trainer.method


def given(rows):
    return seeded_tensor("h", [rows, 4, 8, 8]), torch.full((rows,), 500), seeded_tensor("c", [rows, 8, CONTEXT])


def test_switching_is_exact(trained):
    """Back and forth bit for bit; in one batch the matrix products sum up in another order, which fp64 shows to be all."""
    hints, times, context = given(3)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-13)):
        network = trained.base.to(dtype)
        rows = [(hints[i : i + 1].to(dtype), times[i : i + 1].float(), context[i : i + 1].to(dtype)) for i in range(3)]
        first, second = (
            [network(*row, HEADS, [Group(trained.loras[name], 1.0, 1)]) for name, row in zip(SIZES, rows, strict=True)]
            for _ in range(2)
        )
        groups = [Group(trained.loras[name], 1.0, 1) for name in SIZES]
        together = network(*(torch.cat(parts) for parts in zip(*rows, strict=True)), HEADS, groups)
        for i, (alone, again) in enumerate(zip(first, second, strict=True)):
            for a, b, all_at_once in zip(alone, again, together, strict=True):
                assert torch.equal(a, b)
                assert (all_at_once[i : i + 1] - a).abs().max() <= tolerance * a.abs().max()
    trained.base.to(torch.float32)


def test_conditions_do_different_things(trained):
    hints, times, context = given(1)
    found = [trained.control(hints, hints, times, context, name).residuals[-1] for name in SIZES]
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])


def test_the_files_hold_what_was_trained(trained):
    files = trained.published(trained.parameters())
    assert list(files) == ["", "_canny", "_depth", "_palette", ".loras_dict"]
    base = strip_prefix(files[""], "control_model.")
    assert shapes_of(base) == shapes_of(tiny_base().state_dict())
    hints, times, context = given(1)
    network = tiny_base()
    network.load_state_dict(base)
    stacked = strip_prefix(files[".loras_dict"], "control_model.")
    assert condition_names(stacked) == list(SIZES)
    for name in SIZES:
        expected = trained.control(hints, hints, times, context, name).residuals
        own = read_condition(strip_prefix(files[f"_{name}"], "control_model."), shapes_of(base), name)
        listed = read_condition(stacked, shapes_of(base), name, name, linear_names(network.config))
        for condition in (own, listed):
            found = network(hints, times.float(), context, HEADS, [Group(condition, 1.0, 1)])
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
            assert {"zero_convs.0.0.weight", "middle_block.1.norm.weight"} <= condition.keys


def test_a_condition_with_norms_of_its_own_cannot_be_stacked(trained):
    files = trained.published(trained.parameters())
    base, canny = (strip_prefix(files[name], "control_model.") for name in ("", "_canny"))
    assert stack_conditions(base, {"canny": canny}).keys() > base.keys()
    changed = canny | {"zero_convs.0.0.bias": canny["zero_convs.0.0.bias"] + 1}
    with pytest.raises(ValueError, match=r"'canny' has 'zero_convs.0.0.bias' of its own, .*: keep it in a file of its own"):
        stack_conditions(base, {"canny": changed})


def test_a_wrong_hint_is_another_one_of_the_same_condition(folders):
    config = settings()
    _, held_out = data_of(folders, config)
    assert [batch.condition for batch in held_out[:3]] == list(SIZES)
    assert {name: len(own) for name, own in with_partners(held_out).items()} == dict.fromkeys(SIZES, 2)
    assert with_partners(held_out[:3]) == {}
    trainer = Trainer(method_of(config), TinyBackbone(), config)
    found = measure(trainer, held_out)
    for name, own in found.by_condition.items():
        assert own == measure(trainer, [batch for batch in held_out if batch.condition == name])
    assert found.shuffled == pytest.approx(sum(own.shuffled for own in found.by_condition.values()) / 3)
    assert found.shuffled != found.true


def test_a_picture_of_several_datasets_is_encoded_once(tmp_path):
    folders = [write_pairs(tmp_path / name, count=3) for name in ("a", "b")]
    caches = [TensorCache(own / ".c", [other / ".c"]) for own, other in (folders, folders[::-1])]
    counts = []
    for folder, cache in zip(folders, caches, strict=True):
        encoders = Encoders()
        dataset = encode_dataset(dataset_of(folder), encoders, encoders, cache, 1.0)
        counts.append((len(encoders.pictures), len(encoders.texts)))
        assert dataset.latent(dataset.items[0].sides[0][0]).shape == (4, 8, 8)
    assert counts == [(6, 4), (0, 0)]
    damaged = next((folders[0] / ".c").rglob("*.safetensors"))
    damaged.write_bytes(b"x")
    assert not caches[0].has(damaged.stem)


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["ca.nny"], r"'ca\.nny' must be 1 to 64 letters, digits, '_' or '-'"),
        (["../up"], r"'\.\./up' must be"),
        ([""], "'' must be"),
        (["canny", "Canny"], "'canny' is there more than once"),
        ([], "there is none: give each condition a name and a folder"),
        (["\u202ea\n" * 40_000, *map(str, range(9)), *"./:*" * 9], r"'.+; and \d+ more"),
    ],
)
def test_a_name_that_cannot_be_used_is_refused(names, sentence):
    with pytest.raises(ValueError, match=f"The names of the conditions are wrong: {sentence}") as error:
        check_conditions(names)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 700


def test_one_folder_is_not_two_conditions(folders):
    with pytest.raises(ValueError, match="'edges' and 'depth' are both in the folder 'canny', which holds"):
        MixedDataset({"edges": dataset_of(folders["canny"]), "depth": dataset_of(folders["canny"])})
    mixed = MixedDataset({"edges": dataset_of(folders["canny"]), "沈": dataset_of(folders["depth"])})
    assert mixed.name == "edges: canny, 沈: depth"
