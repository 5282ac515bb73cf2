"""What a weight file may hold at most, and the header of a safetensors file before anybody follows it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hostile_weights import entry, headed, put
from nextcontrol.models.ctrlora import read_config as read_base
from nextcontrol.models.ctrlora_file import check_base
from nextcontrol.models.detect import UnsupportedCheckpointError, check_module, describe, detect_kind, detect_unet_family
from nextcontrol.models.state_dict import CONTAINERS, shapes_of, unwrap
from nextcontrol.models.weight_bounds import MOST_BRACKETS, MOST_TENSORS, check_keys, check_sizes, read_header, repeats

HEADERS = {
    "no JSON": b"{",
    "a list": [],
    "nested too deeply": b"[" * 100_000,
    "not UTF-8": b'{"\xff": 1}',
    "no tensor": {"x": 1},
    "no shape": {"x": {"dtype": "F32", "data_offsets": [0, 16]}},
    "a shape of texts": {"x": entry(["a"])},
    "a shape of floats": {"x": entry([4.0])},
    "a shape of truth": {"x": entry([True])},
    "a shape below nothing": {"x": entry([-4])},
    "a shape of a thousand sides": {"x": entry([1] * 1000)},
    "a side of 2^70": {"x": entry([0, 2**70])},
    "another size": {"x": entry([5])},
    "behind the file": {"x": entry([8], place=[0, 32])},
    "turned": {"x": entry([4], place=[16, 0])},
    "three places": {"x": entry([4], place=[0, 8, 16])},
    "no type": {"x": entry(dtype=7)},
    "a name of 100,000 signs": {"x" * 100_000: entry()},
    "a name of two lines": {"a\nb": entry()},
    "half a surrogate pair": b'{"\\ud800": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}',
    "metadata of a number": {"__metadata__": {"x": 1}, "x": entry()},
    "metadata of a list": {"__metadata__": ["x"], "x": entry()},
    "many": {f"x{number}": entry() for number in range(MOST_TENSORS + 1)},
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_is_none_is_one_reason(name, tmp_path):
    with pytest.raises(ValueError, match=r".") as caught:
        read_header(put(tmp_path, "x.safetensors", headed(HEADERS[name])))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("length", [0, 1, 100, 1 << 25, (1 << 64) - 1])
def test_a_header_of_another_length_is_not_read(length, tmp_path):
    content = length.to_bytes(8, "little") + b"{}"
    path = put(tmp_path, "x.safetensors", content)
    if length == 1 << 25:
        with path.open("r+b") as stream:
            stream.truncate(1 << 26)
    with pytest.raises(ValueError, match=r"^its header "):
        read_header(path)


def test_a_header_of_millions_of_lists_is_not_parsed(tmp_path):
    path = put(tmp_path, "x.safetensors", headed(b'{"x":[' + b"[]," * (MOST_BRACKETS + 1) + b"[]]}"))
    with pytest.raises(ValueError, match=r"^its header is no list of tensors$"):
        read_header(path)


def test_a_good_header_gives_its_metadata(tmp_path):
    header = {"__metadata__": {"a": "two\nlines"}, "x": entry(), "new type": entry([7], "F4", [0, 4])}
    assert read_header(put(tmp_path, "x.safetensors", headed(header))) == {"a": "two\nlines"}
    assert read_header(put(tmp_path, "y.safetensors", headed({"__metadata__": None, "x": entry()}))) == {}


@pytest.mark.parametrize("keys", [[("a", 1)], [None], ["a\nb"], ["\ud800"], ["\u202e"], ["x" * 1000], range(MOST_TENSORS + 1)])
def test_names_that_are_none_are_refused(keys):
    with pytest.raises(ValueError, match=r".") as caught:
        check_keys(keys)
    assert str(caught.value).isprintable()


def test_tensors_do_not_say_the_same_numbers_over_and_over():
    numbers = torch.zeros(1 << 20)
    check_sizes({"a": numbers, "tied": numbers}, 4 << 20)
    with pytest.raises(ValueError, match=r"bytes together and the file has"):
        check_sizes(dict.fromkeys(map(str, range(200)), numbers), 4 << 20)
    with pytest.raises(ValueError, match=r"'a' has 9 dimensions"):
        check_sizes({"a": torch.zeros([1] * 9)}, 100)
    assert repeats(torch.zeros(1).expand(3))
    assert not repeats(numbers[:3])


def test_containers_and_prefixes_without_end_are_left():
    for container in CONTAINERS:
        own: dict[str, object] = {}
        own[container] = own
        with pytest.raises(ValueError, match=r"more than 8 containers"):
            unwrap(own)
    deep = {"module." * 150_000 + "weight": 1}
    assert list(unwrap(deep).values()) == [1]
    assert unwrap({("a", 1): 2, "module.x": 3}) == {("a", 1): 2, "module.x": 3}


BLOCKS = {f"input_blocks.{number}.0.op.weight": (32, 32, 3, 3) for number in range(100_000)}
DEPTHS = {f"middle_block.1.transformer_blocks.{number}.norm1.weight": (32,) for number in range(20_000)}
START = {
    "time_embed.0.weight": (128, 32), "input_blocks.0.0.weight": (32, 4, 3, 3),
    "middle_block.0.in_layers.2.weight": (32, 32, 3, 3)
}  # fmt: skip
BASES = {
    "many blocks": START | BLOCKS,
    "deep": START | DEPTHS,
    "a number beyond counting": START | {"input_blocks." + "9" * 5000 + ".0.weight": (1,)},
    "impossible": START | {"time_embed.0.weight": (1 << 47, 1 << 47)},
    "no dimensions": dict.fromkeys(START, ()),
    "no blocks": {"time_embed.0.weight": (128, 32)},
    "no width of the text": START | {"input_blocks.0.1.transformer_blocks.0.attn2.to_k.weight": ()},
}


@pytest.mark.parametrize("name", BASES)
def test_a_network_beyond_measure_is_not_built(name):
    tensors: Any = {key: SimpleNamespace(shape=shape) for key, shape in BASES[name].items()}
    with pytest.raises(UnsupportedCheckpointError, match=r"^'x' is an? .*complete, unmodified file\.$") as caught:
        check_base(tensors, "x")
    assert len(str(caught.value)) < 500
    assert str(caught.value).isprintable()


def test_a_module_beyond_measure_is_not_built():
    shapes = {
        "embedding.0.weight": (64, 3, 3, 3), "mid_convs.0.3.weight": (64,), "mid_convs.1.weight": (320, 64, 1, 1),
        "time_embedding.linear_1.weight": (64, 32), "mid_convs.0.0.weight": (64, 64, 3, 3),
        "embedding.3.weight": (64,), "embedding.6.weight": (64,), "down_res.0.conv1.weight": (64, 64, 3, 3),
    }  # fmt: skip
    many = shapes | {f"down_res.{number}.conv1.weight": (64, 64, 3, 3) for number in (0, 1)}
    for odd in (
        many | {"time_embedding.linear_1.weight": ()},
        many | {"mid_convs.0.0.weight": (8 << 40, 8 << 40)},
        many | {"down_res.0.conv1.weight": ()},
    ):
        with pytest.raises(UnsupportedCheckpointError, match=r"^(Unknown control file )?'x'.*\.$"):
            check_module(odd, "x")
    endless = many | {f"down_res.{number}.conv1.weight": (64, 64, 3, 3) for number in range(9999)}
    with pytest.raises(UnsupportedCheckpointError, match=r"."):
        check_module(endless, "x")


def test_shapes_without_dimensions_tell_no_family():
    keys = ("a.attn2.to_k.weight", "a.to_out.0.weight", "down_blocks.0.attentions.0.to_out.0.weight")
    assert detect_unet_family(dict.fromkeys(keys, ())) is None
    assert detect_kind({("a", 1): None, 3: None}) is None  # type: ignore[dict-item]


def test_foreign_names_in_a_sentence_are_short_and_printable():
    long = {str(number) + "\u202ex" * 3000: (1,) for number in range(5)}
    for sentence in (describe(long, "a\nb" * 1000, "a LoRA"), describe(long | shapes_of({"x": torch.zeros(1)}), "x", "a LoRA")):
        assert sentence.isprintable()
        assert len(sentence) < 500
    with pytest.raises(KeyError):
        read_base({})
