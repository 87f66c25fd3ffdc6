"""English words that are split, or kept whole, against the rules: contractions, abbreviations."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator


def listed(text: str) -> list[str]:
    """The words of a text: a list that can be read."""
    return text.split()


def _emoticons() -> Iterator[str]:
    """The faces that stay whole."""
    faces = [
        (":", ("", "-"), (")", "))", ")))", "(", "((", "(((", *"]}/|PpOo03*>XxD")),
        ("8;", ("", "-"), ")D"),
        ("(", ("", "-"), ":;"),
        ("=", ")(][/|3D"),
        ((":'",), ("", "-"), "()"),
        ("o0O", "_.", "o0O"),
    ]
    for parts in faces:
        yield from map("".join, itertools.product(*parts))
    yield from ("[:", "[-:", "):", ")-:", "(=", "[=", "]=", ":o)", "(o:", "(-8", ">:(", ">:o", ":1")
    yield from (":()", "xD", "XD", "xDD", "XDD", "^_^", "^__^", "^___^", ">.<", ">.>", "<.<", "._.")
    yield from (";_;", "-_-", "-__-", "@_@", "<3", "<33", "<333", "</3", "v.v", "V.V", "v_v", "V_V")


def _contractions() -> Iterator[tuple[str, ...]]:
    """The words that are split where no rule would, and those that are kept whole.

    Each as its parts. An apostrophe may be left out: ``dont`` is split as ``don't`` is.
    """
    yield from (("I", "'m"), ("i", "'m"), ("I", "'m", "a"), ("i", "'m", "a"))
    for word in ("i", "you", "he", "she", "it", "we", "they"):
        tails = ["'ll", "'d"]
        tails += ["'ve"] if word in ("i", "you", "we", "they") else ["'s"]
        tails += ["'re"] if word in ("you", "we", "they") else []
        yield from _with_tails(word, tails)
    for word in ("who", "what", "when", "where", "why", "how", "there"):
        yield from _with_tails(word, ["'ll", "'d", "'s", "'re", "'ve"])
    for word in ("that", "this"):
        yield from _with_tails(word, ["'ll", "'d", "'s"])
    for word in ("these", "those"):
        yield from _with_tails(word, ["'ll", "'d", "'re", "'ve"])
    for word in ("could", "might", "must", "should", "would"):
        yield from _with_tails(word, ["'ve"])
    for word in listed("ca could do does did had may might must need ought sha should wo would"):
        yield from ((w, *tail) for w in (word, word.title()) for tail in (("n't",), ("n't", "'ve")))
    for word in listed("ai are is was were have has dare"):
        yield from ((w, "n't") for w in (word, word.title()))
    yield from (("not", "'ve"), ("Not", "'ve"))


def _with_tails(word: str, tails: Iterable[str]) -> Iterator[tuple[str, ...]]:
    for start in (word, word.title()):
        for tail in tails:
            yield start, tail
            if tail in ("'ll", "'d"):
                yield start, tail, "'ve"


_UNSPLIT = listed("ill its hell shell shed were well whore")
_SPLIT = listed(
    "can·not Can·not gon·na Gon·na got·ta Got·ta let·'s Let·'s c'm·on C'm·on y'·all y·all "
    "how·'d·'y How·'d·'y"
)
_WHOLE = listed(
    "' \\\") '' <space> C++ \\t \\n — and/or w/o 's 'S ‘s ‘S 're 'd 'll 'em 'nuff 'bout "
    "'Cause 'cause 'Cos 'cos 'Coz 'coz 'Cuz 'cuz ma'am Ma'am o'clock O'clock "
    "lovin' Lovin' havin' Havin' doin' Doin' goin' Goin' nothin' Nothin' nuthin' Nuthin' ol' Ol' "
    "somethin' Somethin' ä. ö. ü. "
    "Mt. Ak. Ala. Apr. Ariz. Ark. Aug. Calif. Colo. Conn. Dec. Del. Feb. Fla. Ga. Ia. Id. Ill. "
    "Ind. Jan. Jul. Jun. Kan. Kans. Ky. La. Mar. Mass. Mich. Minn. Miss. N.C. N.D. N.H. N.J. N.M. "
    "N.Y. Neb. Nebr. Nev. Nov. Oct. Okla. Ore. Pa. S.C. Sep. Sept. Tenn. Va. Wash. Wis. a.m. p.m. "
    "Adm. Bros. co. Co. Corp. D.C. Dr. e.g. E.g. E.G. Gen. Gov. i.e. I.e. I.E. Inc. Jr. Ltd. Md. "
    "Messrs. Mo. Mont. Mr. Mrs. Ms. Ph.D. Prof. Rep. Rev. Sen. St. vs. v.s."
)


def _special() -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for parts in _contractions():
        bare = tuple(part.replace("'", "") for part in parts)
        for split in (parts, bare):
            found["".join(split)] = split
    for word in _UNSPLIT:
        found.pop(word, None)
        found.pop(word.title(), None)
    found |= {split.replace("·", ""): tuple(split.split("·")) for split in _SPLIT}
    found |= {
        f"{hour}{half}": (str(hour), half)
        for hour in range(1, 13)
        for half in ("a.m.", "am", "p.m.", "pm")
    }
    letters = (f"{chr(code)}." for code in range(ord("a"), ord("z") + 1))
    found |= {word: (word,) for word in (*_WHOLE, *letters, *_emoticons())}
    curly = {
        word.replace("'", "’"): tuple(part.replace("'", "’") for part in parts)
        for word, parts in found.items()
    }
    return found | curly


SPECIAL = _special()
"""Chunks, and rests of chunks, with their words."""


JOINED = frozenset(word for word in SPECIAL if not word.isalnum())
JOINED_STARTS = frozenset(word[:length] for word in JOINED for length in range(1, len(word)))
JOINED_OR_STARTS = JOINED | JOINED_STARTS
