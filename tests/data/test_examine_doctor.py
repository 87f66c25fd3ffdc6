"""``data doctor``: it finds every damage, where it is, and takes nothing sound for damaged."""

import json
import random
import shutil
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import xxhash
from planted import EOD, VOCABULARY, artifact, documents, files, flip, swap, write, write_tokenizer

from toolkit.artifacts import MANIFEST
from toolkit.data.examine.content_checks import _blocks
from toolkit.data.examine.doctor import examine
from toolkit.data.examine.findings import Damage, Finding
from toolkit.data.examine.locate import locate
from toolkit.data.examine.structure import Examination
from toolkit.data.indexed import HEADER, IndexedReader, IndexedWriter, bin_path, idx_path
from toolkit.errors import DataError
from toolkit.megatron.split import cut_by_tokens, spans

CORRUPTIONS = 200


def look(given: Path, **settings: object) -> list[Examination]:
    return examine(locate(given), lambda _: None, **settings)  # type: ignore[arg-type]


def failure(given: Path, **settings: object) -> Finding | None:
    return next((e.failure for e in look(given, **settings) if e.failure), None)


def statuses(given: Path, **settings: object) -> dict[str, str]:
    return {f.check: f.status for e in look(given, **settings) for f in e.findings}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two prefixes without an artifact, of different sizes."""
    folder = tmp_path_factory.mktemp("sound")
    write(folder / "a", documents(1))
    write(folder / "b", documents(2, count=119))
    write_tokenizer(folder / "small", VOCABULARY // 2)
    return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of three shards of the same size, and one mask each."""
    found = documents(3, count=60)
    shuffled = [np.concatenate([np.roll(d[:-1], 1), d[-1:]]) for d in found]
    folder = tmp_path_factory.mktemp("published") / "artifact"
    artifact(folder, [found, shuffled, documents(4, count=60)], mask=True)
    return folder


def structural(kind: str, folder: Path, chance: random.Random) -> int | None:
    """Damage prefix ``a``; returns the byte of the index that was changed, if one was."""
    data, index = files(folder / "a")
    some = chance.randint(1, 60)
    if kind == "flip":
        return flip(index, chance)
    if kind == "truncate bin":
        data.write_bytes(data.read_bytes()[: -min(some, data.stat().st_size)])
    elif kind == "truncate idx":
        index.write_bytes(index.read_bytes()[: chance.randrange(index.stat().st_size)])
    elif kind == "append bin":
        data.write_bytes(data.read_bytes() + chance.randbytes(some))
    elif kind == "append idx":
        index.write_bytes(index.read_bytes() + chance.randbytes(some))
    elif kind == "swap bins":
        swap(data, bin_path(folder / "b"))
    elif kind == "swap indexes":
        swap(index, idx_path(folder / "b"))
    return None


STRUCTURAL = [
    *["flip"] * 120,
    *["truncate bin"] * 20,
    *["truncate idx"] * 20,
    *["append bin"] * 18,
    *["append idx"] * 18,
    *["swap bins", "swap indexes"] * 2,
]


def test_it_finds_200_structural_corruptions_without_a_manifest(
    sound: Path, tmp_path: Path
) -> None:
    assert len(STRUCTURAL) == CORRUPTIONS
    assert failure(sound / "a") is None
    chance = random.Random(20_261)
    for number, kind in enumerate(STRUCTURAL):
        folder = tmp_path / str(number)
        shutil.copytree(sound, folder)
        changed = structural(kind, folder, chance)
        found = failure(folder / "a")
        assert found is not None and found.place is not None, (number, kind, changed)
        if changed is not None and changed >= HEADER.size:
            check_place(found, changed)
        shutil.rmtree(folder)


def check_place(found: Finding, changed: int) -> None:
    """The place that is named is the very field of the index that the flipped bit is in."""
    count, place = 120, found.place
    assert place is not None
    offsets, boundaries = HEADER.size + 4 * count, HEADER.size + 12 * count
    if offsets - 4 <= changed < offsets:  # the last length has no offset behind it
        assert place.file in ("a.bin", "a.idx")
        return
    start, width = (HEADER.size, 4) if changed < offsets else (offsets, 8)
    start = boundaries if changed >= boundaries else start
    assert place.file == "a.idx"
    assert place.offset == start + (changed - start) // width * width
    assert place.document is not None


def content(kind: str, folder: Path, chance: random.Random) -> None:
    one, two, third = (folder / f"text_document-{i}" for i in range(3))
    if kind == "flip bin":
        flip(bin_path(chance.choice([one, two, third])), chance)
    elif kind == "flip idx":
        flip(idx_path(chance.choice([one, two, third])), chance)
    elif kind == "flip mask":
        flip(bin_path(folder / f"{one.name}_mask"), chance)
    elif kind == "swap equal bins":
        swap(bin_path(one), bin_path(two))
    elif kind == "swap shards":
        for path, other in zip(files(two), files(third), strict=True):
            swap(path, other)
    elif kind == "other tokenizer":
        shutil.rmtree(folder / "tokenizer")
        write_tokenizer(folder / "tokenizer", letter=chance.choice("abc"))
    elif kind == "flip tokenizer":
        flip(
            folder / "tokenizer" / chance.choice(["tokenizer_config.json", "tokenizer.json"]),
            chance,
        )
    elif kind == "truncate mask":
        path = bin_path(folder / f"{two.name}_mask")
        path.write_bytes(path.read_bytes()[: -chance.randint(1, 40)])


CONTENT = [
    *["flip bin"] * 100,
    *["flip idx"] * 40,
    *["flip mask"] * 20,
    *["truncate mask", "flip tokenizer", "other tokenizer"] * 10,
    *["swap equal bins", "swap shards"] * 5,
]


def test_it_finds_200_corruptions_of_an_artifact(published: Path, tmp_path: Path) -> None:
    assert len(CONTENT) == CORRUPTIONS
    assert failure(published) is None
    chance = random.Random(7)
    for number, kind in enumerate(CONTENT):
        folder = tmp_path / str(number)
        shutil.copytree(published, folder)
        content(kind, folder, chance)
        assert failure(folder) is not None, (number, kind)
        shutil.rmtree(folder)


def test_a_tokenizer_that_is_not_the_dataset_s(published: Path, sound: Path) -> None:
    other = write_tokenizer(published.parent / "other", letter="x")
    found = failure(published, tokenizer=other)
    assert found is not None and found.check == "tokenizer"
    assert "another tokenizer" in found.detail
    assert failure(published, tokenizer=published / "tokenizer") is None
    small = failure(sound / "a", tokenizer=sound / "small")
    assert small is not None and small.check == "vocabulary"
    assert small.place is not None and small.place.expected == "0 to 299"
    tokens = np.fromfile(bin_path(sound / "a"), np.uint16)
    assert small.place.offset == 2 * int(np.argmax(tokens >= 300))


def test_the_first_document_without_its_end_is_named(tmp_path: Path) -> None:
    found = documents(5, count=40)
    found[11][-1] = 17
    found[30][-1] = 18
    artifact(tmp_path / "artifact", [found])
    bad = failure(tmp_path / "artifact")
    assert bad is not None and bad.place is not None
    assert bad.check == "end of document"
    assert (bad.place.document, bad.place.expected, bad.place.found) == (11, "token 0", "token 17")
    assert bad.place.offset == 2 * (sum(len(d) for d in found[:12]) - 1)
    assert "95.00%" in bad.detail


def test_eods_inside_documents_and_empty_documents_are_noted(tmp_path: Path) -> None:
    found = documents(6, count=40)
    found[3] = np.array([5, EOD, 6, EOD])
    found[7] = np.zeros(0, np.int64)
    artifact(tmp_path / "artifact", [found])
    (one, *_) = look(tmp_path / "artifact")
    notes = {f.check: f.detail for f in one.findings if f.status == "note"}
    assert notes["end of document"].endswith("1 more are inside documents")
    assert notes["empty documents"] == "1 of 40 documents have no token"
    assert one.failure is None


def test_shard_checksums_say_which_shard_of_a_merged_file_is_bad(tmp_path: Path) -> None:
    found = documents(8, count=60)
    folder = artifact(tmp_path / "artifact", [found]).folder
    whole = bin_path(folder / "text_document-0").read_bytes()
    sizes = [sum(len(d) for d in found[i : i + 20]) for i in (0, 20, 40)]
    ends = 2 * np.cumsum([0, *sizes])
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["info"]["shards"] = [
        {"key": f"0000{i}", "tokens": sizes[i], "documents": 20,
         "bin_xxh3": {"text_document-0": xxhash.xxh3_64(whole[ends[i] : ends[i + 1]]).hexdigest()}}
        for i in range(3)
    ]  # fmt: skip
    (folder / MANIFEST).write_text(json.dumps(manifest))
    assert failure(folder) is None
    data = bytearray(whole)
    data[ends[1] + 4] ^= 1
    bin_path(folder / "text_document-0").write_bytes(data)
    bad = failure(folder)
    assert bad is not None and bad.place is not None
    assert "shard 00001" in bad.detail
    assert bad.place.offset == ends[1]


def test_an_index_that_names_a_part_of_a_linked_bin_is_sound(tmp_path: Path) -> None:
    prefix = write(tmp_path / "whole", documents(9))
    cut_by_tokens(prefix, spans([0.7, 0.2, 0.1]), tmp_path / "parts")
    for part in ("train", "valid", "test"):
        one = tmp_path / "parts" / part
        assert failure(one) is None
        assert len(IndexedReader(one)) > 5
    kinds = statuses(tmp_path / "parts" / "valid")
    assert kinds["offsets"] == "note"


def test_a_linked_part_that_reaches_beyond_its_sequence_is_damaged(tmp_path: Path) -> None:
    prefix = write(tmp_path / "whole", documents(9))
    cut_by_tokens(prefix, spans([0.5, 0.5, 0.0]), tmp_path / "parts")
    index = idx_path(tmp_path / "parts" / "train")
    content = bytearray(index.read_bytes())
    struct.pack_into("<i", content, HEADER.size + 4 * 5, 2000)
    index.write_bytes(content)
    bad = failure(tmp_path / "parts" / "train")
    assert bad is not None and bad.place is not None
    assert "not within one sequence" in bad.detail


def test_a_link_alone_excuses_nothing(tmp_path: Path) -> None:
    prefix = write(tmp_path / "a", documents(9))
    (tmp_path / "store").mkdir()
    blob = tmp_path / "store" / "3f9a.bin"
    bin_path(prefix).rename(blob)
    bin_path(prefix).symlink_to(blob)
    assert failure(prefix) is None
    blob.write_bytes(blob.read_bytes() + b"more")
    bad = failure(prefix)
    assert bad is not None and bad.check == ".bin size"
    with pytest.raises(DataError, match="4 too many"):
        IndexedReader(prefix)


def test_gaps_are_damage_unless_the_index_is_said_to_be_a_subset(tmp_path: Path) -> None:
    prefix = write(tmp_path / "whole", documents(9))
    cut_by_tokens(prefix, spans([0.5, 0.25, 0.25]), tmp_path / "parts")
    one = tmp_path / "parts" / "valid"
    content = bin_path(one).read_bytes()
    bin_path(one).unlink()
    bin_path(one).write_bytes(content)  # a copy: nothing says that it is shared
    bad = failure(one)
    assert bad is not None and bad.check == "offsets"
    assert failure(one, subset=True) is None


def test_without_a_manifest_it_says_that_changed_tokens_are_not_found(tmp_path: Path) -> None:
    prefix = write(tmp_path / "a", documents(9))
    data = bytearray(bin_path(prefix).read_bytes())
    data[10] ^= 1
    bin_path(prefix).write_bytes(data)
    (one,) = look(prefix)
    said = next(f for f in one.findings if f.check == "checksum")
    assert (said.status, one.failure) == ("skip", None)
    assert "no manifest: a token changed to another is not found" in said.detail


def test_documents_of_several_sequences(tmp_path: Path) -> None:
    sentences = documents(10, count=30)
    lengths = np.array([len(d) for d in sentences], np.int64)
    for name, counts in (("text_sentence", [1, 0, 29]), ("rows", [10, 5, 15])):
        with IndexedWriter(tmp_path / name, VOCABULARY) as writer:
            writer.write(np.concatenate(sentences), lengths, sequences=np.array(counts))
        assert failure(tmp_path / name) is None
        kinds = statuses(tmp_path / name)
        assert kinds["documents"] == ("note" if 0 in counts else "ok")


@pytest.mark.parametrize(
    ("boundaries", "number", "expected"),
    [
        ([0, 1, 1, 3], 2, "2"),
        ([0, 2, 1, 3], 1, "1"),
        ([0, 1, 2, 2], 3, "3"),
        ([1, 1, 2, 3], 0, "0"),
    ],
)
def test_boundaries_that_do_not_fit(
    tmp_path: Path, boundaries: list[int], number: int, expected: str
) -> None:
    prefix = write(tmp_path / "text_document", documents(11, count=3))
    index = idx_path(prefix)
    at = HEADER.size + 12 * 3
    index.write_bytes(index.read_bytes()[:at] + struct.pack("<4q", *boundaries))
    bad = failure(prefix)
    assert bad is not None and bad.place is not None
    assert (bad.check, bad.place.offset) == ("documents", at + 8 * number)
    assert bad.place.expected == expected


def test_a_dataset_without_documents_is_sound(tmp_path: Path) -> None:
    assert failure(write(tmp_path / "none", [])) is None


def test_half_a_dataset(tmp_path: Path) -> None:
    data, index = files(write(tmp_path / "a", documents(12, count=4)))
    index.unlink()
    bad = failure(tmp_path / "a")
    assert bad is not None and bad.detail == "no such file; a.bin is there without it"
    data.unlink()


def test_a_disk_that_does_not_give_the_tokens_is_named_with_the_offset() -> None:
    with pytest.raises(Damage) as caught:
        list(_blocks(Path("/proc/self/mem"), 2))  # nothing is mapped at address 0
    place = caught.value.finding.place
    assert place is not None and (place.file, place.offset) == ("mem", 0)
    assert "can't be read: Input/output error" in caught.value.finding.detail


def test_a_mask_of_other_tokens(tmp_path: Path) -> None:
    found = documents(13, count=20)
    folder = artifact(tmp_path / "artifact", [found, found[::-1]], mask=True).folder
    for path, other in zip(
        files(folder / "text_document-0_mask"), files(folder / "text_document-1_mask"), strict=True
    ):
        swap(path, other)
    bad = failure(folder)
    assert bad is not None and bad.check == "parallel"
    assert bad.place is not None and bad.place.offset == HEADER.size


def test_memory_does_not_grow_with_the_tokens(tmp_path: Path) -> None:
    peaks = []
    for size in (8, 48):
        prefix = tmp_path / str(size)
        tokens = np.random.default_rng(0).integers(1, VOCABULARY, 4 << 20).astype(np.uint16)
        with IndexedWriter(prefix, VOCABULARY) as writer:
            for _ in range(size // 8):
                writer.write(tokens, np.full(256, 16_384))
        tracemalloc.start()
        assert failure(prefix) is None
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] < 40e6, peaks
