"""What strangers and disks do to tar shards and their index: refused in one sentence, skipped where asked, never trained on."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from nextcontrol.training import encoded_pair, precompute, tar_files, tar_writer
from nextcontrol.training.durable import CannotWriteError
from nextcontrol.training.encoded_pair import EncodedPair
from nextcontrol.training.shard_index import ShardIndex, load_index
from nextcontrol.training.shards import Shards
from nextcontrol.training.tar_files import DamagedShardError, read_samples
from nextcontrol.training.tar_writer import write_samples
from PIL import Image
from safetensors.torch import save
from shard_files import CONFIG, encode, raw_samples, sharded, source_of
from tiny_training import Encoders, write_pairs

PAIRS = 12
SHARD = "shard-000001.tar"


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Encoded, in shards of five, five and two pairs."""
    pairs = write_pairs(tmp_path_factory.mktemp("damage") / "pairs", PAIRS)
    encode(sharded(pairs), pairs.parent / "good")
    return pairs.parent / "good"


@pytest.fixture(scope="module")
def before(good):
    """The same as it was written when pairs had no checksums."""
    folder, entries = good.parent / "before", []
    for entry in load_index(good).shards:
        samples = [unsealed(sample) for sample in read_samples(good / entry.file)]
        written = write_samples(folder / entry.file, samples)
        entries.append(replace(entry, size=written.size, digest=written.digest, checksum=""))
    ShardIndex(load_index(good).made_from, tuple(entries)).write(folder)
    index = json.loads((folder / "index.json").read_text())
    for row in index["shards"]:
        del row["checksum"]
    (folder / "index.json").write_text(json.dumps(index, indent=1))
    return folder


def unsealed(sample):
    about = json.loads(sample["json"])
    return sample | {"json": json.dumps({"name": about["name"], "caption": about["caption"]}).encode()}


@pytest.fixture
def folder(good, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(good, tmp_path / "root" / "set")


def trained(folder, is_skipping=False):
    """Two epochs and what is held out, by the pair's name."""
    config = replace(CONFIG, batch_size=1, accumulation_steps=1, steps=40, validation_pairs=1)
    source = source_of(folder, 4, config, is_skipping, prompt_dropout=0.0)
    batches = [*source.held_out(), *(source.batches(step)[0] for step in range(2 * (PAIRS - 1)))]
    return [(batch.names[0], batch.context[0]) for batch in batches]


def refused(call, error=ValueError, match="."):
    """Run what has to end in one sentence."""
    with pytest.raises(error, match=match) as caught:
        call()
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) < 600
    assert text.endswith(".")


def with_row(**values):
    return lambda index: index["shards"][1].update(values)


NAMES = (
    "../good/shard-000001.tar", "/etc/shard-000001.tar", "C:\\shard-000001.tar", "a/shard-000001.tar", "..\\shard-000001.tar",
    "\ud800", "x" * 10_000, "shard-1.tar", "shard-0000001.tar", "shard-٠٠٠٠٠١.tar", "shard-000001.tar\n", "shard-000000.tar",
    "0001.tar", "", None, ["shard-000001.tar"], {},
)  # fmt: skip
COUNTS = (-1, 1.5, float("nan"), float("inf"), True, "5", None, 10**30, 100_000, [], {})
INDEXES = {
    **{f"file {name!r}"[:40]: with_row(file=name) for name in NAMES},
    **{f"count {count!r}": with_row(count=count) for count in COUNTS},
    **{f"size {size!r}": with_row(size=size) for size in (-1, 0, "5", 1e9, 10**40)},
    "digest": with_row(digest=5),
    "digest no digest": with_row(digest="\ud800"),
    "source": with_row(source=["a"]),
    "left out": with_row(left_out=-3),
    "unknown key": lambda index: index["shards"][1].update({"\ud800\n": 1}),
    "no size": lambda index: index["shards"][1].pop("size"),
    "row is a list": lambda index: index["shards"].append([1]),
    "shards is a number": lambda index: index.update(shards=3),
    "shards is an object": lambda index: index.update(shards={}),
    "made from a list": lambda index: index.update(made_from=[]),
    "made from numbers": lambda index: index.update(made_from={"VAE": 3}),
    "kind": lambda index: index.update(kind="\ud800" * 1000),
    "kind is a list": lambda index: index.update(kind=[[]]),
    "pairs": lambda index: index.update(pairs=13),
    "pairs is a text": lambda index: index.update(pairs="x" * 9999),
}


@pytest.mark.parametrize("change", INDEXES.values(), ids=INDEXES)
def test_an_index_of_another_shape_is_refused(folder, change):
    index = json.loads((folder / "index.json").read_text())
    change(index)
    (folder / "index.json").write_bytes(json.dumps(index).encode())
    refused(lambda: load_index(folder), match=r"'index\.json' in 'set' cannot be used")


@pytest.mark.parametrize(
    "content",
    [b"", b"5", b"null", b'"x"', b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe{\0}\0", bytes(100), b"1" * 9000],
)
def test_an_index_that_is_none_is_refused(folder, content):
    (folder / "index.json").write_bytes(content)
    refused(lambda: load_index(folder), match=r"'index\.json' in 'set' cannot be used")


def test_notes_beside_shards_that_are_damaged_are_made_anew(good, folder):
    contents = [b"[" * 100_000, b"[]", b'{"made_from": 3, "entry": {}}', b'{"made_from": {}, "entry": {"file": 1}}']
    for number, content in enumerate(contents[:3]):
        (folder / f"shard-00000{number}.json").write_bytes(content)
    (folder / "index.json").unlink()
    assert encode(sharded(good.parent / "pairs"), folder) == (3, 0, 0)
    (folder / "shard-000000.json").write_bytes(contents[3])
    assert encode(sharded(good.parent / "pairs"), folder) == (1, 2, 0)
    ours, theirs = ({path.name: path.read_bytes() for path in place.iterdir()} for place in (folder, good))
    assert ours == theirs


def test_an_index_that_does_not_fit_the_shards_is_written_anew(good, folder):
    index = load_index(folder)
    ShardIndex(index.made_from, index.shards[:2]).write(folder)
    assert encode(sharded(good.parent / "pairs"), folder) == (0, 3, 0)
    assert load_index(folder) == index


def link_to(goal):
    return lambda path: path.symlink_to(goal)


PLACES = {
    "out": link_to("../../secret"),
    "round": lambda path: path.symlink_to(path.name),
    "nowhere": link_to("../../nothing"),
    "device": link_to("/dev/zero"),
    "pipe": os.mkfifo,
    "folder": os.mkdir,
}


@pytest.mark.parametrize("name", [SHARD, "index.json"])
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_what_lies_elsewhere_is_not_read(folder, tmp_path, name, place):
    (folder / name).rename(tmp_path / "secret")
    place(folder / name)
    refused(lambda: trained(folder))


def test_a_link_that_stays_below_the_datasets_folders_is_read(folder, tmp_path):
    (tmp_path / "root" / "other").mkdir()
    (folder / SHARD).rename(tmp_path / "root" / "other" / "x.tar")
    (folder / SHARD).symlink_to("../other/x.tar")
    roots = (tmp_path / "root",)
    index = load_index(folder, roots).check_files(folder, is_skipping=False, roots=roots)
    shards = Shards(folder, index, 1.0, Encoders().encode(""), has_flip=False, prompt_dropout=0.0, roots=roots)
    assert len(list(shards.read(index.shards[1]))) == 5
    refused(lambda: list(replace(shards, roots=()).read(index.shards[1])), DamagedShardError, "leads out")


@pytest.mark.parametrize("name", [SHARD, "shard-000001.json", "index.json"])
def test_nothing_is_written_through_a_link(good, folder, tmp_path, name):
    (tmp_path / "secret").write_bytes(b"mine")
    for own in (SHARD, "shard-000001.json", "index.json"):
        (folder / own).unlink()
    (folder / name).symlink_to("../../secret")
    encoded = None
    try:
        encoded = encode(sharded(good.parent / "pairs"), folder)
    except ValueError as error:
        assert "nothing is written through links" in str(error)  # noqa: PT017 - either is right
    assert (tmp_path / "secret").read_bytes() == b"mine"
    assert encoded is None or not (folder / name).is_symlink()


def test_what_cannot_be_written_is_one_sentence(good, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        refused(lambda place=place: encode(sharded(good.parent / "pairs"), place), CannotWriteError, "cannot be written")


def test_left_overs_of_the_dead_go_and_those_of_the_living_stay(folder, tmp_path):
    (tmp_path / "mine").write_bytes(b"mine")
    dead, linked, other = (folder / name for name in (f".{SHARD}.1.part", f".{SHARD}.2.part", ".mine.part"))
    dead.write_bytes(b"x")
    linked.symlink_to("../../mine")
    other.write_bytes(b"x")
    os.mkfifo(folder / f".{SHARD}.3.part")
    samples = list(read_samples(folder / SHARD))

    def while_written():
        for sample in samples:
            tar_writer.remove_left_overs(folder)
            yield sample

    assert write_samples(folder / SHARD, while_written()).count == 5
    assert not dead.exists()
    assert other.exists()
    assert (tmp_path / "mine").read_bytes() == b"mine"


def test_of_two_that_encode_a_shard_at_once_only_the_one_whose_file_is_there_says_so(good, tmp_path, monkeypatch):
    def overtaken(path, samples):
        written = write_samples(path, samples)
        if path.name == SHARD:
            write_samples(path, list(read_samples(path))[:2])
        return written

    monkeypatch.setattr(precompute, "write_samples", overtaken)
    assert encode(sharded(good.parent / "pairs"), tmp_path / "out") == (3, 0, 1)
    assert not (tmp_path / "out" / "shard-000001.json").exists()
    assert not (tmp_path / "out" / "index.json").exists()


def test_several_that_encode_all_into_one_folder_at_once_make_what_one_makes(good, tmp_path):
    out = tmp_path / "out"
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(encode, sharded(good.parent / "pairs"), out) for _ in range(4)]
    assert all(run.result().open == 0 or run.result().encoded for run in runs)
    assert load_index(out) == load_index(good)
    ours, theirs = ({path.name: path.read_bytes() for path in place.iterdir()} for place in (out, good))
    assert ours == theirs


def tar_of(members, form=tarfile.GNU_FORMAT):
    stream = io.BytesIO()
    has_pax = any("pax_headers" in about for _, _, about in members)
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT if has_pax else form) as tar:
        for name, data, about in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in about.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def replaced(about, data=b"x", name="001.hint.png"):
    """The second pair has another member."""
    return lambda members: [member if member[0] != name else (name, data, about) for member in members]


def with_json(content):
    return lambda members: [member if member[0] != "001.txt" else ("001.json", content, {}) for member in members]


def with_more(*more):
    return lambda members: [*members[:6], *more, *members[6:]]


MEMBERS = {
    "sparse": (replaced({"type": tarfile.GNUTYPE_SPARSE}), "a sparse file"),
    "sparse, pax": (replaced({"pax_headers": {"GNU.sparse.major": "1", "GNU.sparse.realsize": str(1 << 40)}}), "a sparse file"),
    "symbolic link": (replaced({"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, b""), "a link"),
    "hard link": (replaced({"type": tarfile.LNKTYPE, "linkname": "000.hint.png"}, b""), "a link"),
    "pipe": (replaced({"type": tarfile.FIFOTYPE}, b""), "a pipe"),
    "device": (replaced({"type": tarfile.CHRTYPE}, b""), "a device"),
    "extension of a megabyte": (replaced({"pax_headers": {"comment": "x" * (1 << 20)}}), "a header of 10485"),
    "name of a path": (with_more(("a/" * 3000 + "001.png", b"x", {})), "a name of 6007 bytes"),
    "absolute": (with_more(("/etc/001.hint.png", b"x", {})), "named as a file outside"),
    "dots": (with_more(("a/../../001.hint.png", b"x", {})), "named as a file outside"),
    "caption of megabytes": (replaced({}, b"x" * (1 << 21), "001.txt"), "has 2097152 bytes"),
    "large": (with_more(("001a.png", b"x" * 70_000, {})), "has 70000 bytes"),
    "many large": (with_more(*((f"001a.{n}.png", b"x" * 40_000, {}) for n in range(4))), "a sample of more than 100000 bytes"),
    "many": (with_more(*((f"001a.{n}.txt", b"", {}) for n in range(70))), "more than 64 files of one sample"),
    "twice": (with_more(("001.HINT.png", b"x", {})), "duplicate file name"),
    "caption in cp1252": (replaced({}, "déjà vu".encode("cp1252"), "001.txt"), r"'0000\.tar/001\.txt' is not UTF-8"),
    "caption in GBK": (replaced({}, "一只猫坐在窗台上".encode("gbk"), "001.txt"), r"'0000\.tar/001\.txt' is no"),
    "caption of zeros": (replaced({}, b"a\0b", "001.txt"), r"'0000\.tar/001\.txt' .*without its mark"),
    **{
        f"json {content[:12]!r}": (with_json(content), reason)
        for content, reason in {
            b"[" * 60_000: r"The \.json of '0000\.tar/001' is damaged \(it is nested too deeply",
            b"[1]": r"The \.json of '0000\.tar/001' is damaged \(it is no JSON object",
            b'{"caption": ["a", "b"]}': "The caption of '0000.tar/001.json' is a list",
            b'{"text": 5}': "The caption of '0000.tar/001.json' is a number",
            b'{"prompt": "\\ud800"}': "half a sign",
            b"\x80\x81{": r"'0000\.tar/001\.json' is no",
            b'{"a": ' + b"9" * 9000 + b"}": r"The \.json of '0000\.tar/001' is damaged",
        }.items()
    },
    "odd name": (with_more(("001\n\udcff\u202e.png", b"x", {})), "has no hint"),
}  # fmt: skip


def with_members(folder, change=list, form=tarfile.GNU_FORMAT):
    samples = raw_samples(folder / "pictures", 3)
    members = [(f"{s['__key__']}.{suffix}", s[suffix], {}) for s in samples for suffix in s if suffix != "__key__"]
    (folder / "raw").mkdir()
    (folder / "raw" / "0000.tar").write_bytes(tar_of(change(members), form))
    return folder / "raw"


@pytest.mark.parametrize(("change", "reason"), MEMBERS.values(), ids=MEMBERS)
def test_a_member_that_is_no_plain_file_spoils_its_pair_alone(tmp_path, monkeypatch, change, reason):
    monkeypatch.setattr(tar_files, "LARGEST_FILE", 60_000)
    monkeypatch.setattr(tar_files, "LARGEST_SAMPLE", 100_000)
    raw = with_members(tmp_path, change)
    refused(lambda: encode(sharded(raw), tmp_path / "out"), match=reason)
    encode(sharded(raw, bad_pairs="skip"), tmp_path / "out")
    entry = load_index(tmp_path / "out").shards[0]
    assert entry.left_out >= 1
    assert entry.count >= 2


def test_folders_long_names_and_files_of_no_sample_are_passed_over(tmp_path):
    folder = "a/" * 100
    more = [("d/", b"", {"type": tarfile.DIRTYPE}), ("README", b"x", {}), ("__a__/0.png", b"x", {}), ("._000.png", b"x", {})]
    for number, form in enumerate((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT)):
        raw = with_members(tmp_path / str(number), lambda m: [*more, *((f"{folder}{n}", d, a) for n, d, a in m)], form)
        encode(sharded(raw), tmp_path / str(number) / "out")
        (sample, *_) = read_samples(tmp_path / str(number) / "out" / "shard-000000.tar")
        assert json.loads(sample["json"])["name"] == f"0000.tar/{folder}000"


def header_of(kind, size=b"00000000000\0", goes_on=0):
    info = tarfile.TarInfo("x")
    info.type = kind
    data = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    data[124:136] = size
    data[482] = goes_on
    data[148:156] = b" " * 8
    data[148:156] = f"{sum(data):06o}\0 ".encode()
    return bytes(data)


SHARDS = {
    "gzip": (tar_of, "compressed with gzip"),
    "long name": (lambda m: tar_of([("a" * 70_000 + ".hint.png", b"x", {}), *m]), "a name in it has 70010 bytes"),
    "members without end": (lambda m: tar_of([*m[:4], *((f"001.{n}.cls", b"", {}) for n in range(10_050))]), "10000 files"),
    "extensions without end": (lambda m: header_of(b"x") * 10_050 + tar_of(m), "headers in a row"),
    "folders without end": (lambda m: header_of(b"5") * 10_050 + tar_of(m), "headers in a row"),
    "two archives": (lambda m: tar_of(m) + tar_of(m), "goes on after its end mark"),
    "size below nothing": (lambda m: header_of(b"0", b"\xff" * 12) + tar_of(m), "cannot be read"),
    "size of the universe": (lambda m: header_of(b"0", b"\x80" + b"\x7f" * 11) + tar_of(m), "cut off"),
    "size no number": (lambda m: header_of(b"0", b"9" * 11 + b"\0") + tar_of(m), "cannot be read"),
    "map without end": (lambda _m: header_of(b"S", goes_on=1) + b"\1" * 20_480 + bytes(1024), "is empty"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "reason"), SHARDS.values(), ids=SHARDS)
def test_a_shard_that_is_no_plain_tar_file_is_refused_whole(tmp_path, make, reason):
    import gzip

    raw = with_members(tmp_path)
    with tarfile.open(raw / "0000.tar") as tar:
        members = [(member.name, tar.extractfile(member).read(), {}) for member in tar.getmembers()]
    data = make(members)
    (raw / "0000.tar").write_bytes(gzip.compress(data) + bytes(1024) if "gzip" in reason else data)
    refused(lambda: encode(sharded(raw), tmp_path / "out"), DamagedShardError, reason)
    assert encode(sharded(raw, bad_pairs="skip"), tmp_path / "out") == (1, 0, 0)
    assert load_index(tmp_path / "out").count == 0


def flipped(path, place):
    data = bytearray(path.read_bytes())
    data[place // 8] ^= 1 << place % 8
    path.write_bytes(data)


@pytest.mark.parametrize("kind", ["good", "before"])
def test_no_flipped_bit_is_trained_on(request, tmp_path, kind):
    whole = request.getfixturevalue(kind)
    folder = shutil.copytree(whole, tmp_path / "set")
    right = dict(trained(folder))
    assert len(right) == PAIRS
    places = random.Random(kind).sample(range(8 * (whole / SHARD).stat().st_size), 40)  # noqa: S311 - no secret
    noticed = 0
    for place in places:
        flipped(folder / SHARD, place)
        try:
            assert all(torch.equal(context, right[name]) for name, context in trained(folder))
        except DamagedShardError:
            noticed += 1
        skipped = trained(folder, is_skipping=True)
        assert all(torch.equal(context, right[name]) for name, context in skipped)
        assert len({name for name, _ in skipped}) >= PAIRS - 5
        flipped(folder / SHARD, place)
    assert noticed > 25  # the others are where tar files are filled up


def test_in_the_place_of_damaged_pairs_come_others_and_the_order_is_a_function_of_the_files(folder, caplog):
    at = (folder / SHARD).read_bytes().index(b"text.context")
    flipped(folder / SHARD, 8 * (at + 2000))
    first, again = (trained(folder, is_skipping=True) for _ in range(2))
    names = [name for name, _ in first]
    assert names == [name for name, _ in again]
    assert len(set(names[1:PAIRS])) == PAIRS - 2
    assert names[0] not in names[1:]  # nobody trains on what is held out
    assert caplog.text.count("its checksum is another") == 2
    (folder / "shard-000000.tar").write_bytes(bytes((folder / "shard-000000.tar").stat().st_size))
    assert len({name for name, _ in trained(folder, is_skipping=True)}) == PAIRS - 5 - 1


def test_shards_that_have_changed_places_are_noticed(folder):
    index = load_index(folder)
    (folder / "shard-000000.tar").rename(folder / "x")
    (folder / SHARD).rename(folder / "shard-000000.tar")
    (folder / "x").rename(folder / SHARD)
    assert index.shards[0].size == index.shards[1].size
    refused(lambda: trained(folder), DamagedShardError, "other pairs than those of the index")


def payload(**changes):
    tensors = {f"{role}.{part}": torch.zeros(4, 8, 8) for role in ("target", "hint") for part in ("mean", "deviation")}
    tensors |= {"text.context": torch.zeros(8, 16)}
    kept = {name: tensor for name, tensor in (tensors | changes.pop("tensors", {})).items() if tensor is not None}
    return {"__key__": "0", "safetensors": save(kept), "json": b'{"name": "x"}', **changes}


def picture(width, height):
    stream = io.BytesIO()
    Image.new("L", (width, height)).save(stream, "PNG")
    return stream.getvalue()


NO_HINT = {"hint.mean": None, "hint.deviation": None}
HEADER = (b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4]}}', b"[" * 60_000, b'{"a":1}')
PAYLOADS = {
    "whole numbers": payload(tensors={"hint.mean": torch.zeros(4, 8, 8, dtype=torch.int64)}),
    "bfloat16": payload(tensors={"text.context": torch.zeros(8, 16, dtype=torch.bfloat16)}),
    "no hint": payload(tensors=NO_HINT),
    "no deviation": payload(tensors={"target.deviation": None}),
    "another deviation": payload(tensors={"target.deviation": torch.zeros(4, 8, 9)}),
    "no dimensions": payload(tensors={"target.mean": torch.tensor(0.0), "target.deviation": torch.tensor(0.0)}),
    "nothing wide": payload(tensors={"target.mean": torch.zeros(4, 0, 8), "target.deviation": torch.zeros(4, 0, 8)}),
    "another size": payload(tensors={f"target.{part}": torch.zeros(4, 16, 8) for part in ("mean", "deviation")}),
    "NaN": payload(tensors={"hint.mean": torch.full((4, 8, 8), torch.nan)}),
    "infinite": payload(tensors={"text.context": torch.full((8, 16), torch.inf)}),
    "longer text": payload(tensors={"text.context": torch.zeros(9, 16)}),
    "more text": payload(tensors={"text.\ud7ff\n" * 50: torch.zeros(9, 16)}),
    "no text": payload(tensors={"text.context": None}),
    "no tensors": payload(safetensors=b""),
    "pickle": payload(safetensors=b"\x80\x04."),
    "large header": payload(safetensors=(1 << 40).to_bytes(8, "little")),
    **{f"header {h[:9]!r}": payload(safetensors=len(h).to_bytes(8, "little") + h + bytes(4)) for h in HEADER},
    "no json": payload(json=b""),
    "cp1252": payload(json=b'{"name": "\xe9"}'),
    "list": payload(json=b"[]"),
    "deep": payload(json=b"[" * 100_000),
    "name is a number": payload(json=b'{"name": 5}'),
    "PostScript": payload(tensors=NO_HINT, **{"hint.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n"}),
    "hint of another size": payload(tensors=NO_HINT, **{"hint.png": picture(64, 65)}),
    "large hint": payload(tensors=NO_HINT, **{"hint.png": picture(800, 800)}),
    "cut hint": payload(tensors=NO_HINT, **{"hint.png": picture(64, 64)[:60]}),
    "no picture": payload(tensors=NO_HINT, **{"hint.png": b"x"}),
}


@pytest.mark.parametrize("sample", PAYLOADS.values(), ids=PAYLOADS)
def test_an_encoded_pair_of_something_else_is_refused(sample):
    shards = Shards(None, ShardIndex({}, ()), 1.0, {"context": torch.zeros(8, 16)}, has_flip=False, prompt_dropout=0.0)
    shards.pair(payload())
    refused(lambda: shards.pair(sample).hint(0), DamagedShardError)


def test_what_is_said_about_an_encoded_pair(good):
    (sample, *_) = read_samples(good / SHARD)
    empty = Encoders().encode("")
    assert EncodedPair(sample, 1.0, 1, empty).latent(0).shape == (4, 8, 8)
    refused(lambda: EncodedPair(sample, 1.0, 2, empty), match="has no mirrored.target")
    shards = Shards(good, load_index(good), 1.0, empty, has_flip=False, prompt_dropout=0.0, channels=16)
    refused(lambda: shards.pair(sample), match="must have 16 channels")
    assert encoded_pair.checked(sample, SHARD) == sample["json"][:22]
