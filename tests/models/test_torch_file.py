"""PyTorch's files: what is whole is read as PyTorch reads it, and whatever else a file says costs seconds."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import Counter, OrderedDict

import pytest
import torch
from hostile_weights import PROTO, archive, described, named, put, row, saved, text
from nextcontrol.models.pickle_values import NOTE, Described, Global, Odd, is_known
from nextcontrol.models.pickles import LARGEST_PICKLE, MOST_STEPS, Unpickler
from nextcontrol.models.torch_file import TorchFile
from torch import nn

WHOLE = {
    "fp32": torch.randn(3, 4), "fp16": torch.randn(2).half(), "bf16": torch.randn(5).bfloat16(),
    "parameter": nn.Parameter(torch.ones(2)),
    "view": torch.arange(24.0).reshape(4, 6)[1:, ::2], "turned": torch.randn(3, 5).t(), "whole": torch.arange(3),
    "nothing": torch.zeros(0, 4), "scalar": torch.tensor(3.0), "yes": torch.tensor([True, False]),
    "complex": torch.ones(2) * 1j,
    "last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last), "shared": torch.arange(8.0),
    "repeated": torch.ones(1).expand(3, 2),
}  # fmt: skip
WHOLE["tied"] = WHOLE["shared"][2:6]
NEWER = {"fp8": torch.randn(4).to(torch.float8_e4m3fn), "u16": torch.arange(3).to(torch.uint16)}
NOTES = {"step": 3, "big": 2**70, "rate": 0.1, "names": ["ä", None, True], "sizes": torch.Size([1, 2]), "count": Counter("aab"),
         "type": torch.float16, "device": torch.device("cpu"), "set": {1}, ("a", 1): "tuple"}  # fmt: skip


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("is_mapped", [True, False])
def test_what_pytorch_writes_is_read_as_pytorch_reads_it(is_zip, is_mapped, tmp_path):
    tensors = OrderedDict(WHOLE | (NEWER if is_zip else {}))
    optimizer = {"state": {0: {"momentum": torch.ones(2)}}}
    path = put(tmp_path, "x.pt", saved({"state_dict": tensors, "optimizer": optimizer, **NOTES}, is_zip))
    expected = torch.load(path, weights_only=True)
    with TorchFile(path, is_mapped) as file:
        found = {key: file.tensor(tensor) for key, tensor in file.content["state_dict"].items()}
    assert found.keys() == tensors.keys()
    for key, tensor in expected["state_dict"].items():
        assert found[key].dtype == tensor.dtype
        assert found[key].shape == tensor.shape
        same = torch.equal if tensor.element_size() > 1 else lambda one, other: torch.equal(one.float(), other.float())
        assert same(found[key], tensor.detach()), key
    assert file.content["names"] == ["ä", None, True]
    assert (file.content["step"], file.content["big"], file.content["sizes"]) == (3, 2**70, (1, 2))
    (state,) = file.content["optimizer"]["state"].values()
    assert isinstance(state["momentum"], Described)
    if is_mapped and is_zip:
        assert found["tied"].data_ptr() == found["shared"].data_ptr() + 8


def test_tensors_of_other_kinds_are_named_and_never_made():
    odd = {
        "sparse": torch.eye(3).to_sparse(), "rows": torch.eye(3).to_sparse_csr(), "meta": torch.empty(3, device="meta"),
        "quantized": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        "conjugate": torch.ones(2, dtype=torch.complex64).conj(), "nine": torch.ones([1] * 9),
        "negative": torch.ones(2, dtype=torch.complex64).conj().imag,
    }  # fmt: skip
    for key, tensor in odd.items():
        with zipfile.ZipFile(io.BytesIO(saved({key: tensor}))) as file:
            data = next(file.read(name) for name in file.namelist() if name.endswith("data.pkl"))
        assert isinstance(Unpickler(data).load()[key], Odd), key
    for call in (b"ctorch\nFloatTensor\n", b"ctorch.sparse\nFloatTensor\n"):
        assert isinstance(Unpickler(PROTO + call + b"J\xff\xff\xff\x7f\x85R.").load(), Odd)
    assert Unpickler(PROTO + b"c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R.").load() is NOTE


LAUGHS = b")" + b"".join(b"q" + bytes([number]) + b"h" + bytes([number]) + b"\x86" for number in range(200))
ENDLESS = {
    "numbers": b"](" + b"K\x01" * (MOST_STEPS + 1) + b"e.",
    "marks": b"(" * (MOST_STEPS + 1),
    "a memory place of 2^32": b"K\x01r\xff\xff\xff\xff.",
    "a key of 2^200 parts": b"}" + LAUGHS + b"K\x01s.",
    "a key of 10^6 levels": b"}" + b")" + b"\x85" * 1_000_000 + b"K\x01s.",
    "itself": b"}q\x00" + text("state_dict") + b"h\x00s.",
    "a list of itself": b"]q\x00h\x00a.",
    "a text that is not there": b"X\xff\xff\xff\x7fa",
    "nothing to take": b"0R.",
    "nothing": b"",
    "a mark that is not there": b"t.",
    "a call of a number": b"K\x01)R.",
    "a line without end": b"c" + b"a" * 100_000,
    "no text": b"X\x01\x00\x00\x00\xff.",
    "half a surrogate pair": b"X\x03\x00\x00\x00\xed\xa0\x80.",
    "a place of a number": b"K\x01Q.",
    "a shape of a text": named(described(text("a"), b"K\x01"))[2:],
    "a shape below nothing": named(described(b"J\xff\xff\xff\xff", b"K\x01"))[2:],
    "fewer strides than sides": named(described(b"K\x02K\x02", b"K\x01"))[2:],
    "an unknown place": b"(" + text("module") + b"K\x01K\x01K\x01K\x01tQ.",
}


@pytest.mark.parametrize("name", ENDLESS)
def test_whatever_a_pickle_says_it_is_read_to_its_end_or_refused(name):
    said = ""
    try:
        Unpickler(PROTO + ENDLESS[name]).load()
    except (ValueError, pickle.UnpicklingError) as error:
        said = str(error)
    assert said.isprintable()
    assert len(said) < 200


PAIRS = b"](" + b"".join(text(str(number)) + b"N\x86" for number in range(1000)) + b"e"
COPIED = PAIRS + b"q\x00ccollections\nOrderedDict\nq\x01(" + b"h\x01h\x00\x85R" * 3000 + b"t."


def test_what_is_said_again_is_not_made_again():
    with pytest.raises(ValueError, match=r"more than \d+ instructions"):
        Unpickler(PROTO + COPIED).load()
    sizes = Unpickler(PROTO + b"(K\x02tq\x00ctorch\nSize\nq\x01(h\x01h\x00\x85Rh\x01]\x85Rh\x00t.").load()
    assert sizes == ((2,), NOTE, (2,))
    assert sizes[0] is sizes[2]


def test_keys_that_are_no_text_are_never_compared():
    def whole(number: int) -> bytes:
        data = number.to_bytes(12, "little", signed=True)
        return b"\x8a" + bytes([len(data)]) + data

    same = b"".join(whole(number * (2**61 - 1)) + b"N" for number in range(1, 5000))  # of one hash
    found = Unpickler(PROTO + b"}(" + same + b"K\x01N\x88Nu.").load()
    assert len(found) == 4999 + 2
    assert {key.type_name for key in found} == {"int", "bool"}
    assert len(Unpickler(PROTO + b"ccollections\nOrderedDict\n](K\x01N\x86K\x02N\x86e\x85R.").load()) == 2


def test_names_are_known_without_importing_anything(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "__getattr__", asked.append)
    assert not is_known("torch._dynamo")
    assert not is_known("torch.surprise")
    assert is_known("torch.float32")
    assert asked == []


@pytest.mark.parametrize(
    "code", ["os\nsystem", "builtins\neval", "torch.hub\nload", "torch\nload", "__main__\nX", "torch.nn\nLinear"]
)
def test_code_is_refused_before_it_is_looked_up(code):
    with pytest.raises(pickle.UnpicklingError, match=r"^it names "):
        Unpickler(PROTO + b"c" + code.encode() + b"\n.").load()


def test_what_the_host_has_declared_harmless_is_a_note():
    with torch.serialization.safe_globals([TorchFile]):
        found = Unpickler(PROTO + f"c{TorchFile.__module__}\nTorchFile\n)R.".encode()).load()
    assert found is NOTE
    assert isinstance(Unpickler(PROTO + b"ctorch\nfloat32\n.").load(), Global)


FOUR = described(b"K\x04", b"K\x01")
HALF = b"\x00" * 8
BROKEN = {
    "packed": (archive(named(FOUR), {"data/0": bytes(16)}, zipfile.ZIP_DEFLATED), "records are packed"),
    "a pickle of 17 MB": (archive(bytes(LARGEST_PICKLE + 1)), r"'data.pkl' has more than"),
    "no pickle": (archive(b"").replace(b"data.pkl", b"data.pxx"), "no record 'data.pkl'"),
    "of another processor": (archive(named(b"K\x01"), {"byteorder": b"big"}), "another kind of processor"),
    "records in each other": (
        archive(named(b"K\x01")).replace(
            *(len(named(b"K\x01")).to_bytes(4, "little") * 2, b"\xff\xff\x00\x00" * 2)
        ),
        "lie in each other",
    ),
    "a row of the same over and over": (
        row(named(FOUR.replace(b"tQ", b"NtQ")), PROTO + b"](" + text("0") * 2 + b"e."), "list of tensors is damaged"
    ),
    "a row of nothing": (row(named(b"K\x01"), PROTO + b"]" + text("0") + b"a."), "list of tensors is damaged"),
    "a row cut short": (row(named(FOUR.replace(b"tQ", b"NtQ")), PROTO + b"]" + text("0") + b"a."), "cut short"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_an_archive_that_is_broken_is_one_reason(name, tmp_path):
    content, reason = BROKEN[name]
    with pytest.raises(ValueError, match=reason):
        TorchFile(put(tmp_path, "x.pt", content))


def test_a_list_of_a_hundred_thousand_records_is_not_read(tmp_path):
    data = bytearray(archive(named(b"K\x01")))
    end = data.rindex(b"PK\x05\x06")
    data[end:end] = bytes(1 << 23)
    data[-10:-6] = (len(data) - 22).to_bytes(4, "little")
    with pytest.raises(ValueError, match="list of records is too long"):
        TorchFile(put(tmp_path, "x.pt", bytes(data)))


@pytest.mark.parametrize(
    ("tensor", "data", "reason"),
    [
        (described(b"K\x04", b"K\x01"), HALF, "larger than the place"),
        (described(b"K\x04", b"K\x01"), None, "no record 'data/0'"),
        (described(b"K\x05", b"K\x01"), bytes(16), "larger than the place"),
        (described(b"K\x02", b"J\xff\xff\xff\x7f"), bytes(16), "larger than the place"),
        (described(b"J\xff\xff\xff\x7f", b"K\x00"), bytes(16), "repeats 4 numbers until"),
        (described(b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f", b"K\x00K\x00"), bytes(16), "repeats 4 numbers until"),
    ],
)
def test_a_tensor_lies_within_its_file_or_is_not_made(tensor, data, reason, tmp_path):
    path = put(tmp_path, "x.pt", archive(named(tensor), {} if data is None else {"data/0": data}))
    with TorchFile(path) as file, pytest.raises(ValueError, match=reason):
        file.tensor(file.content["weight"])


def test_a_long_reading_can_be_ended():
    class CancelledError(Exception):
        pass

    def cancel():
        raise CancelledError

    with pytest.raises(CancelledError):
        Unpickler(PROTO + b"](" + b"K\x01" * 100_000 + b"e.", cancel).load()
