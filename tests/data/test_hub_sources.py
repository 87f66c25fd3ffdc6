"""``hf:`` names: folders that datasets saved, and data sets that it streams."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import huggingface_hub
import pytest
from huggingface_hub.errors import RepositoryNotFoundError

from toolkit.data.documents import DocumentReader
from toolkit.data.hub import HubName
from toolkit.data.readers import RecordReader, read_records
from toolkit.data.shards import plan_shards
from toolkit.data.sources import expand
from toolkit.errors import DataError

TEXTS = [f"row {n}" for n in range(2500)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    datasets.disable_progress_bars()
    folder = tmp_path_factory.mktemp("hub")
    rows = datasets.Dataset.from_dict({"text": TEXTS, "meta": [{"n": n} for n in range(2500)]})
    rows.save_to_disk(folder / "whole", num_shards=2)
    rows.select(range(10, 0, -1)).save_to_disk(folder / "chosen")
    mapped = datasets.load_from_disk(folder / "whole").map(lambda row: {"text": row["text"] * 2})
    assert len(list((folder / "whole").glob("cache-*.arrow"))) == len(mapped.cache_files) > 0
    both = datasets.DatasetDict(train=rows, test=rows.select(range(3)))
    both.save_to_disk(folder / "splits")
    (folder / "parquet").mkdir()
    rows.to_parquet(folder / "parquet" / "0.parquet")
    (folder / "cached").mkdir()
    (folder / "empty").mkdir()
    for name in ("data-00000-of-00002.arrow", "data-00001-of-00002.arrow", "dataset_info.json"):
        (folder / "cached" / name).write_bytes((folder / "whole" / name).read_bytes())
    return folder


def texts(*sources: str | Path) -> list[str]:
    return [record.value["text"] for record in read_records(list(sources))]


def test_a_saved_data_set(saved: Path) -> None:
    assert texts(f"hf:{saved}/whole") == TEXTS
    assert texts(saved / "whole") == TEXTS
    assert texts(f"hf:{saved}/chosen") == TEXTS[10:0:-1]
    assert texts(f"hf:{saved}/parquet") == TEXTS
    assert texts(saved / "cached") == TEXTS
    record = next(read_records(f"hf:{saved}/whole"))
    assert record.value == {"text": "row 0", "meta": {"n": 0}}
    assert record.where == f"{saved}/whole/data-00000-of-00002.arrow:1"


def test_a_split_of_several(saved: Path) -> None:
    assert texts(f"hf:{saved}/splits#test") == TEXTS[:3]
    assert texts(f"hf:{saved}/splits#train") == TEXTS


def test_a_relative_folder(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(saved)
    assert texts("hf:splits#test") == TEXTS[:3]


def test_shards_of_a_saved_data_set(saved: Path) -> None:
    sources = expand(f"hf:{saved}/whole")
    shards = plan_shards(sources, sources[0].size // 2 + 1)
    assert len(shards) == 4
    found = [d for shard in shards for d in DocumentReader(shard.parts)]
    assert [d.text for d in found] == TEXTS
    whole = [d.where for d in DocumentReader(sources)]
    assert [d.where for d in found] == whole
    assert found[-1].where.endswith(".arrow:1250")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf:{}/splits", "(?s)a split must be named.*splits#train, hf:.*splits#test"),
        ("hf:{}/splits#valid", "(?s)there is no split 'valid'.*splits#train"),
        ("hf:{}/whole#train", "none of its files is of a split 'train'"),
        ("hf:{}/empty", "(?s)not a datasets folder.*save_to_disk"),
        ("{}/splits", "(?s)a folder of several splits.*hf:.*splits#train"),
        ("hf:{}/nowhere#train", "no such folder, nor a name of the hub; the forms are hf:owner"),
        ("hf:a/b/c#train", "no such folder, nor a name of the hub"),
        ("hf:../b#train", "no such folder, nor a name of the hub"),
        ("hf:#train", "no such folder, nor a name of the hub"),
        ("hf:owner/name", r"which split\? Name it as in hf:owner/name#train"),
    ],
)
def test_what_is_refused(saved: Path, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        expand(name.format(saved))


def test_a_damaged_state(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(DataError, match=r"state\.json: not readable as datasets writes it"):
        expand(f"hf:{tmp_path}")
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "a.arrow"}]}))
    with pytest.raises(DataError, match=r"a\.arrow: can't be read: No such file"):
        expand(f"hf:{tmp_path}")


def test_the_parts_of_a_name() -> None:
    assert HubName.parse("hf:owner/name#train") == HubName("owner/name", None, "train")
    assert HubName.parse("hf:name:en#test[:9]") == HubName("name", "en", "test[:9]")


COMMIT = "0123456789abcdef"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A hub with one data set of 4 files; what it was asked for."""
    asked: list[Any] = []

    def load_dataset(path: str, name: str | None, **options: Any) -> Any:
        asked.append((path, name, options))
        rows = datasets.Dataset.from_dict({"text": [f"row {n}" for n in range(10)]})
        return rows.to_iterable_dataset(num_shards=4)

    class Info:
        sha = COMMIT

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda self, path, timeout: Info)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_a_name_of_the_hub_is_streamed_at_one_commit(hub: list[Any]) -> None:
    [source] = expand("hf:owner/name:en#train")
    assert (source.format, source.size, source.etag) == ("hub", 0, COMMIT)
    reader = DocumentReader([source])
    found = [(d.text, d.where.removeprefix("hf:owner/name:en#train")) for d in reader]
    assert [text for text, _ in found] == TEXTS[:10]
    assert [found[0][1], found[2][1], found[3][1]] == ["[0]:1", "[0]:3", "[1]:1"]
    options = {"split": "train", "revision": COMMIT, "streaming": True}
    assert hub == [("owner/name", "en", options)]


def test_each_file_of_the_hub_is_a_shard(hub: list[Any], tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "before"}\n')
    sources = expand([tmp_path / "a.jsonl", "hf:owner/name#train"])
    shards = plan_shards(sources)
    assert [len(shard.parts) for shard in shards] == [1] * 5
    texts_ = [d.text for shard in shards for d in DocumentReader(shard.parts)]
    assert texts_ == ["before", *TEXTS[:10]]


def test_a_real_stream_of_local_files(
    hub: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    monkeypatch.undo()

    class Info:
        sha = None

    real = datasets.load_dataset
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda self, path, timeout: Info)
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda path, name, split, revision, streaming: real(
            str(tmp_path / "data"), name, split=split, streaming=streaming
        ),
    )
    assert texts("hf:owner/name#train") == ["a", "b"]
    with pytest.raises(DataError, match=r"hf:owner/name#valid: .*valid"):
        texts("hf:owner/name#valid")


@pytest.mark.parametrize("offline", ["1", "0"])
def test_a_hub_that_breaks_off(
    hub: list[Any], monkeypatch: pytest.MonkeyPatch, offline: str
) -> None:
    def rows() -> Iterator[dict[str, str]]:
        yield {"text": "a"}
        raise ConnectionError("no route")

    broken = datasets.IterableDataset.from_generator(rows)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: broken)
    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    hint = "HF_HUB_OFFLINE is set" if offline == "1" else "save the data set to disk"
    with pytest.raises(DataError, match=f"(?s)#train: the hub can't be reached: no route.*{hint}"):
        list(RecordReader(expand("hf:owner/name#train")))


def test_a_name_of_the_hub_without_network() -> None:
    with pytest.raises(DataError, match=r"(?s)hf:nobody/nothing#train: .*HF_HUB_OFFLINE is set"):
        expand("hf:nobody/nothing#train")


def test_a_data_set_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(self: Any, path: str, timeout: float) -> Any:
        response: Any = SimpleNamespace(headers={}, request=None)
        raise RepositoryNotFoundError("404", response=response)

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", missing)
    with pytest.raises(DataError, match=r"#train: the hub has no such data set, or wants a token"):
        expand("hf:nobody/nothing#train")


def test_a_copy_of_a_repository(saved: Path, tmp_path: Path) -> None:
    content = (saved / "parquet" / "0.parquet").read_bytes()
    for name in ("data/train-00000-of-00001.parquet", "data/test-0.parquet", "en/train/0.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "README.md").write_text("x")
    assert [Path(s.name).name for s in expand(f"hf:{tmp_path}#train")] == [
        *("train-00000-of-00001.parquet", "0.parquet"),
    ]
    assert len(expand(f"hf:{tmp_path}")) == 3
    with pytest.raises(DataError, match="none of its files is of a split 'valid'"):
        expand(f"hf:{tmp_path}#valid")
