"""What the verbs of ``toolkit data`` print: tables and bars that fit the terminal's width."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from toolkit.artifacts import Artifact
from toolkit.data.examine.findings import Finding
from toolkit.data.examine.inspection import Decoded, Ends, Inspection, Part
from toolkit.data.examine.lengths import LengthSummary
from toolkit.data.examine.merging import Merged
from toolkit.data.examine.sampling import Sample
from toolkit.data.examine.structure import Examination
from toolkit.data.examine.terminal import bar, plain_table, shortened, size
from toolkit.data.examine.verification import Checked

STYLES = {"ok": "green", "note": "yellow", "fail": "bold red", "skip": "dim"}
SHOWN_IDS = 32
LONGEST_BAR = 48
FEW = 3
"""Examinations that are shown in full."""
SHOWN_PARTS = 20


def show_inspection(found: Inspection) -> RenderableType:
    """Counts, lengths, how documents end, and the first of them."""
    parts: list[RenderableType] = [_parts(found.parts), "", _lengths(found.lengths)]
    if found.ends is not None:
        parts += ["", _ends(found.ends)]
    if found.mask_share is not None:
        parts.append(Text(f"loss mask: {found.mask_share:.1%} of the tokens count in the loss"))
    for document in found.documents:
        parts += ["", show_document(document)]
    if found.documents and found.tokenizer is None:
        hint = "no tokenizer is known here: --tokenizer FOLDER shows the documents as text"
        parts += ["", Text(hint, style="dim")]
    return Group(*parts)


def _parts(parts: Sequence[Part]) -> Table:
    numbers = ("documents", "sequences", "tokens", ".bin", ".idx")
    table = plain_table("dataset", *numbers, "dtype", right=numbers)
    for part in parts[:SHOWN_PARTS]:
        table.add_row(part.name, *_counts([part]), part.dtype)
    if len(parts) > SHOWN_PARTS:
        table.add_row(f"and {len(parts) - SHOWN_PARTS} more")
    if len(parts) > 1:
        table.add_row("all", *_counts(parts), style="bold")
    return table


def _counts(parts: Sequence[Part]) -> list[str]:
    counted = (sum(getattr(p, n) for p in parts) for n in ("documents", "sequences", "tokens"))
    sizes = (sum(getattr(p, n) for p in parts) for n in ("bin_bytes", "idx_bytes"))
    return [*(f"{n:,}" for n in counted), *map(size, sizes)]


def _lengths(lengths: LengthSummary) -> RenderableType:
    if not lengths.bins:
        return Text("no documents")
    table = Table.grid(padding=(0, 2, 0, 0))
    for _ in range(4):
        table.add_column(justify="right", no_wrap=True)
    table.add_column(min_width=4, max_width=LONGEST_BAR)
    table.add_row(*(Text(t, style="bold") for t in ("tokens", "documents", "", "of tokens", "")))
    most = max(b.documents for b in lengths.bins)
    for one in lengths.bins:
        span = f"{one.low:,}" if one.low == one.high else f"{one.low:,} - {one.high:,}"
        table.add_row(
            span,
            f"{one.documents:,}",
            f"{one.documents / lengths.documents:.1%}",
            f"{one.tokens / max(lengths.tokens, 1):.1%}",
            bar(one.documents / most),
        )
    return Group(table, "", _percentiles(lengths))


def _percentiles(lengths: LengthSummary) -> Table:
    named = {f"p{p}" if p != 50 else "median": value for p, value in lengths.percentiles.items()}
    row = {"shortest": lengths.shortest, **named, "longest": lengths.longest, "mean": lengths.mean}
    table = plain_table(*row, right=tuple(row))
    table.add_row(*(f"{value:,.0f}" for value in row.values()))
    return table


def _ends(ends: Ends) -> Text:
    called = f" {ends.text!r}" if ends.text else ""
    which = "the recorded end of documents" if ends.known else "the commonest last token"
    looked = f"of the {ends.looked_at:,} documents looked at"
    return Text(
        f"end of documents: {ends.share:.1%} {looked} end with {ends.token}{called}, {which}"
    )


def show_document(document: Decoded) -> RenderableType:
    """A document under its number and length."""
    title = Text(f"{document.dataset}, document {document.number:,}", style="bold")
    title.append(f"  {document.tokens:,} tokens", style="not bold dim")
    return Group(title, Padding(Text(_beginning(document)), (0, 0, 0, 2)))


def _beginning(document: Decoded) -> str:
    if document.text is None:
        more = " ..." if document.tokens > SHOWN_IDS else ""
        return " ".join(map(str, document.ids[:SHOWN_IDS])) + more
    return shortened(document.text, cut=document.cut)


def show_examinations(found: Sequence[Examination]) -> RenderableType:
    """All of them; of more than a few, those with nothing to say have one line each."""
    parts: list[RenderableType] = []
    brief = len(found) > FEW
    for one in found:
        if brief and all(f.status in ("ok", "skip") for f in one.findings):
            parts.append(_one_line(one))
        else:
            parts += ([""] if parts else []) + [show_examination(one)]
    return Group(*parts, "", _verdict(found)) if brief else Group(*parts)


def _one_line(found: Examination) -> Text:
    checks = sum(f.status == "ok" for f in found.findings)
    told = f"  {checks} checks" + (f", {size(found.size)}" if found.size else "")
    return Text.assemble(("ok  ", STYLES["ok"]), found.name, (told, "dim"))


def _verdict(found: Sequence[Examination]) -> Text:
    damaged = [one.name for one in found if one.failure]
    whole = size(sum(one.size for one in found))
    if damaged:
        return Text(f"{len(damaged)} of {len(found)} damaged: {', '.join(damaged)}", style="red")
    return Text(f"all {len(found)} are sound, {whole}", style="green")


def show_examination(found: Examination) -> RenderableType:
    """The findings of one dataset, and where the first failure is."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in found.findings:
        detail = Text(finding.detail, style="dim" if finding.status == "skip" else "")
        table.add_row(Text(finding.status, style=STYLES[finding.status]), finding.check, detail)
    speed = f"  {size(found.size)} in {found.seconds:.1f} s" if found.size else ""
    title = Text.assemble((found.name, "bold"), (speed, "dim"))
    return Group(title, table, *_failure(found.failure))


def _failure(finding: Finding | None) -> Iterator[RenderableType]:
    if finding is not None and finding.place is not None:
        yield Text(f"first bad: {finding.place}", style="bold red")


def show_verification(artifact: Artifact, checked: Sequence[Checked]) -> RenderableType:
    """The files that are wrong, and how many are right."""
    wrong = [one for one in checked if one.problem]
    table = Table.grid(padding=(0, 2, 0, 0))
    for one in wrong:
        table.add_row(Text("fail", style=STYLES["fail"]), Text(one.path), Text(one.problem))
    right = [one for one in checked if not one.problem]
    whole = size(sum(one.size for one in right))
    line = f"{len(right)} of {len(checked)} files are as they were written, {whole}"
    kind = (f" ({artifact.type}): ", "dim")
    last = Text.assemble((str(artifact.folder), "bold"), kind, (line, "" if wrong else "green"))
    return Group(table, last) if wrong else last


def show_merged(found: Merged) -> RenderableType:
    """What was written."""
    parts = f"{found.documents:,} documents, {found.sequences:,} sequences, {size(found.size)}"
    lines: list[RenderableType] = [
        Text(found.prefix, style="bold"),
        f"{parts}, of {found.datasets} datasets",
    ]
    return Group(*lines, *([f"its loss mask: {found.mask}"] if found.mask else []))


def show_sample(found: Sample, seed: int) -> RenderableType:
    """The documents, each under its place, and the seed that draws them again."""
    shown: list[RenderableType] = []
    for document in found.documents:
        title = Text.assemble((document.where, "bold"), (f"  {document.size}", "dim"))
        if document.problem:
            title.append(f"  {document.problem}", style="red")
        shown += [title, Padding(Text(shortened(document.text)), (0, 0, 1, 2))]
    bad = f"; {found.bad:,} records can't be read" if found.bad else ""
    last = f"{len(found.documents)} of {found.population:,}{bad}; --seed {seed} draws them again"
    return Group(*shown, Text(last, style="dim"))
