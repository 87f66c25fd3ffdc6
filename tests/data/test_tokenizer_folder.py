"""Tokenizers of every kind: found, read, copied, and refused with the reason."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from sentencepiece import SentencePieceProcessor
from some_tokenizers import KINDS, SPECIAL, byte_level, tekken
from transformers import BertTokenizer

from toolkit.artifacts import sha256
from toolkit.data.bpe_ranks import ENCODINGS, TEKKEN_PATTERN, read_tekken, read_tiktoken
from toolkit.data.encoders import open_encoder
from toolkit.data.tokenizer_folder import find_tokenizer, open_tokenizer, take_tokenizer
from toolkit.errors import DataError, ToolkitError

EXPECTED = {
    "byte-level": ("tokenizers", "tokenizer.json", SPECIAL[0]),
    "sentencepiece-bpe": ("sentencepiece", "tokenizer.model", "</s>"),
    "sentencepiece-unigram": ("sentencepiece", "tokenizer.model", "</s>"),
    "tiktoken": ("tiktoken", "own.tiktoken", SPECIAL[0]),
    "tekken": ("tekken", "tekken.json", "</s>"),
    "word-piece": ("tokenizers", "vocab.txt", None),
}


@pytest.fixture
def folders(tokenizer_folders: dict[str, Path]) -> dict[str, Path]:
    return tokenizer_folders


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_is_found_and_read(name: str, folders: dict[str, Path]) -> None:
    tokenizer = open_tokenizer(folders[name])
    kind, file, eos = EXPECTED[name]
    assert (tokenizer.kind, tokenizer.files[0].name) == (kind, file)
    assert tokenizer.eos_token() == eos
    assert tokenizer.vocab_size > max(tokenizer.vocabulary.values())
    assert (tokenizer.json is not None) == (kind == "tokenizers")
    tokens = open_encoder(tokenizer, tokenizer.library).encode_batch(["Some text, \U0001f600."])
    assert len(tokens.tokens) > 0
    assert tokens.tokens.max() < tokenizer.vocab_size


@pytest.mark.parametrize("name", KINDS)
def test_a_copy_is_the_same_tokenizer(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    original = open_tokenizer(folders[name])
    taken = take_tokenizer(folders[name], tmp_path / "taken")
    assert taken.folder == tmp_path / "taken"
    assert (taken.kind, taken.sha256) == (original.kind, original.sha256)
    assert taken.vocabulary == original.vocabulary
    assert taken.vocab_size == original.vocab_size
    assert taken.eos_token() == original.eos_token()
    again = take_tokenizer(taken.folder, tmp_path / "again")
    assert again.sha256 == original.sha256


@pytest.mark.parametrize("name", KINDS)
def test_a_file_by_itself(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    in_folder = open_tokenizer(folders[name])
    by_file = open_tokenizer(in_folder.files[0])
    assert (by_file.kind, by_file.sha256) == (in_folder.kind, in_folder.sha256)
    assert by_file.vocab_size == in_folder.vocab_size
    taken = take_tokenizer(in_folder.files[0], tmp_path / "taken")
    assert taken.sha256 == in_folder.sha256


def test_a_versioned_model_is_taken_under_its_usual_name(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    model = tmp_path / "mistral.model.v3"
    shutil.copyfile(folders["sentencepiece-bpe"] / "tokenizer.model", model)
    taken = take_tokenizer(model, tmp_path / "taken")
    assert taken.files == (tmp_path / "taken" / "tokenizer.model",)
    assert taken.kind == "sentencepiece"
    assert find_tokenizer(tmp_path).files == (model,)


def test_the_checksum_is_that_of_the_file(folders: dict[str, Path]) -> None:
    for name in ("byte-level", "sentencepiece-bpe", "tekken"):
        tokenizer = find_tokenizer(folders[name])
        assert tokenizer.sha256 == sha256(tokenizer.files[0])
    word_piece = find_tokenizer(folders["word-piece"])
    assert word_piece.sha256 == hashlib.sha256((word_piece.json or "").encode()).hexdigest()


def test_the_pattern_is_part_of_a_tiktoken_tokenizer(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(folders["tiktoken"], other)
    settings = json.loads((other / "tiktoken.json").read_text())
    (other / "tiktoken.json").write_text(json.dumps({**settings, "pattern": TEKKEN_PATTERN}))
    assert find_tokenizer(other).sha256 != find_tokenizer(folders["tiktoken"]).sha256


def test_a_tokenizer_json_goes_before_others(folders: dict[str, Path], tmp_path: Path) -> None:
    for name in ("word-piece", "sentencepiece-bpe", "tekken", "byte-level"):
        shutil.copytree(folders[name], tmp_path, dirs_exist_ok=True)
        assert find_tokenizer(tmp_path).kind == EXPECTED[name][0]


def test_one_model_goes_before_its_versions(folders: dict[str, Path], tmp_path: Path) -> None:
    source = folders["sentencepiece-bpe"] / "tokenizer.model"
    for name in ("tokenizer.model", "other.model"):
        shutil.copyfile(source, tmp_path / name)
    assert find_tokenizer(tmp_path).files[0].name == "tokenizer.model"
    (tmp_path / "tokenizer.model").rename(tmp_path / "third.model")
    with pytest.raises(DataError, match=r"has several tokenizers: other\.model, third\.model"):
        find_tokenizer(tmp_path)


def test_a_folder_without_one(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DataError, match=r"no tokenizer that can be read\n.*tekken\.json"):
        take_tokenizer(tmp_path, tmp_path / "taken")
    assert not (tmp_path / "taken").exists()


def test_special_tokens_are_listed(folders: dict[str, Path]) -> None:
    def special(name: str) -> list[str]:
        return find_tokenizer(folders[name]).special_tokens()

    assert special("byte-level") == special("tiktoken") == SPECIAL
    assert special("tekken")[:3] == ["<unk>", "<s>", "</s>"]
    assert special("tekken")[-1] == "<SPECIAL_29>"
    assert special("sentencepiece-bpe") == ["<unk>", "<s>", "</s>", "<ctl>"]
    assert set(special("word-piece")) == {"[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"}


def test_ids_of_tokens(folders: dict[str, Path]) -> None:
    tekken_folder = open_tokenizer(folders["tekken"])
    assert tekken_folder.id_of("</s>", "eod_token") == 2
    assert tekken_folder.id_of("a", "eod_token") == 30 + ord("a")
    processor = SentencePieceProcessor(str(folders["sentencepiece-bpe"] / "tokenizer.model"))
    pieces = open_tokenizer(folders["sentencepiece-bpe"])
    assert pieces.id_of("<ctl>", "eod_token") == processor.piece_to_id("<ctl>")
    with pytest.raises(ToolkitError, match="eod_token: the tokenizer has no token '<none>'"):
        pieces.id_of("<none>", "eod_token")


@pytest.mark.parametrize("lower", [True, False, None])
def test_a_vocabulary_of_bert(lower: bool | None, folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copyfile(folders["word-piece"] / "vocab.txt", tmp_path / "vocab.txt")
    if lower is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lower}))
    taken = take_tokenizer(tmp_path, tmp_path / "taken")
    theirs = BertTokenizer.from_pretrained(tmp_path)
    for text in (
        "Some TEXT, with na\u00efve \u4e2d\u6587 words.",
        "[SEP] \x00 unaffable",
        "\t a\n",
    ):
        found = open_encoder(taken, "tokenizers", parse_special_tokens=True).encode_batch([text])
        assert found.tokens.tolist() == theirs.encode(text, add_special_tokens=False)


# Whole files of other programs


LISTED = [
    {"rank": rank, "token_str": token, "is_control": True}
    for rank, token in enumerate(["<unk>", "<s>", "</s>", "[NEW]"])
]


@pytest.mark.parametrize("listed", [None, LISTED], ids=["v3", "v11"])
def test_tekken_as_mistral_common_reads_it(
    tmp_path: Path, listed: list[dict[str, Any]] | None
) -> None:
    tekkenizer = pytest.importorskip(
        "mistral_common.tokens.tokenizers.tekken", reason="compares with mistral-common"
    ).Tekkenizer
    file = tekken(tmp_path, byte_level(tmp_path)) / "tekken.json"
    (tmp_path / "tokenizer.json").unlink()
    if listed is not None:
        raw = json.loads(file.read_text())
        raw["config"]["version"] = "v11"
        file.write_text(json.dumps({**raw, "special_tokens": listed}))
    theirs = tekkenizer.from_file(file)
    ours = open_tokenizer(tmp_path)
    assert ours.vocab_size == theirs.n_words
    assert ours.ranks.special_tokens == {
        token["token_str"]: token["rank"] for token in theirs._all_special_tokens
    }
    texts = ["Some text\n\nand 12345 \u4e2d\u6587 more </s> of it", "", " don't", "\U0001f600"]
    for backend in ("tiktoken", "gigatoken"):
        encoded = open_encoder(ours, backend).encode_batch(texts)
        expected = [theirs.encode(text, bos=False, eos=False) for text in texts]
        assert encoded.tokens.tolist() == [token for tokens in expected for token in tokens]
        assert encoded.lengths.tolist() == list(map(len, expected))


def test_mistrals_own_file(tmp_path: Path) -> None:
    common = pytest.importorskip("mistral_common", reason="ships a tekken file of 131,072 tokens")
    file = Path(common.__file__).parent / "data" / "tekken_240911.json"
    ranks = read_tekken(file)
    assert (ranks.vocab_size, len(ranks.special_tokens), len(ranks.ids)) == (131072, 1000, 130072)
    assert ranks.pattern == TEKKEN_PATTERN
    assert ranks.special_tokens["</s>"] == 2
    assert ranks.ids[b" the"] == 1278


def test_encodings_as_tiktoken_defines_them(monkeypatch: pytest.MonkeyPatch) -> None:
    openai = pytest.importorskip("tiktoken_ext.openai_public", reason="compares with tiktoken")
    monkeypatch.setattr(openai, "load_tiktoken_bpe", lambda *_, **__: {})
    monkeypatch.setattr(openai, "data_gym_to_mergeable_bpe_ranks", lambda *_, **__: {})
    theirs = {name: make() for name, make in openai.ENCODING_CONSTRUCTORS.items()}
    assert {
        name: (encoding.pattern, dict(encoding.special_tokens))
        for name, encoding in ENCODINGS.items()
    } == {name: (found["pat_str"], found["special_tokens"]) for name, found in theirs.items()}


# What can't be read


def rewritten(file: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / file
        path.write_bytes(orjson.dumps(change(orjson.loads(path.read_bytes()))))

    return apply


def line(file: str, number: int, content: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        lines = (folder / file).read_text().splitlines()
        lines[number - 1] = content
        (folder / file).write_text("\n".join(lines))

    return apply


def content(file: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_bytes(data) and None


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("byte-level", content("tokenizer.json", b"{"), "tokenizer.json: not a readable tokenizer"),
        ("byte-level", content("tokenizer.json", b"\xff"), "tokenizer.json: not UTF-8"),
        ("sentencepiece-bpe", content("tokenizer.model", b"xx"), "not a readable SentencePiece"),
        (
            "word-piece",
            content("vocab.txt", b"a\nb\n"),
            r"vocab.txt: the vocabulary has no \[UNK\]",
        ),
        ("tiktoken", line("own.tiktoken", 7, "?? 6"), "own.tiktoken:7: not a token in base64"),
        ("tiktoken", line("own.tiktoken", 7, "YQ=="), "own.tiktoken:7: not a token in base64"),
        ("tiktoken", line("own.tiktoken", 7, "YQ== 6"), "own.tiktoken:98: token b'a' comes twice"),
        ("tiktoken", line("own.tiktoken", 7, ""), "1 of the 256 bytes have no token.* 0x06"),
        ("tiktoken", content("tiktoken.json", b"[]"), "tiktoken.json: not a JSON object"),
        ("tiktoken", content("tiktoken.json", b'{"pat": 1}'), r"has 'pat'\n.*encoding.* or"),
        (
            "tiktoken",
            content("tiktoken.json", b'{"encoding": "cl50k"}'),
            "encoding 'cl50k' is none of gpt2, r50k_base",
        ),
        (
            "tiktoken",
            content("tiktoken.json", b'{"pattern": "a", "special_tokens": ["b"]}'),
            "tiktoken.json: special_tokens: not an object of tokens and their ids",
        ),
        (
            "tiktoken",
            lambda folder: (folder / "tiktoken.json").unlink(),
            r"'own' is none of the known encodings \(gpt2, (.|\n)*put a tiktoken.json beside it",
        ),
        ("tekken", content("tekken.json", b"{"), "tekken.json: invalid JSON"),
        ("tekken", rewritten("tekken.json", lambda t: {"vocab": []}), "not a tekken.*'config'"),
        (
            "tekken",
            rewritten("tekken.json", lambda t: {**t, "vocab": t["vocab"][:300]}),
            "not a tekken tokenizer of [0-9]+ tokens in the order of their ranks",
        ),
        (
            "tekken",
            rewritten("tekken.json", lambda t: {**t, "vocab": t["vocab"][::-1]}),
            "in the order of their ranks and 30 special tokens",
        ),
    ],
)
def test_files_that_can_not_be_read(
    name: str,
    change: Callable[[Path], None],
    message: str,
    folders: dict[str, Path],
    tmp_path: Path,
) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(folders[name], folder)
    change(folder)
    with pytest.raises(DataError, match=message):
        open_tokenizer(folder)


def test_a_known_encoding_by_name(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copyfile(folders["tiktoken"] / "own.tiktoken", tmp_path / "cl100k_base.tiktoken")
    ranks = read_tiktoken(tmp_path / "cl100k_base.tiktoken")
    assert ranks.special_tokens["<|endofprompt|>"] == 100276
    assert ranks.vocab_size == 100277
    assert take_tokenizer(tmp_path, tmp_path / "taken").eos_token() == "<|endoftext|>"


def test_a_model_file_may_be_tiktokens(folders: dict[str, Path], tmp_path: Path) -> None:
    # Llama 3's tokenizer.model is one.
    shutil.copyfile(folders["tiktoken"] / "own.tiktoken", tmp_path / "tokenizer.model")
    shutil.copyfile(folders["tiktoken"] / "tiktoken.json", tmp_path / "tiktoken.json")
    assert open_tokenizer(tmp_path).kind == "tiktoken"
    assert take_tokenizer(tmp_path, tmp_path / "taken").vocab_size == (
        open_tokenizer(folders["tiktoken"]).vocab_size
    )
