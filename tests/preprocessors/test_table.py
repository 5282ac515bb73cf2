"""What holds for every type of hint, weightless ones through and through."""

from __future__ import annotations

import pytest
import torch
from hint_pictures import ASTRONAUT
from nextcontrol.preprocessors.table import PREPROCESSORS

WEIGHTLESS = [name for name, row in PREPROCESSORS.items() if not row.task]


@pytest.mark.parametrize("name", WEIGHTLESS)
def test_every_weightless_hint_keeps_shape_range_and_type(name):
    frames = torch.cat([ASTRONAUT, torch.zeros_like(ASTRONAUT), torch.ones_like(ASTRONAUT)])[:, :300, :400]
    hints = PREPROCESSORS[name].make(frames, 128)
    assert hints.shape == (3, 128, 192, 3)
    assert hints.dtype == torch.float32
    assert hints.min() >= 0
    assert hints.max() <= 1
    assert torch.equal(hints, PREPROCESSORS[name].make(frames, 128))
