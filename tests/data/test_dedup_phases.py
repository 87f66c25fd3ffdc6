"""All phases of deduplication: what they find, and that nothing but the texts decides it."""

import itertools
import logging
import random
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dedup_runs import Shards, dedup, hash_shards
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.context import StageContext
from toolkit.data.dedup import buckets, clusters, exact, phases, verify
from toolkit.data.dedup.arrays import Folders, Layout, is_marked, removed_bits
from toolkit.data.dedup.buckets import Pairs
from toolkit.data.dedup.clusters import find, join
from toolkit.data.dedup.config import (
    BUCKETS,
    CLUSTERS,
    EXACT,
    SHINGLES,
    VERIFY,
    ExactDedupSettings,
    NearDedupSettings,
)
from toolkit.data.dedup.exact import normalise
from toolkit.data.dedup.phases import Dedup, HashedShard, Removal
from toolkit.data.dedup.shingles import shingle
from toolkit.errors import DataError, StageError

EXACTLY, NEARLY = ExactDedupSettings(), NearDedupSettings()
Pair = tuple[int, int]


def document(random: random.Random, words: int) -> str:
    return " ".join(f"w{random.randrange(5000)}" for _ in range(words))


def edited(text: str, rate: float, random: random.Random) -> str:
    return " ".join(f"e{random.random()}" if random.random() < rate else w for w in text.split())


@pytest.fixture(scope="module")
def corpus() -> list[list[str]]:
    """Four shards: documents of 5 to 400 words, copies, and copies with edits."""
    rng = random.Random(7)
    texts = [document(rng, rng.choice([5, 20, 60, 150, 400])) for _ in range(400)]
    for rate in (0.0, 0.002, 0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.1):
        texts += [edited(text, rate, rng) for text in rng.sample(texts[:400], 40)]
    texts += ["", " \n", "...", "short one", "Short  one!", ""]
    rng.shuffle(texts)
    return [texts[0:300], texts[300:301], [], texts[301:]]


def flat(shards: Shards) -> list[str]:
    return list(itertools.chain.from_iterable(shards))


def true_pairs(texts: Sequence[str], near: NearDedupSettings) -> dict[Pair, float]:
    """All pairs that share a shingle, with their Jaccard similarity, by an inverted index."""
    sets = [set(s.tolist()) for s in shingle(texts, near).sets()]
    holders: dict[int, list[int]] = {}
    for number, hashes in enumerate(sets):
        for value in hashes:
            holders.setdefault(value, []).append(number)
    met = {p for h in holders.values() if len(h) > 1 for p in itertools.combinations(h, 2)}
    return {(a, b): len(sets[a] & sets[b]) / len(sets[a] | sets[b]) for a, b in met}


def found_pairs(run: Dedup) -> dict[Pair, float]:
    documents = run.layout.documents
    codes, similarities = Pairs(run._folders(VERIFY)).between(0, documents**2)
    pairs = [divmod(code, documents) for code in codes.tolist()]
    return dict(zip(pairs, similarities.tolist(), strict=True))


def removed_ids(run: Dedup) -> dict[int, tuple[str, int]]:
    """The id of each removed document: why, and the id of the one that stays."""
    removals, starts = run.removals(), run.layout.starts.tolist()
    return {
        starts[shard] + r.index: (r.reason, starts[r.kept_shard] + r.kept_index)
        for shard in range(len(starts) - 1)
        for r in removals.of(shard)
    }


def components(pairs: Sequence[Pair]) -> dict[int, int]:
    """The least member of each document's cluster."""
    root: dict[int, int] = {}

    def top(node: int) -> int:
        while root.setdefault(node, node) != node:
            node = root[node]
        return node

    for a, b in pairs:
        a, b = top(a), top(b)
        root[max(a, b)] = min(a, b)
    return {node: top(node) for node in root}


def test_near_duplicates_against_all_pairs(tmp_path: Path, corpus: list[list[str]]) -> None:
    run = dedup(tmp_path, hash_shards(tmp_path / "h", corpus, None, NEARLY), None, NEARLY)
    true = true_pairs(flat(corpus), NEARLY)
    wanted = {pair for pair, similarity in true.items() if similarity >= NEARLY.threshold}
    found = found_pairs(run)
    assert len(wanted) > 200
    assert len(wanted & set(found)) >= 0.99 * len(wanted)
    assert set(found) <= wanted
    low, high = buckets.doubts(NEARLY)
    for pair, similarity in found.items():
        assert similarity == pytest.approx(true[pair], abs=1e-6 if similarity < high else 0.1)
    assert any(low < similarity < high for similarity in found.values())


def test_clusters_are_what_pairs_connect_and_the_first_stays(
    tmp_path: Path, corpus: list[list[str]]
) -> None:
    run = dedup(tmp_path, hash_shards(tmp_path / "h", corpus, None, NEARLY), None, NEARLY)
    roots = components(list(found_pairs(run)))
    expected = {n: ("near_duplicate", r) for n, r in roots.items() if n != r}
    assert removed_ids(run) == expected
    info = run.info()["near"]
    assert info["clusters"] == len(set(roots.values()))
    assert info["removed"] == len(expected)
    assert sum(info["sizes"].values()) == info["clusters"]
    assert info["candidate_probability"]["0.8"] == 0.9823


def test_the_longest_stays_where_that_is_wished(tmp_path: Path, corpus: list[list[str]]) -> None:
    near = NearDedupSettings(keep="longest")
    run = dedup(tmp_path, hash_shards(tmp_path / "h", corpus, None, near), None, near)
    texts, roots = flat(corpus), components(list(found_pairs(run)))
    best: dict[int, int] = {}
    for node in sorted(roots):
        known = best.setdefault(roots[node], node)
        if len(texts[node]) > len(texts[known]):
            best[roots[node]] = node
    expected = {n: ("near_duplicate", best[r]) for n, r in roots.items() if n != best[r]}
    assert removed_ids(run) == expected
    assert any(kept != roots[node] for node, (_, kept) in expected.items())


def test_exact_duplicates_are_all_found_and_the_first_stays(
    tmp_path: Path, corpus: list[list[str]]
) -> None:
    shards = [*corpus, ["Cafe\u0301  au\nlait ", "Café au lait", "café au lait"]]
    run = dedup(tmp_path, hash_shards(tmp_path / "h", shards, EXACTLY, None), EXACTLY, None)
    first: dict[str, int] = {}
    expected = {}
    for number, text in enumerate(flat(shards)):
        kept = first.setdefault(normalise(text), number)
        if kept != number:
            expected[number] = ("exact_duplicate", kept)
    assert removed_ids(run) == expected
    assert len(expected) > 30
    assert run.info()["exact"]["removed"] == len(expected)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    st.lists(
        st.lists(st.sampled_from(["", " ", "a", "A", "a b", "a  b ", "b a", "."]), max_size=6)
    ),
    st.sampled_from([None, EXACTLY]),
)
def test_any_shards_of_short_texts(
    shards: list[list[str]], exactly: ExactDedupSettings | None
) -> None:
    """Short texts are near duplicates where their words are equal: each one's key tells."""
    expected: dict[int, str] = {}
    seen: dict[Any, int] = {}
    for number, text in enumerate(flat(shards)):
        words = tuple(text.lower().replace(".", " ").split())
        if exactly and seen.setdefault(normalise(text), number) != number:
            expected[number] = "exact_duplicate"
        elif words and seen.setdefault(words, number) != number:
            expected[number] = "near_duplicate"
    near = NearDedupSettings(num_perm=16, bands=1, rows=16)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("toolkit.data.tasks.sync", lambda path: None)
        hashed = hash_shards(Path(folder, "h"), shards, exactly, near)
        found = removed_ids(dedup(Path(folder), hashed, exactly, near))
    assert {number: reason for number, (reason, _) in found.items()} == expected


def test_case_is_no_difference_where_that_is_wished(tmp_path: Path) -> None:
    lower = ExactDedupSettings(lowercase=True)
    for number, (setting, count) in enumerate(((EXACTLY, 0), (lower, 1))):
        folder = tmp_path / str(number)
        hashed = hash_shards(folder / "h", [["One two"], ["one TWO"]], setting, None)
        assert len(removed_ids(dedup(folder, hashed, setting, None))) == count


def test_both_kinds_together(tmp_path: Path, corpus: list[list[str]]) -> None:
    hashed = hash_shards(tmp_path / "h", corpus, EXACTLY, NEARLY)
    found = removed_ids(dedup(tmp_path, hashed, EXACTLY, NEARLY))
    texts = flat(corpus)
    reasons = {reason for reason, _ in found.values()}
    assert reasons == {"exact_duplicate", "near_duplicate"}
    assert not {kept for _, kept in found.values()} & set(found), "what stays is not removed"
    equal = {n for n, (reason, _) in found.items() if reason == "exact_duplicate"}
    stays = [normalise(t) for n, t in enumerate(texts) if n not in equal]
    assert len(set(stays)) == len(stays)
    alone = dedup(tmp_path / "2", hashed, None, NEARLY)
    worded = {n for n, text in enumerate(texts) if any(c.isalnum() for c in text)}
    assert set(removed_ids(alone)) == set(found) & worded


def test_documents_without_words_are_never_near_duplicates(tmp_path: Path) -> None:
    shards = [["", "...", "—"], ["", "!!!"]]
    hashed = hash_shards(tmp_path / "h", shards, None, NEARLY)
    assert removed_ids(dedup(tmp_path, hashed, None, NEARLY)) == {}


def test_short_documents_are_duplicates_where_all_their_words_are_equal(tmp_path: Path) -> None:
    shards = [["one two", "One, two!", "one two three", "two one", "one"]]
    hashed = hash_shards(tmp_path / "h", shards, None, NEARLY)
    assert removed_ids(dedup(tmp_path, hashed, None, NEARLY)) == {1: ("near_duplicate", 0)}


def test_no_documents_at_all(tmp_path: Path) -> None:
    hashed = hash_shards(tmp_path / "h", [[], []], EXACTLY, NEARLY)
    run = dedup(tmp_path, hashed, EXACTLY, NEARLY)
    assert removed_ids(run) == {}
    assert run.info()["near"]["clusters"] == 0


@pytest.mark.parametrize("unit", ["words", "characters"])
def test_by_signatures_alone(tmp_path: Path, corpus: list[list[str]], unit: Any) -> None:
    near = NearDedupSettings(verify="signatures", unit=unit, ngram=5 if unit == "words" else 20)
    run = dedup(tmp_path, hash_shards(tmp_path / "h", corpus, None, near), None, near)
    true, found = true_pairs(flat(corpus), near), found_pairs(run)
    sure = {pair for pair, similarity in true.items() if similarity >= 0.9}
    assert len(sure & set(found)) >= 0.99 * len(sure) > 0
    assert all(true.get(pair, 0) > 0.7 for pair in found)
    assert run._results(SHINGLES)[0].info == {"documents": 0, "shingles": 0}


def result_files(work: Path) -> dict[str, bytes]:
    names = (EXACT, BUCKETS, SHINGLES, VERIFY, CLUSTERS)
    files = (path for name in names for path in sorted((work / name).rglob("*.bin")))
    return {str(path.relative_to(work)): path.read_bytes() for path in files}


@pytest.mark.parametrize(("workers", "ranks"), [(2, 1), (1, 2), (1, 7), (2, 3)])
def test_workers_and_ranks_change_nothing(
    tmp_path: Path,
    corpus: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
    ranks: int,
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=":")
    monkeypatch.setattr(phases, "WORTH_PROCESSES", 0)
    hashed = hash_shards(tmp_path / "h", corpus, EXACTLY, NEARLY)
    one = dedup(tmp_path / "one", hashed, EXACTLY, NEARLY)
    many = dedup(tmp_path / "many", hashed, EXACTLY, NEARLY, workers=workers, ranks=ranks)
    assert removed_ids(one) == removed_ids(many)
    assert result_files(tmp_path / "one/work") == result_files(tmp_path / "many/work")


def test_other_shards_and_batches_give_the_same(tmp_path: Path, corpus: list[list[str]]) -> None:
    texts = flat(corpus)
    other = [texts[start : start + 97] for start in range(0, len(texts), 97)]
    found = []
    for number, (shards, batch) in enumerate(((corpus, 100), (other, 13))):
        folder = tmp_path / str(number)
        hashed = hash_shards(folder / "h", shards, EXACTLY, NEARLY, batch)
        found.append(removed_ids(dedup(folder, hashed, EXACTLY, NEARLY)))
    assert found[0] == found[1]


@pytest.mark.parametrize("phase", [EXACT, BUCKETS, SHINGLES, VERIFY, CLUSTERS])
def test_a_lost_phase_is_made_again_the_same(
    tmp_path: Path, corpus: list[list[str]], phase: str
) -> None:
    hashed = hash_shards(tmp_path / "h", corpus[:1], EXACTLY, NEARLY)
    dedup(tmp_path, hashed, EXACTLY, NEARLY)
    before = result_files(tmp_path / "work")
    shutil.rmtree(tmp_path / "work" / phase)
    dedup(tmp_path, hashed, EXACTLY, NEARLY)
    assert result_files(tmp_path / "work") == before


def test_a_phase_before_its_time_is_refused(tmp_path: Path) -> None:
    hashed = hash_shards(tmp_path / "h", [["one"]], None, NEARLY)
    context = StageContext("clean", "clean", tmp_path, "test")
    run = Dedup(context, hashed, None, NEARLY, texts="dedup_runs:read_texts", workers=1)
    with pytest.raises(StageError, match="tasks of phase 'near-buckets' are not done"):
        run.run(SHINGLES)


def test_small_pieces_give_the_same(
    tmp_path: Path, corpus: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every bound on memory at its least: ranges of hashes, blocks of pairs, of documents."""
    shards = [corpus[0][:130], corpus[0][130:200]]
    hashed = hash_shards(tmp_path / "h", shards, EXACTLY, NEARLY)
    whole = dedup(tmp_path / "whole", hashed, EXACTLY, NEARLY)
    for module, name, value in (
        (exact, "ENTRIES", 30),
        (buckets, "ENTRIES", 100),
        (buckets, "PAIRS", 7),
        (verify, "BLOCK", 11),
        (verify, "GROUP", 50),
        (verify, "COMPARED", 300),
        (verify, "BATCH", 2000),
        (clusters, "EDGES", 3),
    ):
        monkeypatch.setattr(module, name, value)
    pieces = dedup(tmp_path / "pieces", hashed, EXACTLY, NEARLY)
    assert len(pieces._results(BUCKETS)) == 2 * 28
    assert len(pieces._results(EXACT)) == 7
    assert removed_ids(whole) == removed_ids(pieces)
    assert found_pairs(whole) == found_pairs(pieces)


def test_large_buckets_stay_linear_and_connected(tmp_path: Path) -> None:
    """400 documents that all are near duplicates of each other: 79,800 pairs."""
    rng = random.Random(3)
    base = document(rng, 300).split()
    texts = [" ".join([*base[:150], f"copy{n}", *base[150:]]) for n in range(400)]
    hashed = hash_shards(tmp_path / "h", [texts[:150], texts[150:]], EXACTLY, NEARLY)
    run = dedup(tmp_path, hashed, EXACTLY, NEARLY)
    assert removed_ids(run) == dict.fromkeys(range(1, 400), ("near_duplicate", 0))
    bands, _ = NEARLY.banding()
    compared = sum(result.info["compared"] for result in run._results(BUCKETS))
    assert compared <= 400 * bands * (buckets.WINDOW + 1)
    assert run.info()["near"]["sizes"]["100-999"] == 1


def test_a_bucket_task_keeps_to_its_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 2,000,000 documents with random keys, a task with 1/32 of them holds no more at once."""
    documents, parts = 2_000_000, 32
    shards = []
    generator = np.random.default_rng(0)
    for number in range(4):
        folder = tmp_path / str(number)
        folder.mkdir()
        keys = np.sort(generator.integers(0, 2**64, documents // 4, np.uint64))
        keys.tofile(folder / buckets.KEYS)
        np.arange(documents // 4, dtype=np.uint32).tofile(folder / buckets.ORDER)
        shards.append(str(folder))
    near = NearDedupSettings(bands=1, rows=2)
    layout = Layout(Folders(shards), (documents // 4,) * 4)
    monkeypatch.setattr(buckets, "ENTRIES", documents // parts)
    none = removed_bits([], documents)
    tasks = buckets.bucket_tasks(layout, near, Folders())
    assert len(tasks) == parts
    sizes = [len(buckets._read(task, 0, none)[0]) for task in tasks]
    assert sum(sizes) == documents
    assert max(sizes) < 1.1 * documents / parts


@settings(deadline=None, max_examples=200, derandomize=True)
@given(
    st.integers(1, 40).flatmap(
        lambda n: st.tuples(
            st.just(n),
            st.lists(st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)))),
        )
    )
)
def test_join_gives_the_components(case: tuple[int, list[list[Pair]]]) -> None:
    documents, chunks = case
    parents = np.arange(documents, dtype=np.uint32)
    for chunk in chunks:
        edges = np.array(chunk, np.uint64).reshape(-1, 2)
        join(parents, edges[:, 0], edges[:, 1])
    expected = components([pair for chunk in chunks for pair in chunk])
    roots = find(parents, np.arange(documents)).tolist()
    assert roots == [expected.get(n, n) for n in range(documents)]


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.lists(st.tuples(st.sets(st.integers(0, 30)), st.sets(st.integers(0, 30), min_size=1))))
def test_jaccard_of_many_pairs(pairs: list[tuple[set[int], set[int]]]) -> None:
    spread = np.uint64(0x9E3779B97F4A7C15)

    def ragged(sets: list[set[int]]) -> tuple[Any, Any]:
        values = np.array([v for s in sets for v in s], np.uint64) * spread
        return values, np.array([len(s) for s in sets], np.int64)

    found = verify.jaccard(*ragged([a for a, _ in pairs]), *ragged([b for _, b in pairs]))
    assert found.tolist() == pytest.approx([len(a & b) / len(a | b) for a, b in pairs])


def test_more_documents_than_there_are_numbers(tmp_path: Path) -> None:
    shards = [HashedShard(str(tmp_path), 1 << 31, None)] * 2
    context = StageContext("clean", "clean", tmp_path, "test")
    with pytest.raises(DataError, match="4,294,967,296 documents are more than"):
        Dedup(context, shards, EXACTLY, None, texts="a:b", workers=1)


def test_what_a_removal_says(tmp_path: Path) -> None:
    text = document(random.Random(0), 50)
    hashed = hash_shards(tmp_path / "h", [["x", text], [text, text + " more"]], EXACTLY, NEARLY)
    removals = dedup(tmp_path, hashed, EXACTLY, NEARLY).removals()
    assert removals.of(0) == []
    assert removals.of(1) == [
        Removal(0, "exact_duplicate", 0, 1),
        Removal(1, "near_duplicate", 0, 1),
    ]


def test_what_a_banding_finds_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hashed = hash_shards(tmp_path / "h", [["one"]], None, NEARLY)
    with caplog.at_level(logging.INFO, phases.__name__):
        dedup(tmp_path, hashed, None, NEARLY)
    assert "28 bands of 9 rows" in caplog.text
    assert "0.7: 68.4%, 0.75: 88.8%, 0.8: 98.2%" in caplog.text
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]
    few = NearDedupSettings(bands=8, rows=16)
    hashed = hash_shards(tmp_path / "few" / "h", [["one"]], None, few)
    dedup(tmp_path / "few", hashed, None, few)
    assert "8 bands of 16 rows find only 20 % of the pairs at the threshold 0.8" in caplog.text


def test_runs_of_other_scripts_in_ascii_text(tmp_path: Path) -> None:
    """A long run within much ASCII has the same words as by itself."""
    long = "слово и дело " * 9 + "中文字" * 30
    near = NearDedupSettings(ngram=1, num_perm=16)
    alone, within = shingle([long, "x " * 40_000 + long], near).sets()
    assert set(alone.tolist()) < set(within.tolist())
    assert len(within) == len(alone) + 1


def test_bits_of_removed_documents(tmp_path: Path) -> None:
    for number, ids in enumerate(([0, 9, 63], [], [8, 10, 64])):
        (tmp_path / str(number)).mkdir()
        np.array(ids, np.uint64).tofile(tmp_path / str(number) / "removed.bin")
    bits = removed_bits([tmp_path / name for name in "012"], 65)
    found = np.flatnonzero(is_marked(bits, np.arange(65, dtype=np.uint64)))
    assert found.tolist() == [0, 8, 9, 10, 63, 64]


def test_what_tells_layouts_apart() -> None:
    one = Layout(Folders(["a", "b"]), (1, 2))
    assert repr(one) == repr(Layout(Folders(["a", "b"]), (1, 2)))
    for other in (Layout(Folders(["a", "c"]), (1, 2)), Layout(Folders(["a", "b"]), (2, 1))):
        assert repr(other) != repr(one)
    assert len(repr(Layout(Folders(["folder"] * 10_000), (1,) * 10_000))) < 200
