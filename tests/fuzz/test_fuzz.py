"""A few hundred damaged files of each kind; `run.py` tries thousands."""

from __future__ import annotations

import sys

import pytest

if not sys.platform.startswith("linux"):
    pytest.skip("forks, and watches its processes in /proc", allow_module_level=True)

import torch
from fuzz.campaign import SHARES, Campaign

CASES = 250


@pytest.fixture(scope="module")
def campaign():
    # Models are made here: what is made in inference mode cannot be trained.
    threads = torch.get_num_threads()
    with torch.inference_mode(mode=False):
        yield Campaign(list(SHARES))
    torch.set_num_threads(threads)


def test_damaged_files_are_read_or_refused_in_one_sentence(campaign, no_gradients):
    tally = campaign.run(CASES, seed=1, workers=1, is_silent=True)
    assert tally.is_clean, f"{tally.table()}\n{tally.report()}"
    assert {name: row["cases"] for name, row in tally.counts.items()}.keys() == SHARES.keys()
    assert all(row["ok"] + row["refused"] == row["cases"] for row in tally.counts.values())
