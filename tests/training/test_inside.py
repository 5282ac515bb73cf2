"""A dataset leads nowhere else."""

from __future__ import annotations

import os
import re

import pytest
from nextcontrol.training.inside import open_inside, open_real, own_place


@pytest.fixture
def world(tmp_path):
    (tmp_path / "root" / "set").mkdir(parents=True)
    (tmp_path / "root" / "set" / "own.txt").write_text("own", encoding="utf-8")
    (tmp_path / "root" / "other.txt").write_text("other", encoding="utf-8")
    (tmp_path / "secret.txt").write_text("secret", encoding="utf-8")
    links = {"out": "../../secret.txt", "in": "../other.txt", "up": "../..", "round": "round"}
    for name, goal in links.items():
        (tmp_path / "root" / "set" / name).symlink_to(goal)
    os.mkfifo(tmp_path / "root" / "set" / "pipe")
    return tmp_path


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("out", "leads out"),
        ("up/secret.txt", "leads out"),
        ("../../secret.txt", "leads out"),
        ("round", "(cannot be followed|become a link)"),
        ("pipe", "not a regular file"),
        (".", "not a regular file"),
    ],
)
def test_what_leads_elsewhere_is_not_read(world, path, reason):
    with pytest.raises(ValueError, match=reason):
        open_inside(world / "root" / "set" / path, [world / "root"], path)


def test_what_stays_inside_is_read(world):
    for path, text in {"own.txt": b"own", "in": b"other"}.items():
        with open_inside(world / "root" / "set" / path, [world / "root"], path) as stream:
            assert stream.read() == text


def test_a_link_that_appears_later_is_not_followed(world):
    own = world / "root" / "set" / "own.txt"
    own.unlink()
    own.symlink_to(world / "secret.txt")
    with pytest.raises(ValueError, match="has become a link"):
        open_real(own, "own.txt")


@pytest.mark.parametrize("path", ["in", "out", "up/new.txt", "round", "round/new.txt"])
def test_nothing_is_written_through_a_link(world, path):
    with pytest.raises(ValueError, match="nothing is written through links"):
        own_place(world / "root" / "set", path)


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("../new.txt", "leads out of 'set': write"),
        ("a/../../new.txt", "leads out of 'set': write"),
        ("/new.txt", "leads out of 'set': write"),
        ("n" * 300, "cannot be written (File name too long): choose another name"),
    ],
)
def test_where_nothing_can_be_written_is_said_for_what_it_is(world, path, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        own_place(world / "root" / "set", path)


def test_a_dataset_that_is_a_link_has_places_of_its_own(world):
    (world / "root" / "again").symlink_to("set")
    assert own_place(world / "root" / "again", "a/new.txt") == world / "root" / "set" / "a" / "new.txt"
