"""Filters: their decisions are datatrove's, and what each rule means."""

from __future__ import annotations

import gzip
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from toolkit.data.clean.batch import Batch, Filter
from toolkit.data.clean.filter_settings import (
    C4QualitySettings,
    FineWebQualitySettings,
    FunctionSettings,
    GopherQualitySettings,
    GopherRepetitionSettings,
    LanguageSettings,
    LengthSettings,
    RegexSettings,
    UrlSettings,
)
from toolkit.data.clean.pipeline import FILTERS, Pipeline
from toolkit.data.clean.words import Splitter
from toolkit.data.samples import read_sample
from toolkit.errors import DataError, ToolkitError

ORACLES = {
    "gopher-quality": ("GopherQualityFilter", GopherQualitySettings()),
    "gopher-repetition": ("GopherRepetitionFilter", GopherRepetitionSettings()),
    "c4-quality": ("C4QualityFilter", C4QualitySettings()),
    "fineweb-quality": ("FineWebQualityFilter", FineWebQualitySettings()),
}


def decide(settings: Any, *texts: str, metadata: list[dict[str, Any]] | None = None) -> list[Any]:
    batch = Batch(list(texts), Splitter(), metadata or [{} for _ in texts])
    return FILTERS[settings.filter](settings)(batch)


@pytest.fixture(scope="module", params=ORACLES)
def pair(request: pytest.FixtureRequest) -> tuple[Any, Filter]:
    """Their filter and ours."""
    pytest.importorskip("spacy", reason="datatrove splits words with spaCy")
    filters = pytest.importorskip("datatrove.pipeline.filters", reason="datatrove is the oracle")
    name, ours = ORACLES[request.param]
    return getattr(filters, name)(), FILTERS[ours.filter](ours)


def theirs(oracle: Any, text: str) -> tuple[str | None, str]:
    from datatrove.data import Document

    document = Document(text=text, id="0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = oracle.filter(document)
    return (None if result is True else result[1]), document.text


def compare(pair: tuple[Any, Filter], texts: list[str]) -> None:
    oracle, ours = pair
    expected = [theirs(oracle, text) for text in texts]
    batch = Batch.of(texts)
    reasons = ours(batch)
    assert reasons == [reason for reason, _ in expected]
    kept = [text for text, reason in zip(batch.texts, reasons, strict=True) if reason is None]
    assert kept == [text for reason, text in expected if reason is None]


def test_decisions_are_datatroves_on_real_text(pair: tuple[Any, Filter]) -> None:
    texts = [str(value["text"]) for value in read_sample("sample:python-docs")]
    texts = texts[:: max(1, len(texts) // 100)]
    pages = [t.replace("\n\n", "\0").replace("\n", " ").replace("\0", "\n") for t in texts]
    repeats = [text[:400] * 3 for text in texts[:20]]
    compare(pair, [*texts, *pages, *repeats])


WORDS = ["the", "of", "and", "word", "It's", "end.", "why?", "...", "#", "•", "-", "1234", "{"]
LINES = st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join)
DOCUMENTS = st.lists(LINES, min_size=1, max_size=40).map("\n".join) | st.lists(
    LINES, min_size=1, max_size=20
).map("\n\n".join)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(texts=st.lists(DOCUMENTS, min_size=1, max_size=4))
def test_decisions_are_datatroves_on_any_text(pair: tuple[Any, Filter], texts: list[str]) -> None:
    compare(pair, texts)


PROSE = (
    "It was the best of times and the worst of times, and all that we have to be is with them.\n"
)


def test_gopher_quality_says_why() -> None:
    loose = GopherQualitySettings(min_doc_words=5)
    good = PROSE * 2
    found = decide(
        loose, good, "Too short.", "# " * 50 + good, "the be to " + "1 " * 90, "a b " * 9
    )
    assert found == [
        None,
        "gopher_short_doc",
        "gopher_too_many_hashes",
        "gopher_below_avg_threshold",
        "gopher_below_avg_threshold",
    ]


def test_gopher_quality_takes_a_document_without_words_for_a_short_one() -> None:
    assert decide(GopherQualitySettings(min_doc_words=None), "\u2003") == ["gopher_short_doc"]


def test_n_grams_must_ascend() -> None:
    with pytest.raises(ValidationError, match="dup_n_grams: each n must be greater"):
        GopherRepetitionSettings(dup_n_grams=[(6, 0.1), (5, 0.2)])


def test_rules_that_are_off_remove_nothing() -> None:
    off = GopherRepetitionSettings(
        dup_line_frac=None,
        dup_para_frac=None,
        dup_line_char_frac=None,
        dup_para_char_frac=None,
        top_n_grams=[],
        dup_n_grams=[],
    )
    assert decide(off, "same\n" * 50) == [None]
    assert decide(GopherRepetitionSettings(), "same\n" * 50) == ["dup_line_frac"]


def test_c4_keeps_good_lines_alone() -> None:
    text = "Menu | Home\n" + "This is one fine sentence.[1]\n" * 5 + "We use cookies here today.\n"
    batch = Batch.of([text, "Only one line.", "Good lines here have { in them."])
    reasons = FILTERS["c4-quality"](C4QualitySettings())(batch)
    assert reasons == [None, "too_few_sentences", "curly_bracket"]
    assert batch.texts[0] == "\n".join(["This is one fine sentence."] * 5)


def test_fineweb_with_stop_characters_of_ones_own() -> None:
    stops = FineWebQualitySettings(stop_chars=["END", ";"])
    text = "a longer line than thirty characters goes here"
    assert decide(stops, f"{text}END", f"{text};", text) == [None, None, "line_punct_ratio"]


def test_length() -> None:
    bounds = LengthSettings(min_characters=3, max_characters=10, max_words=2)
    assert decide(bounds, "ab", "abc", "a" * 11, "a b c") == [
        "too_few_characters",
        None,
        "too_many_characters",
        "too_many_words",
    ]


def test_regex_drops_or_keeps() -> None:
    assert decide(RegexSettings(regex_exp=r"\bfoo\b"), "a foo", "food") == ["found", None]
    keep = RegexSettings(regex_exp=r"\bfoo\b", action="keep")
    assert decide(keep, "a foo", "food") == [None, "not_found"]


def test_urls_by_domain_word_and_list(tmp_path: Path) -> None:
    (tmp_path / "domains.gz").write_bytes(gzip.compress(b"# comment\nBad.example\n\n"))
    settings = UrlSettings(
        domain_files=[str(tmp_path / "domains.gz")],
        extra_urls=["https://ok.example/page"],
        banned_words=["casino"],
        soft_banned_words=["free", "win"],
        banned_subwords=["xxx"],
    )
    urls = {
        "https://bad.example/a": "domain",
        "https://www.bad.example:80/a": "subdomain",
        "bad.example/a": "domain",
        "https://notbad.example/": None,
        "https://ok.example/page": "url",
        "https://a.example/casino-royale": "hard_blacklisted",
        "https://a.example/casinos": None,
        "https://a.example/free": None,
        "https://a.example/free/win": "soft_blacklisted",
        "https://a.example/x-x-x": "blacklisted_subword",
        "http://[broken/": None,
    }
    found = decide(settings, *urls, metadata=[{"url": url} for url in urls])
    assert found == list(urls.values())


def test_a_document_without_url_is_an_error_unless_said_otherwise() -> None:
    lists = {"extra_domains": ["bad.example"]}
    with pytest.raises(DataError, match=r"id 7: the document has no URL"):
        decide(UrlSettings(**lists), "text", metadata=[{"id": "7"}])
    assert decide(UrlSettings(**lists, missing="keep"), "text") == [None]
    assert decide(UrlSettings(**lists, missing="drop"), "text") == ["no_url"]


def test_a_list_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.txt: the list can't be read"):
        decide(UrlSettings(url_files=[str(tmp_path / "none.txt")]), "text")


def long_enough(text: str, metadata: dict[str, Any]) -> bool | str | None:
    """What the test below names."""
    if "boom" in text:
        raise KeyError("boom")
    return {"a": True, "b": False, "c": "of its own", "d": None}.get(text, 3)  # type: ignore[return-value]


def test_functions_decide() -> None:
    settings = FunctionSettings(function="test_clean_filters:long_enough")
    assert decide(settings, "a", "b", "c", "d") == [None, "dropped", "of its own", None]
    with pytest.raises(ToolkitError, match="gave 3"):
        decide(settings, "other")
    with pytest.raises(ToolkitError, match=r"failed on this document: KeyError\('boom'\)"):
        decide(settings, "boom", metadata=[{"id": "x"}])
    with pytest.raises(ToolkitError, match="can't be imported"):
        decide(FunctionSettings(function="test_clean_filters:missing"), "a")


GERMAN = "Der schnelle braune Fuchs springt über den faulen Hund, und niemand hat es gesehen. "
ENGLISH = "The quick brown fox jumps over the lazy dog while nobody is there to see it happen. "


def test_languages_are_told_apart() -> None:
    pytest.importorskip("py3langid", reason="it has the model")
    metadata: list[dict[str, Any]] = [{}, {}]
    only = LanguageSettings(languages=["en"])
    found = decide(only, ENGLISH * 3, GERMAN * 3, metadata=metadata)
    assert found == [None, "other_language"]
    assert [m["language"] for m in metadata] == ["en", "de"]
    label = LanguageSettings(label_only=True, language_threshold=1.0)
    assert decide(label, GERMAN) == [None]
    assert decide(LanguageSettings(language_threshold=1.0), "1") == ["low_score"]
    with pytest.raises(ToolkitError, match="doesn't know klingon"):
        decide(LanguageSettings(languages=["klingon"]), "text")


def trained(fasttext: Any, folder: Path) -> str:
    """A model of two languages; training sometimes fails by itself, and is tried again."""
    lines = [f"__label__eng {ENGLISH}", f"__label__deu {GERMAN}"] * 50
    (folder / "train.txt").write_text("\n".join(lines))
    for rate in (0.1, 0.08, 0.06, 0.04, 0.02):
        try:
            model = fasttext.train_supervised(
                str(folder / "train.txt"), epoch=20, dim=8, lr=rate, thread=1, verbose=0
            )
        except RuntimeError:
            continue
        model.save_model(str(folder / "model.bin"))
        return str(folder / "model.bin")
    pytest.skip("fastText can't train here")


def test_a_fasttext_model_is_used(tmp_path: Path) -> None:
    path = trained(pytest.importorskip("fasttext", reason="it reads such models"), tmp_path)
    chosen = LanguageSettings(languages=["eng"], model_path=path, language_threshold=0.5)
    assert decide(chosen, ENGLISH, GERMAN) == [None, "other_language"]
    with pytest.raises(DataError, match="no such fastText model"):
        decide(LanguageSettings(model_path=str(tmp_path / "none.bin")), "text")
    with pytest.raises(DataError, match="not a fastText model"):
        decide(LanguageSettings(model_path=str(tmp_path / "train.txt")), "text")


def test_the_pipeline_accounts_for_every_document() -> None:
    pipeline = Pipeline(None, [C4QualitySettings(), LengthSettings(min_characters=100)], None)
    texts = [PROSE * 6, "no good", "This is a short line here. " * 5, PROSE * 6]
    batch, removed = pipeline(texts, [{"id": str(i)} for i in range(4)])
    assert [m["id"] for m in batch.metadata] == ["0", "2", "3"]
    assert [(one.metadata["id"], one.reason) for one in removed] == [
        ("1", "c4-quality/too_few_sentences")
    ]
    assert pipeline.drops == {"c4-quality/too_few_sentences": 1}
    assert pipeline.changed == {"c4-quality": 3}


def test_what_an_edit_leaves_blank_is_removed() -> None:
    settings = C4QualitySettings(min_num_sentences=-1)
    batch, removed = Pipeline(None, [settings], None)(
        ["nothing good", PROSE], [{"id": 0}, {"id": 1}]
    )
    assert len(batch) == 1
    assert [one.reason for one in removed] == ["emptied"]
