"""``data sample``: every document has the same chance, whatever the format; nothing is hidden."""

import gzip
import http.server
import json
import random
import threading
from collections import Counter
from functools import partial
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from planted import artifact, documents

from toolkit.data.examine.reservoir import Reservoir
from toolkit.data.examine.sampling import (
    Sample,
    datasets_of,
    sample_datasets,
    sample_files,
    sources_of,
)
from toolkit.data.examine.terminal import shortened, visible
from toolkit.errors import DataError

COUNT = 40


def texts() -> list[str]:
    return [f"document {i} " + "x" * (i * i % 700) for i in range(COUNT)]


def lines(folder: Path, name: str) -> Path:
    """Documents of very different lengths, with blank lines between some of them."""
    raw = "".join(
        json.dumps({"text": text}) + ("\n\n" if i % 7 == 0 else "\r\n" if i % 5 == 0 else "\n")
        for i, text in enumerate(texts())
    ).encode()
    path = folder / name
    path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    return path


def parquet(folder: Path) -> Path:
    path = folder / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": texts()}), path, row_group_size=7)
    return path


def array(folder: Path) -> Path:
    path = folder / "a.json"
    path.write_text(json.dumps([{"text": text} for text in texts()]))
    return path


MAKERS = {
    "jsonl": lambda folder: lines(folder, "a.jsonl"),
    "gz": lambda folder: lines(folder, "a.jsonl.gz"),
    "parquet": parquet,
    "json": array,
}


def draw(path: Path, count: int, seed: int, **settings: str) -> Sample:
    return sample_files(sources_of([str(path)]), count, seed, lambda _: None, **settings)


@pytest.mark.parametrize("size", [1, 3, 20])
def test_a_reservoir_gives_every_item_the_same_chance(size: int) -> None:
    counts: Counter[int] = Counter()
    chance, rounds, items = random.Random(5), 4000, 25
    for _ in range(rounds):
        reservoir: Reservoir[int] = Reservoir(size, chance)
        for start in range(0, items, 10):
            reservoir.offer(min(10, items - start), lambda i, start=start: start + i)
        assert reservoir.seen == items
        assert len(set(reservoir.items)) == size
        counts.update(reservoir.items)
    expected = rounds * size / items
    deviation = (expected * (1 - size / items)) ** 0.5
    assert set(counts) == set(range(items))
    assert all(abs(count - expected) < 4.5 * deviation for count in counts.values()), counts


def test_a_reservoir_of_more_than_there_is_has_all() -> None:
    reservoir: Reservoir[int] = Reservoir(50, random.Random(1))
    reservoir.offer(7, int)
    assert reservoir.items == list(range(7))


@pytest.mark.parametrize("form", MAKERS)
def test_the_documents_and_their_places_are_right(tmp_path: Path, form: str) -> None:
    path = MAKERS[form](tmp_path)
    found = draw(path, COUNT, 1)
    assert [d.text for d in found.documents] == texts()
    assert found.population == COUNT
    raw = (gzip.decompress(path.read_bytes()) if form == "gz" else path.read_bytes()).split(b"\n")
    for document in found.documents:
        number = int(document.where.rpartition(":")[2])
        if form in ("jsonl", "gz"):
            assert json.loads(raw[number - 1])["text"] == document.text
        else:
            assert document.text == texts()[number - 1]


@pytest.mark.parametrize("form", MAKERS)
def test_long_documents_are_not_drawn_more_often(tmp_path: Path, form: str) -> None:
    path = MAKERS[form](tmp_path)
    counts: Counter[str] = Counter()
    for seed in range(150):
        drawn = [d.where for d in draw(path, 8, seed).documents]
        assert len(set(drawn)) == 8
        counts.update(drawn)
    expected = 150 * 8 / COUNT
    assert len(counts) == COUNT
    assert all(abs(n - expected) < 5 * (expected * 0.8) ** 0.5 for n in counts.values()), counts


def test_the_same_seed_draws_the_same_from_several_files(tmp_path: Path) -> None:
    sources = sources_of([str(lines(tmp_path, "a.jsonl")), str(parquet(tmp_path))])
    one, two, other = (sample_files(sources, 6, seed, lambda _: None) for seed in (3, 3, 4))
    assert one == two != other
    assert one.population == 2 * COUNT


def test_a_bad_line_is_shown_and_a_record_without_the_key_whole(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n{"text": bro\n{"body": "b"}\n[1]\n')
    found = draw(tmp_path / "a.jsonl", 9, 0)
    assert [d.text for d in found.documents][:2] == ["fine", '{"text": bro']
    assert found.documents[1].problem.startswith("invalid JSON")
    assert json.loads(found.documents[2].text) == {"body": "b"}
    assert draw(tmp_path / "a.jsonl", 9, 0, text_key="body").documents[2].text == "b"


def test_records_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"text": "a"}, 3, {"text": "b"}]')
    found = draw(tmp_path / "a.json", 9, 0)
    assert ([d.text for d in found.documents], found.bad) == (["a", "b"], 1)


def test_documents_of_a_dataset_are_decoded(tmp_path: Path) -> None:
    found = documents(1, count=30)
    folder = artifact(tmp_path / "artifact", [found[:20], found[20:]]).folder
    drawn = sample_datasets(datasets_of([str(folder)]), 30, 5)
    assert drawn.population == 30
    for document, tokens in zip(drawn.documents, found, strict=True):
        words = ["<eod>" if t == 0 else "<unk>" if t == 1 else f"w{t}" for t in tokens]
        assert document.text.split() == words
        assert document.size == f"{len(tokens)} tokens"
    assert drawn.documents[20].where == "text_document-1, document 0"
    few = [sample_datasets(datasets_of([str(folder)]), 4, seed) for seed in (1, 1, 2)]
    assert few[0] == few[1] != few[2]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *ignored: object) -> None:
        pass


def test_what_a_url_names(tmp_path: Path) -> None:
    lines(tmp_path, "a.jsonl.gz")
    parquet(tmp_path)
    serve = partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        found = sample_files(sources_of([f"{address}/a.jsonl.gz"]), COUNT, 1, lambda _: None)
        assert [d.text for d in found.documents] == texts()
        with pytest.raises(DataError, match="can't be read from its middle on this server"):
            sample_files(sources_of([f"{address}/a.parquet"]), 3, 1, lambda _: None)
        server.shutdown()


def test_a_folder_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="it is empty"):
        sources_of([str(tmp_path)])


def test_a_documents_artifact_stands_for_its_documents(tmp_path: Path) -> None:
    from toolkit.artifacts import publish

    built = tmp_path / "built"
    for name in ("documents", "removed"):
        (built / name).mkdir(parents=True)
        (built / name / "00000.jsonl").write_text(json.dumps({"text": name}) + "\n")
    publish(built, tmp_path / "artifact", artifact_type="documents", stage="c", kind="clean",
            fingerprint="f")  # fmt: skip
    assert datasets_of([str(tmp_path)]) == []
    assert [d.text for d in draw(tmp_path, 9, 0).documents] == ["documents"]


def test_what_data_holds_does_not_act_on_the_terminal() -> None:
    assert visible("a\x1b[31mb\x07\n\tc\x9b\x7fé") == "a\u241b[31mb\u2407\n\tc\ufffd\ufffdé"
    assert shortened("x" * 2000) == "x" * 1000 + " ... and 1,000 characters more"
    assert shortened("\n" * 50).endswith("and 39 characters more")
