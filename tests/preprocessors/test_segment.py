"""Segmentation hints against transformers' own answers and ADE20K's table."""

from __future__ import annotations

import pytest
import tiny_annotators as tiny
import torch
from hint_pictures import ASTRONAUT
from nextcontrol.preprocessors.annotator import load_annotator
from nextcontrol.preprocessors.canvas import resize, to_bytes
from nextcontrol.preprocessors.class_colours import ADE20K
from nextcontrol.preprocessors.segment import best_classes, segment

pytestmark = pytest.mark.usefixtures("one_thread")

PICTURES = torch.cat([ASTRONAUT, 1 - ASTRONAUT])[:, :300, :400]
SAVERS = {"segformer": tiny.save_segformer, "upernet": tiny.save_upernet}


@pytest.fixture(scope="module", params=SAVERS)
def annotator(request, tmp_path_factory):
    return load_annotator(SAVERS[request.param](tmp_path_factory.mktemp("segmentation") / request.param), "segmentation")


def test_every_pixel_has_the_colour_of_the_class_that_transformers_finds(annotator):
    found = segment(PICTURES, 128, annotator)
    assert found.shape == (2, 128, 192, 3)
    for hint, picture in zip(found, to_bytes(PICTURES), strict=True):
        inputs = annotator.processor(images=resize(picture, (128, 192)), return_tensors="pt")
        output = annotator.network(**inputs)
        (classes,) = annotator.processor.post_process_semantic_segmentation(output, target_sizes=[(128, 192)])
        assert len(classes.unique()) > 3
        colours = torch.tensor(ADE20K)[classes]
        is_same = (hint * 255).round().long().eq(colours).all(dim=-1)
        assert is_same.float().mean() > 0.999  # two scores that are equal but for rounding


def test_a_batch_is_its_pictures_one_by_one(annotator):
    single = torch.cat([segment(picture[None], 64, annotator) for picture in PICTURES])
    assert segment(PICTURES, 64, annotator).eq(single).all(dim=-1).float().mean() > 0.999


@pytest.mark.parametrize("count", [1, 15, 16, 17, 150])
def test_the_best_class_is_that_of_all_scores_at_once(count):
    scores = torch.randn(2, count, 5, 7, generator=torch.Generator().manual_seed(count))
    expected = torch.nn.functional.interpolate(scores, (40, 33), mode="bilinear", align_corners=False).argmax(dim=1)
    assert torch.equal(best_classes(scores, (40, 33)), expected)


def test_of_equal_scores_the_first_class_wins():
    assert best_classes(torch.zeros(1, 40, 2, 2), (4, 4)).eq(0).all()


def test_the_table_is_ade20ks():
    """Rows of the published table: wall, sky, tree, person, car, television, flag; window glass 6 and column 48 are alike."""
    assert len(ADE20K) == 150
    assert len(set(ADE20K)) == 149
    expected = {
        0: (120, 120, 120), 2: (6, 230, 230), 4: (4, 200, 3), 12: (150, 5, 61), 20: (0, 102, 200), 89: (0, 255, 194),
        149: (92, 0, 255),
    }  # fmt: skip
    assert {index: ADE20K[index] for index in expected} == expected
    assert ADE20K[6] == ADE20K[48] == (140, 140, 140)


def test_a_network_with_other_classes_is_refused(tmp_path):
    annotator = load_annotator(tiny.save_segformer(tmp_path / "cityscapes", classes=19), "segmentation")
    with pytest.raises(ValueError, match="'cityscapes' knows 19 classes and the 150 of ADE20K are needed: choose a network"):
        segment(PICTURES, 64, annotator)
