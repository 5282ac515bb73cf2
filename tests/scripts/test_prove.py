"""The proof in small, on a demo model of random weights: what is measured, that nothing is done twice, what the page says."""

from __future__ import annotations

import importlib.util
import re
import sys
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from PIL import Image
from prove_claims import compared, order, part_kept, steps_to_follow
from prove_metrics import edge_f1, hint_error, share_of_way
from prove_world import FULL, Extent, Keeper, Part, World

TINY = Extent(
    steps=2, looks=(0, 1), batch=2, base_steps=3, pairs=6, pictures=2, sampling_steps=2, seeds=1, strengths=(0, 1),
    ranks=(4, 8), few_pairs=(4, 6), rounds=1,
)  # fmt: skip
TOKENS = [518, 736, 3055, 49406, 49407]


pytestmark = pytest.mark.usefixtures("one_thread", "gradients")


def discs(count: int) -> torch.Tensor:
    """Coloured discs on white, (N, 64, 64, 3) in [0, 1]."""
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    generator = torch.Generator().manual_seed(3)
    centers, colors = 20 + 24 * torch.rand(count, 2, generator=generator), torch.rand(count, 3, generator=generator)
    inside = ((y - centers[:, :1, None]) ** 2 + (x - centers[:, 1:, None]) ** 2 < 15**2)[..., None]
    return torch.where(inside, 0.7 * colors[:, None, None], torch.ones(3))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The demo model with random weights, none of them zero."""
    from demo_train_model import new_text_model
    from nextcontrol.models.demo_autoencoder import DemoAutoencoder
    from nextcontrol.nodes.host.demo_model import (
        TEXT_FILE,
        UNET_CONFIG,
        UNET_FILE,
        VAE_FILE,
        VOCABULARY,
        DemoSD15,
        load_demo_model,
    )
    from safetensors.torch import save_file
    from seeded import seeded_state_dict

    folder = tmp_path_factory.mktemp("model")
    with torch.inference_mode(mode=False):
        torch.manual_seed(0)
        vocabulary = torch.tensor(TOKENS)
        unet = DemoSD15(UNET_CONFIG).get_model({}, "", device="meta").diffusion_model.state_dict()
        parts = {
            UNET_FILE: seeded_state_dict({key: tensor.shape for key, tensor in unet.items()}),
            TEXT_FILE: new_text_model(vocabulary).state_dict(),
            VAE_FILE: DemoAutoencoder().state_dict(),
        }
        for name, tensors in parts.items():
            own = {VOCABULARY: vocabulary.int()} if name == TEXT_FILE else {}
            save_file({key: tensor.half().contiguous() for key, tensor in tensors.items()} | own, folder / name)
        return load_demo_model(folder)


@pytest.fixture(scope="module")
def world(models, base_folder, tmp_path_factory):
    import demo_train_controls
    import prove

    prove.register(base_folder / "shipped")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_train_controls, "SIDE", 64)
        pictures = discs(8)
        words = ["red", "blue", "house", "tree", "car", "dog"]
        keeper = Keeper(tmp_path_factory.mktemp("kept"), "test")
        yield World(models, Part(pictures[:6], words), Part(pictures[6:], ["cat", "sun"]), TINY, keeper)


COLUMNS = {"strength": 2, "new_condition": 1, "parts": 4, "normalization": 1}
"""Axes of each figure."""


class Figure:
    """Stands for matplotlib's where that is not installed: notes on which axes something is drawn."""

    def __init__(self, **_: Any) -> None:
        self.axes: list[MagicMock] = []

    def subplots(self, _rows: int, count: int) -> Any:
        """Axes that note their calls."""
        self.axes = [MagicMock() for _ in range(count)]
        return self.axes if count > 1 else self.axes[0]

    def savefig(self, path: Any, **_: Any) -> None:
        """As many columns as axes were drawn on."""
        Image.new("RGB", (sum(bool(axis.mock_calls) for axis in self.axes), 1)).save(path)


@pytest.fixture(scope="module")
def page(world, tmp_path_factory):
    """The page of a whole run."""
    import prove

    path = tmp_path_factory.mktemp("docs") / "proof.md"
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode(mode=False), torch.enable_grad():
        if importlib.util.find_spec("matplotlib") is None:
            patch.setitem(sys.modules, "matplotlib", SimpleNamespace())
            patch.setitem(sys.modules, "matplotlib.figure", SimpleNamespace(Figure=Figure))
        prove.prove(world, prove.STAGES, path, "python3 scripts/prove.py")
    return path


# The whole run


def test_the_page_has_every_table_and_figure(page):
    text = page.read_text(encoding="utf-8")
    assert "Not run yet" not in text
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert [line[3] for line in headings[:6]] == ["1", "2", "3", "4", "5", "6"]
    tables = [block for block in text.split("\n\n") if block.startswith("| ")]
    assert len(tables) == 11
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1, table
    figures = re.findall(r"\]\((images/proof_\w+\.png)\)", text)
    assert len(set(figures)) == 5
    for figure in figures:
        with Image.open(page.parent / figure) as picture:
            assert picture.width in {COLUMNS.get(figure[13:-4]), *range(200, 2000)}


def test_strength_0_is_no_control_and_strength_1_is_not(world, page):
    from prove_stages import kept

    found = kept(world, "fidelity")
    assert set(found["exact"]) == {"ControlNeXt canny", "CtrLoRA canny", "CtrLoRA palette", "ControlNet canny"}
    assert all(found["exact"].values())
    assert all(found["moved"].values())
    assert "bit for bit those without a control" in page.read_text(encoding="utf-8")
    at_0 = {row["control"]: row["values"] for row in found["rows"] if row["strength"] == 0}
    assert all(values == found["none"] for values in at_0.values())


def test_a_killed_run_goes_on_and_does_nothing_twice(world, page, monkeypatch):
    import prove_sample
    import prove_stages
    import prove_train

    before = page.read_text(encoding="utf-8")
    monkeypatch.setattr(prove_train, "_train", lambda *_: pytest.fail("trained twice"))
    monkeypatch.setattr(prove_sample, "_measure", lambda *_: pytest.fail("measured twice"))
    for path in world.keeper.folder.glob("stage_n*.json"):
        path.unlink()
    assert prove_stages.kept(world, "new_condition") is None
    for stage in ("new_condition", "normalization"):
        prove_stages.run(world, stage, lambda _: None)
    results = {stage: prove_stages.kept(world, stage) for stage in prove_stages.STAGES}
    about = {"pairs": 6, "held_out": 2}
    assert document(results, world.extent, about) == before


def document(results: dict[str, Any], extent: Extent, about: dict[str, int]) -> str:
    """The page of some results."""
    import prove_report

    return prove_report.document(results, extent, "python3 scripts/prove.py", about)


def test_trainings_move_what_they_train_and_leave_the_model_alone(world, page):
    """The same pictures without a control after all trainings, some of which put weights into the model."""
    from prove_metrics import measure
    from prove_sample import draw
    from prove_stages import kept

    found = kept(world, "new_condition")
    assert measure(draw(world, [], 0), world.hints, world.draw) == found["none"][0]
    for method, (curve,) in found["curves"].items():
        (_, first), (step, last) = curve
        assert step == 2
        assert first["grayscale"] != last["grayscale"], method
    start = {method: curve[0][0][1] for method, curve in found["curves"].items()}
    assert start["controlnet"] == found["none"][0]
    assert start["ctrlora"] == start["finetune"] != found["none"][0]


def test_parameters_at_full_size_are_those_of_the_published_files(world, page):
    from prove_stages import kept

    found = kept(world, "cost")
    real = found["real"]
    assert (real["UNet"], real["ControlNet"]) == (859_520_964, 361_279_120)
    assert 359e6 < real["CtrLoRA base"] < real["ControlNet"]
    assert 36e6 < real["CtrLoRA LoRA"] < 38e6
    assert found["demo"]["CtrLoRA LoRA"] < found["demo"]["ControlNet"]
    assert all(len(values) == TINY.rounds for values in found["ratios"].values())


# What is measured


def lines(*columns: int) -> torch.Tensor:
    """White vertical lines on black, (1, 32, 32, 3)."""
    picture = torch.zeros(1, 32, 32, 3)
    picture[:, :, list(columns)] = 1
    return picture


def test_f1_is_1_for_the_same_edges_also_one_pixel_aside_and_0_for_none():
    assert edge_f1(lines(8, 20), lines(8, 20)).tolist() == [1]
    assert edge_f1(lines(9, 19), lines(8, 20)).tolist() == [1]
    assert edge_f1(lines(10), lines(8)).tolist() == [0]
    assert edge_f1(lines(9), lines(8), tolerance=0).tolist() == [0]
    assert edge_f1(lines(), lines(8)).tolist() == edge_f1(lines(8), lines()).tolist() == [0]
    assert edge_f1(lines(), lines()).tolist() == [1]


def test_f1_counts_what_is_missing_and_what_is_too_much():
    assert edge_f1(lines(8), lines(8, 20)).item() == pytest.approx(2 / 3)
    assert edge_f1(lines(8, 14, 20, 26), lines(8)).item() == pytest.approx(2 * 0.25 / 1.25)
    assert edge_f1(torch.cat([lines(8), lines(3)]), torch.cat([lines(8), lines(8)])).tolist() == [1, 0]


def test_an_error_is_the_mean_difference_of_each_picture():
    assert hint_error(torch.full((2, 4, 4, 3), 0.5), torch.stack([torch.zeros(4, 4, 3), torch.ones(4, 4, 3)])).tolist() == [
        0.5,
        0.5,
    ]
    assert hint_error(lines(0), lines()).item() == pytest.approx(1 / 32)


def test_the_way_goes_from_no_control_to_the_true_pictures():
    assert share_of_way("canny", 0.4, 0.2, 0.6) == pytest.approx(0.5)
    assert share_of_way("palette", 0.1, 0.2, 0.05) == pytest.approx(2 / 3)
    assert share_of_way("palette", 0.3, 0.2, 0.05) == pytest.approx(-2 / 3)
    assert share_of_way("palette", 0.3, 0.2, 0.25) == share_of_way("canny", 0.3, 0.2, 0.2) == 0


# Sentences


def test_a_way_is_better_only_beyond_the_spread():
    assert order([0.5, 0.6], [0.3, 0.4], is_higher_better=True) == 1
    assert order([0.5, 0.6], [0.3, 0.4], is_higher_better=False) == -1
    assert order([0.5, 0.3], [0.4, 0.2], is_higher_better=True) == 0
    assert order([0.500], [0.495], is_higher_better=True) == 0
    assert order([0.5], [0.4], is_higher_better=True) == 1


def test_sentences_follow_the_numbers():
    names = ("A", "B")
    assert compared("A is better.", names, [0.2], [0.4], "palette").text.startswith("**Shown.** A is better.")
    other = compared("A is better.", names, [0.4], [0.2], "palette")
    assert other.text == "**Not shown.** A is better. Palette error: A 0.400, B 0.200: the other way round."
    assert compared("A is better.", names, [0.4], [0.2], "canny").verdict == 1
    assert "too near to tell" in compared("A is better.", names, [0.4, 0.2], [0.3, 0.1], "canny").text


def test_an_effect_is_kept_lost_or_none():
    alone, none = ("alone", [0.6]), [0.2]
    assert [part_kept("", alone, ("both", [value]), none, "canny").verdict for value in (0.58, 0.45, 0.3)] == [1, 0, -1]
    assert "95% of the effect" in part_kept("", alone, ("both", [0.58]), none, "canny").text
    assert "no effect" in part_kept("", ("alone", [0.1]), ("both", [0.1]), none, "canny").text
    assert part_kept("", ("alone", [0.1]), ("both", [0.11]), none, "palette").verdict == 1


def test_the_step_from_which_a_hint_is_followed():
    curves = [[[0, {"canny": 0.2}], [10, {"canny": 0.39}], [20, {"canny": 0.5}]]]
    assert steps_to_follow(curves, "canny", [0.2], 0.6) == 20
    assert steps_to_follow(curves, "canny", [0.2], 0.9) is None


def curve(*values: float) -> list[Any]:
    """One seed's."""
    return [[[place, {"grayscale": value, "canny": value}] for place, value in enumerate(values)]]


def test_the_page_says_what_shows_and_what_does_not():
    limits = {"none": [{"grayscale": 0.3, "canny": 0.3}], "best": {"grayscale": 0.05, "canny": 0.9}}
    fast, slow = curve(0.3, 0.1, 0.06), curve(0.3, 0.29, 0.28)
    for lora, scratch, verdict in ((fast, slow, "Shown"), (slow, fast, "Not shown")):
        curves = {"ctrlora": lora, "finetune": fast, "controlnet": scratch}
        text = document({"new_condition": {"curves": curves, **limits}}, FULL, {"pairs": 6, "held_out": 2})
        own = text.split("## 2.")[1].split("## 3.")[0]
        assert f"**{verdict}.** A LoRA on the base learns a new condition sooner" in own
        first, second = ("1", "not within") if verdict == "Shown" else ("not within", "1")
        assert re.search(rf"LoRA (after )?{first}.*from scratch (after )?{second}", own)
        closing = text.split("## What this small model does not show")[1]
        assert ("sooner than a ControlNet" in closing) == (verdict == "Not shown")
        assert text.count("Not run yet: `python3 scripts/prove.py --stages") == 5


def test_strength_0_that_is_not_exact_is_said():
    from prove_report import _exact_sentence

    assert "**not** exactly no control for B." in _exact_sentence({"exact": {"A": True, "B": False}, "moved": {}})
    assert "bit for bit" in _exact_sentence({"exact": {"A": True}, "moved": {"A": True}})


# What is kept


def test_a_result_is_kept_when_it_is_whole_and_only_for_its_settings(tmp_path):
    keeper = Keeper(tmp_path, "one")
    with pytest.raises(KeyboardInterrupt):
        keeper.keep("kind", 1, lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    assert keeper.peek("kind", 1) is None
    assert keeper.keep("kind", 1, lambda: {"a": 1}) == keeper.keep("kind", 1, pytest.fail) == {"a": 1}
    assert keeper.keep("kind", 2, lambda: 5) == 5
    assert Keeper(tmp_path, "other").peek("kind", 1) is None
    tensor = torch.arange(3.0)
    assert torch.equal(keeper.tensor("t", 1, lambda: tensor), keeper.tensor("t", 1, pytest.fail))


def test_mirrored_pictures_come_when_there_are_no_more():
    from prove_train import chosen_rows

    rows = chosen_rows(6, 9, torch.Generator().manual_seed(0))
    assert sorted(rows[:6]) == [*range(6)]
    assert len(set(rows)) == 9
    assert all(row >= 6 for row in rows[6:])


def test_an_unknown_stage_is_refused(capsys):
    import prove

    with pytest.raises(SystemExit):
        prove.main(["--stages", "fidelity,beauty"])
    assert "--stages has 'beauty', and there are fidelity, new_condition" in capsys.readouterr().err
