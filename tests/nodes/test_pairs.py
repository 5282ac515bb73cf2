"""Folders with pairs: found in every layout, never outside the allowed places, made and checked."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil

import folder_paths
import numpy as np
import pytest
import torch
from nextcontrol.nodes.host import make_hints
from nextcontrol.nodes.host.dataset_folders import KIND, cache_of, find_folder, new_folder, open_dataset
from nextcontrol.nodes.host.make_hints import read_options
from nextcontrol.nodes.pairs import CheckPairs, MakePairs, PairDatasetNode
from nextcontrol.training.dataset import DatasetSettings, usable_pairs
from PIL import Image
from tiny_training import write_pairs

SETTINGS = DatasetSettings(resolution=64)


@pytest.fixture
def place(base_folder, tmp_path_factory):
    """A fresh folder below input/."""
    root = base_folder / "input"
    name = f"pairs_{tmp_path_factory.mktemp('x').name}"
    yield root / name
    shutil.rmtree(root / name, ignore_errors=True)


def names_and_captions(folder):
    dataset = open_dataset(folder.name, SETTINGS)
    return [(pair.name, pair.hint.relative_to(folder).as_posix(), pair.caption) for pair in dataset.pairs], dataset.orphans


def test_folders_of_the_same_names_are_pairs(place):
    write_pairs(place, 2)
    (place / "source" / "sub").mkdir()
    (place / "target" / "sub").mkdir()
    shutil.copy(place / "source" / "000.png", place / "source" / "sub" / "x.png")
    Image.new("RGB", (64, 64)).save(place / "target" / "sub" / "x.jpg")
    (place / "source" / "sub" / "x.txt").write_text("beside the hint")
    shutil.copy(place / "source" / "000.png", place / "source" / "lonely.png")
    shutil.copy(place / "source" / "000.png", place / "target" / "alone.png")
    pairs, orphans = names_and_captions(place)
    assert pairs == [
        ("target/000.png", "source/000.png", "number 0"),
        ("target/001.png", "source/001.png", "number 1"),
        ("target/sub/x.jpg", "source/sub/x.png", "beside the hint"),
    ]
    assert sorted(orphans) == ["source/lonely.png", "target/alone.png"]


@pytest.mark.parametrize(
    ("file", "keys"),
    [
        ("prompt.json", ("source", "target", "prompt")),
        ("metadata.jsonl", ("conditioning_image", "file_name", "text")),
        ("metadata.jsonl", ("hint", "target", "caption")),
    ],
)
def test_rows_are_pairs_in_their_order(place, file, keys):
    write_pairs(place, 3, captions=False)
    rows = [dict(zip(keys, (f"source/{n:03d}.png", f"target\\{n:03d}.png", f"row {n}"), strict=True)) for n in (2, 0, 7)]
    (place / file).write_text("".join(json.dumps(row) + "\n" for row in rows) + "\n")
    pairs, orphans = names_and_captions(place)
    assert pairs == [("target/002.png", "source/002.png", "row 2"), ("target/000.png", "source/000.png", "row 0")]
    assert orphans == (f"source/007.png ({file}, row 3)",)


@pytest.mark.parametrize("name", ["", "/etc", "../output", "a/../../b", "C:/x", ".hidden", "x/.nextcontrol"])
def test_a_folder_name_that_leads_out_is_refused(name):
    for find in (find_folder, lambda given: new_folder(given, "folder")):
        with pytest.raises(ValueError, match="folder is"):
            find(name)
    assert PairDatasetNode.validate_inputs(name) is not True


def test_links_that_lead_out_are_refused(place, tmp_path):
    outside = write_pairs(tmp_path / "outside", 2)
    place.symlink_to(outside, target_is_directory=True)
    with pytest.raises(ValueError, match="leads out of the folders"):
        find_folder(place.name)
    with pytest.raises(ValueError, match="leads out of the folders"):
        new_folder(f"{place.name}/inner", "folder")
    place.unlink()
    write_pairs(place, 2)
    (place / "target" / "001.png").unlink()
    (place / "target" / "001.png").symlink_to(outside / "target" / "001.png")
    with pytest.raises(ValueError, match=r"'target/001\.png' leads out of the folders"):
        open_dataset(place.name, SETTINGS)


@pytest.mark.parametrize("path", ["/etc/passwd", "../../secret.png", "C:\\secret.png"])
def test_rows_that_lead_out_are_refused(place, path):
    write_pairs(place, 2)
    (place / "prompt.json").write_text(json.dumps({"source": path, "target": "target/000.png", "prompt": ""}))
    with pytest.raises(ValueError, match="leads out of the folder"):
        open_dataset(place.name, SETTINGS)


def test_places_of_the_users_own_count(tmp_path, monkeypatch):
    write_pairs(tmp_path / "elsewhere" / "mine", 2)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, KIND, ([str(tmp_path / "elsewhere")], set()))
    assert len(open_dataset("mine", SETTINGS).pairs) == 2


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "cannot be read"),
        ("[1]", "Row 1 of 'prompt.json' is no JSON object"),
        ('{"source": "a.png"}', "has none of target"),
    ],
)
def test_damaged_rows_are_one_sentence(place, content, sentence):
    place.mkdir()
    (place / "prompt.json").write_text(content)
    with pytest.raises(ValueError, match=sentence):
        open_dataset(place.name, SETTINGS)


def test_an_empty_folder_and_a_missing_one_are_one_sentence(place):
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        open_dataset(place.name, SETTINGS)
    place.mkdir()
    with pytest.raises(FileNotFoundError, match="holds no pairs"):
        open_dataset(place.name, SETTINGS)
    for name in ("source", "target"):
        (place / name).mkdir()
    with pytest.raises(ValueError, match="holds no pair whose two pictures are there"):
        open_dataset(place.name, SETTINGS)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b"[1]", "is no object"),
        (b'{"hint_type": 5}', "is no object"),
        (b'{"hint_type": "a\\nb"}', "is no object"),
        (b'{"hint_type": "' + b"x" * 5000 + b'"}', "is no object"),
        (b'{"options": [1]}', "is no object"),
        (b'{"options": {"x": ' + b"[" * 500 + b"]" * 500 + b"}}", None),
        (b'{"options": {"x": "' + b"y" * 20_000 + b'"}}', "is no object"),
        (b'{"hint_type": ' + b"9" * 5000 + b"}", "is no JSON"),
        ('{"hint_type": "grün"}'.encode("cp1252"), "looks like cp1252"),
        (b" " * 1_100_000, "more than 1048576 bytes"),
        ('{"hint_type": "canny"}'.encode("utf-16"), None),
        ("folder", "not a regular file"),
        ("../../secret.json", "leads out of the folders"),
        ("nextcontrol.json", "(cannot be followed|become a link)"),
    ],
)
def test_what_made_the_hints_is_read_or_refused_in_one_sentence(place, content, sentence):
    write_pairs(place, 2)
    about = place / "nextcontrol.json"
    if isinstance(content, bytes):
        about.write_bytes(content)
    elif content == "folder":
        about.mkdir()
    else:
        about.symlink_to(content)
    if sentence is None:
        assert open_dataset(place.name, SETTINGS).hint_type in {"", "canny"}
        return
    with pytest.raises(ValueError, match=sentence) as error:
        open_dataset(place.name, SETTINGS)
    assert "nextcontrol.json" in str(error.value)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("goal", ["../../elsewhere", ".nextcontrol", "../other", "target"])
def test_nothing_is_kept_behind_a_link(place, goal):
    write_pairs(place, 2)
    (place / ".nextcontrol").symlink_to(goal)
    with pytest.raises(ValueError, match="nothing is written through links"):
        cache_of(open_dataset(place.name, SETTINGS))


def test_folders_inside_the_cache_that_are_links_are_not_written_into(place, tmp_path):
    write_pairs(place, 2)
    cache = cache_of(open_dataset(place.name, SETTINGS))
    assert cache.folder == place.resolve() / ".nextcontrol"
    cache.folder.mkdir()
    (cache.folder / "ab").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="nothing is written through links"):
        cache.write("abc", x=torch.ones(1))
    (tmp_path / "cdx.safetensors").touch()
    (cache.folder / "cd").mkdir()
    (cache.folder / "cd" / "cdx.safetensors").symlink_to(tmp_path / "cdx.safetensors")
    with pytest.raises(ValueError, match="nothing is written through links"):
        cache.write("cdx", x=torch.ones(1))
    assert [path.name for path in tmp_path.iterdir()] == ["cdx.safetensors"]


@pytest.mark.parametrize("name", ["a" * 300, "a/" * 400, "x/" + "ü" * 200])
def test_a_name_that_no_system_takes_is_one_sentence(name):
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        find_folder(name)
    assert not os.path.lexists(new_folder(name, "folder"))
    assert isinstance(PairDatasetNode.fingerprint_inputs(name), tuple)


def test_all_wrong_settings_are_named_at_once():
    with pytest.raises(ValueError, match=r"resolution \(100\) .* repeats \(0\) .* bad_pairs \('x'\)"):
        DatasetSettings(resolution=100, repeats=0, bad_pairs="x")


def test_buckets_follow_the_shape(place):
    write_pairs(place, 1, size=(256, 128))
    write_pairs(place / "b", 1)
    for name in ("source", "target"):
        shutil.move(place / "b" / name / "000.png", place / name / "square.png")
    wide = DatasetSettings(resolution=256, has_buckets=True)
    assert {size for _, size in usable_pairs(open_dataset(place.name, wide))} == {(320, 192), (256, 256)}
    square = DatasetSettings(resolution=256)
    assert {size for _, size in usable_pairs(open_dataset(place.name, square))} == {(256, 256)}


def test_subset_takes_the_first(place):
    write_pairs(place, 5)
    dataset = open_dataset(place.name, DatasetSettings(resolution=64, subset=2))
    assert [pair.name for pair, _ in usable_pairs(dataset)] == ["target/000.png", "target/001.png"]


# Making


@pytest.fixture
def pictures(base_folder, tmp_path_factory):
    """Three pictures, one in a sub-folder, two of one name."""
    folder = base_folder / "input" / f"pictures_{tmp_path_factory.mktemp('x').name}"
    (folder / "sub").mkdir(parents=True)
    for number, name in enumerate(("a_red_house.png", "a_red_house.jpg", "sub/b.webp")):
        noise = np.random.default_rng(number).integers(0, 256, (12, 16, 3), np.uint8)
        Image.fromarray(noise).resize((160, 120), Image.Resampling.NEAREST).save(folder / name)
    (folder / "sub" / "b.txt").write_text("the second\n")
    yield folder
    shutil.rmtree(folder)


def make(pictures, place, hint_type="canny", captions="beside", options="", resolution=64):
    return MakePairs.execute(pictures.name, place.name, hint_type, resolution, captions, options).args


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_made_pairs_are_a_dataset(pictures, place):
    folder, report = make(pictures, place)
    assert folder == place.name
    assert report == "3 pairs made, 0 were there already."
    pairs, orphans = names_and_captions(place)
    assert pairs == [
        ("target/a_red_house_jpg.png", "source/a_red_house_jpg.png", ""),
        ("target/a_red_house_png.png", "source/a_red_house_png.png", ""),
        ("target/sub/b.png", "source/sub/b.png", "the second"),
    ]
    assert not orphans
    dataset = open_dataset(place.name, SETTINGS)
    assert dataset.hint_type == "canny"
    hint, target = (Image.open(getattr(dataset.pairs[0], side)) for side in ("hint", "target"))
    assert hint.size == target.size == (64, 64)
    assert set(np.unique(np.asarray(hint))) == {0, 255}


def test_a_hint_is_drawn_from_the_target_that_is_saved(pictures, place):
    from nextcontrol.preprocessors.canny import canny
    from nextcontrol.training.pictures import read_picture, to_pixels

    make(pictures, place, options='{"low_threshold": 20}')
    pair = open_dataset(place.name, SETTINGS).pairs[0]
    target, hint = (to_pixels(read_picture(path, "x")).movedim(1, -1) for path in (pair.target, pair.hint))
    assert torch.equal(canny(target, 0, low_threshold=20), hint)


def test_making_goes_on_and_writes_over_nothing(pictures, place):
    make(pictures, place)
    before = contents(place)
    (place / "source" / "sub" / "b.png").unlink()
    own = place / "target" / "a_red_house_png.png"
    Image.new("RGB", (64, 64), "red").save(own)
    text = (place / "prompt.json").read_text()
    (place / "prompt.json").write_text(text[: text.rindex("{") + 9])  # as a kill leaves it
    changed = own.read_bytes()
    assert make(pictures, place)[1] == "1 pairs made, 2 were there already."
    assert contents(place) == before | {"target/a_red_house_png.png": changed}


def test_making_is_the_same_every_time_and_depends_on_the_name_alone(pictures, place, base_folder):
    make(pictures, place, "pixel")
    first = contents(place)
    shutil.rmtree(place)
    (pictures / "a_red_house.jpg").rename(pictures / "other.jpg")
    make(pictures, place, "pixel")
    assert contents(place)["source/sub/b.png"] == first["source/sub/b.png"]


def test_making_with_other_settings_is_refused(pictures, place):
    make(pictures, place)
    with pytest.raises(ValueError, match=r"hint_type was canny and is palette; resolution was 64 and is 128"):
        make(pictures, place, "palette", resolution=128)
    with pytest.raises(ValueError, match="lie in each other"):
        MakePairs.execute(pictures.name, f"{pictures.name}/pairs", "canny", 64, "none")
    foreign = place.with_name(f"{place.name}_foreign")
    write_pairs(foreign, 1)
    with pytest.raises(ValueError, match="was not made here"):
        MakePairs.execute(pictures.name, foreign.name, "canny", 64, "none")
    shutil.rmtree(foreign)


def test_an_unreadable_picture_is_named_and_left_out(pictures, place):
    (pictures / "broken.png").write_bytes(b"x")
    report = make(pictures, place, captions="file_name")[1]
    assert report.startswith("3 pairs made, 0 were there already.\n1 pictures left out:\n'broken' is no readable picture")
    assert names_and_captions(place)[0][0][2] == "a red house"


@pytest.mark.parametrize("text", ["{", "[1]", '{"thresh": 1}', '{"resolution": 1}'])
def test_wrong_options_are_one_sentence(text):
    with pytest.raises(ValueError, match="options "):
        read_options("canny", text)


def test_a_type_that_needs_weights_says_so(pictures, place):
    with pytest.raises((FileNotFoundError, ImportError)):
        make(pictures, place, "depth")


# Checking


def check(place, hint_type="unknown"):
    dataset = open_dataset(place.name, SETTINGS)
    output = CheckPairs.execute(dataset, hint_type)
    report, sheet = output.args
    assert sheet.ndim == 4
    assert (output.ui["text"], len(output.ui["images"])) == ([report], 1)
    return report, sheet


def test_a_good_dataset_has_no_problem(place):
    write_pairs(place, 4)
    report, sheet = check(place)
    assert report == f"4 pairs in '{place.name}', 0 with something to look at, 0 orphans.\nSizes in training: 64x64: 4."
    assert sheet.shape == (1, 256, 512, 3)
    assert sheet.std() > 0.1


def test_everything_that_is_wrong_is_named(place):
    write_pairs(place, 12)
    folder = {name: place / name for name in ("source", "target")}

    def save(picture, side, number):
        picture.save(folder[side] / f"{number:03d}.png")

    save(Image.new("RGB", (64, 64)), "source", 0)
    save(Image.new("RGB", (64, 64), (250, 250, 250)), "source", 1)
    shutil.copy(folder["target"] / "002.png", folder["source"] / "002.png")
    shutil.copy(folder["target"] / "004.png", folder["target"] / "003.png")
    save(Image.open(folder["source"] / "005.png").resize((64, 96)), "source", 5)
    save(Image.open(folder["source"] / "006.png").resize((32, 32)), "source", 6)
    (folder["target"] / "007.png").write_bytes(b"x")
    (folder["target"] / "008.txt").write_text(" ".join(["word"] * 90))
    (folder["target"] / "009.txt").unlink()
    (folder["source"] / "010.png").unlink()
    light = Image.fromarray(255 - np.asarray(Image.new("RGB", (64, 64))))
    light.paste((0, 0, 0), (10, 10, 14, 50))
    save(light, "source", 11)
    report, _ = check(place, "canny")
    lines = dict(line.rsplit(": ", 1) for line in report.splitlines()[2:])
    expected = {
        "blank hint, one colour all over (2)": "target/000.png, target/001.png",
        "hint and target are the same picture (1)": "target/002.png",
        "the same target as another pair (1)": "target/004.png",
        "hint of another shape than its target (1)": "target/005.png",
        "hint of another size than its target, of the same shape (1)": "target/006.png",
        "caption of more than 75 words, the rest is not read (1)": "target/008.txt".replace("txt", "png"),
        "no caption (1)": "target/009.png",
        "hint looks inverted, this type has a black ground (1)": "target/011.png",
        "without a partner (1)": "target/010.png",
    }
    assert expected.items() <= lines.items()
    assert "'target/007.png' is no readable picture" in report


def test_checking_changes_no_file(place):
    write_pairs(place, 3)
    before = contents(place)
    check(place)
    assert contents(place) == before


@pytest.mark.parametrize(
    ("error", "is_the_end"),
    [
        (RuntimeError("a shape that does not fit"), False),
        (KeyError("x"), False),
        (TypeError("x"), False),
        (AssertionError(), False),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), True),
        (make_hints.comfy.model_management.OOM_EXCEPTION("x"), True),
        (make_hints.comfy.model_management.InterruptProcessingException(), True),
    ],
)
def test_whatever_one_picture_breaks_is_a_line_of_the_report_and_no_more(pictures, place, monkeypatch, error, is_the_end):
    row, drawn = make_hints.PREPROCESSORS["canny"], []

    def fails_once(*given, **options):
        drawn.append(given)
        if len(drawn) == 1:
            raise error
        return row.make(*given, **options)

    monkeypatch.setitem(make_hints.PREPROCESSORS, "canny", dataclasses.replace(row, make=fails_once))
    run = functools.partial(MakePairs.execute, pictures.name, place.name, "canny", 64, "none")
    if is_the_end:
        with pytest.raises((MemoryError, type(error))):
            run()
    else:
        report = run().args[1]
        assert "canny cannot be drawn from it" in report
        assert len(drawn) > 1
        assert f"{len(drawn) - 1} pairs made" in report
