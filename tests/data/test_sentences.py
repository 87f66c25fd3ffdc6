"""Sentences: nothing is lost, and they end where a reader would say so."""

import sys
import time
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.data.samples import read_sample
from toolkit.data.sentences import sentence_spans, split_sentences

GOLD = """
The tree fell.| Nobody heard it.
Who left the door open?| The cat did.
Look out!| It is hot.
Her teacher was Anna K. Berg.
The recipe is on p. 212.
Have Lindt and co. paid yet?
The law firm Hale, Ostrow & Co. moved in May.
Ask Mira and co.| They were there.
She left Hale, Ostrow & Co.| It closed a year later.
Snow covers Mt. Elbrus all year.
St. Anne's lies at the end of 3rd St. near the mill.
This is Martin Luther King Jr.'s speech.
We crossed the U.S.A. by train.
They moved to the U.K.| How do they like it?
She moved to the U.S.| They stayed.
The U.S. Senate voted on it.
He stayed in the U.S. for 20 years.
At 7 a.m. Dr. Vogel opened the shop.| He closed it at 6 p.m.| The light went out.
It closed at 6 p.m.| Dr. Vogel went home.
It costs $12.50 in all.
He owes me $12.50.| It has been a week.
Rust (which forms when iron meets water.) is brown.
Write to Mira.Sol@mail.example.org.| I read it every day.
The page is https://www.example.org/v2.1/data_sets.html.| Please cite it.
'It is late.' he said.
He whispered, "It is late." and turned around.
He whispered, "It is late."| The lamp went out.
No!!| Not again.
What??| Who says so?
What!?| Are you sure?
What?!| Are you sure?
The author holds that "a map is not the land."| She is right.
"Words [...] are like leaves [...]" (Pope 309).
The list goes on....| Nobody reads it.
I almost.... Forget it, said Tom.
A point which was missed . . . was the price.
Ada (born 1815) wrote it.| She is known for 10 notes.
It ended in 1998.| The year was warm.
It needs version 3.10.| Nothing else changed.
See Fig. 3 and Eqs. 4-5, cf. Sec. 2.1. for more.
As shown by Kim et al. (2010), this holds.
Use a tool, e.g. Make, i.e. GNU Make, etc. to build.
We bought apples, pears, etc.| The shop was cheap.
Prof. Dr. J. R. R. Winter wrote it.| The book is long.
Gen. Moss met Sen. Brown vs. Rep. Green.
On Jan. 5 and Sept. 11 it rained.| It was cold.
He was born in Aug.| The summer was hot.
No. 5 is alive.
Is it alive?| No.| It is dead.
It has vitamin C.| The rest is water.
So do I.| The end.
1. Install it.| Then run it.
2.1. Sources are expanded.| They are sorted.
(a) It rains.| (b) It snows.
"Really?" she asked.| "Yes!" he said.
Wait… what?
Wait…| What?
He said: “Stop.”| Then he left.
Ist das so?| Ja, z. B. hier.
¿Qué pasa?| ¡Nada!
Acme Inc. reported a loss.| The stock fell.
He works at Acme Inc.| The office is large.
The company was founded by Carl F. Rosen Jr. in 1870.
The train to Washington, D.C. is late.
He got his Ph.D. in 2001.| He got the M.D.| Then he left.
The file a.txt is in dir.name.| Open it with vi.
Call os.path.join(a, b).| It returns a string.
Meet me at 10 a.m. sharp, on Nov. 3.
Approx. 5 lbs. of flour were used (see pp. 10-12).
It was 5.5 degrees.| 10 people came.
It rained.| (It often does.)| Then it stopped.
他说。|你好！|我们走吧？|好。
「はい。」|彼は答えた。
यह एक वाक्य है।| यह दूसरा है।
هل أنت هنا؟| نعم.
"""
"""One line a case; bars where a sentence ends, in front of the white space."""


def cases() -> list[tuple[str, list[str]]]:
    lines = [line for line in GOLD.splitlines() if line]
    return [(line.replace("|", ""), line.split("|")) for line in lines]


KNOWN_WRONG = {"I almost.... Forget it, said Tom.", "It closed at 6 p.m. Dr. Vogel went home."}
"""What takes the words' meaning, not how they are written."""


def test_the_gold_list() -> None:
    wrong = [
        (text, split_sentences(text)) for text, gold in cases() if split_sentences(text) != gold
    ]
    assert [case for case in wrong if case[0] not in KNOWN_WRONG] == []
    assert len(cases()) >= 60
    assert len(wrong) == len(KNOWN_WRONG)


PUNKT = [
    Path(root, "nltk_data", "tokenizers", "punkt_tab")
    for root in (Path.home(), "/usr/share", "/usr/local/share", "/usr/lib", sys.prefix)
]


@pytest.mark.skipif(not any(map(Path.is_dir, PUNKT)), reason="no data of nltk's Punkt here")
def test_as_good_as_punkt() -> None:
    tokenize = pytest.importorskip("nltk.tokenize", reason="compares with nltk's Punkt")
    punkt = tokenize.PunktTokenizer("english")
    ours = sum(split_sentences(text) == gold for text, gold in cases())
    theirs = sum(
        punkt.tokenize(text) == [sentence.strip() for sentence in gold] for text, gold in cases()
    )
    assert ours >= theirs


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("", []),
        ("  \n ", ["  \n "]),
        ("no full stop", ["no full stop"]),
        ("Title\n\nSome text. More.\n", ["Title", "\n\nSome text.", " More.\n"]),
        ("wrapped\nlines. Are one", ["wrapped\nlines.", " Are one"]),
        ("A list:\n- one\n- two\n", ["A list:", "\n- one", "\n- two\n"]),
        ("Do:\n1. Go.\n2. Stop.", ["Do:", "\n1. Go.", "\n2. Stop."]),
        ("one.\n\n\n \ntwo", ["one.", "\n\n\n \ntwo"]),
        ("\n\nOne. Two.\n\n", ["\n\nOne.", " Two.\n\n"]),
        ("One.\r\n\r\nTwo.", ["One.", "\r\n\r\nTwo."]),
        ("Pears etc.  and so on.  It rains.", ["Pears etc.  and so on.", "  It rains."]),
        ("See no.  5 etc.\n  and so on.", ["See no.  5 etc.\n  and so on."]),
    ],
)
def test_paragraphs_lists_and_blanks(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


PIECES = st.sampled_from(
    [*".!?…。！\n \t\"')(-", "Mr.", "e.g.", "U.S.", "The", "word", "3", "中", "\r\n"]
)


@settings(deadline=None, max_examples=300, derandomize=True)
@given(st.lists(PIECES | st.text(max_size=3), max_size=40).map("".join))
def test_nothing_is_lost(text: str) -> None:
    spans = sentence_spans(text)
    assert "".join(split_sentences(text)) == text
    assert [start for start, _ in spans] == [0, *(stop for _, stop in spans[:-1])][: len(spans)]
    if text.strip():
        assert all(text[start:stop].strip() for start, stop in spans)


def test_the_sample_documents() -> None:
    texts = [row["text"] for row in read_sample("python-docs")][::10]
    sentences = [split_sentences(text) for text in texts]
    assert ["".join(pieces) for pieces in sentences] == texts
    assert sum(map(len, sentences)) > 4 * len(texts)


@pytest.mark.parametrize(
    "text",
    [
        *("." * 100_000, ". " * 50_000, "\n" * 100_000 + "a", " " * 100_000, "\n \n" * 40_000),
        *('."' * 50_000, "." + '"' * 100_000, "。" * 100_000, "!" * 100_000 + " A"),
        *("\n1. " * 75_000, "\n-" * 50_000, ". (" * 100_000, ". " + "(" * 40_000),
    ],
    ids=lambda text: repr(text[:4]),
)
def test_texts_made_to_be_slow(text: str) -> None:
    started = time.process_time()
    spans = sentence_spans(text)
    assert time.process_time() - started < 2
    assert list(accumulate(stop - start for start, stop in spans)) == [stop for _, stop in spans]
