"""Which nodes are not fit, and why: from all ranks' reports; nothing is asked or written here."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from toolkit.preflight.config import Preflight
from toolkit.preflight.report import Report

EITHER = "; which of the two nodes it is can't be told"


@dataclass
class Verdict:
    """What is wrong: with which node, or with all of them."""

    unfit: dict[str, list[str]] = field(default_factory=dict)
    """By node: the reasons."""
    common: list[str] = field(default_factory=list)
    """What every node of several fails: a floor, an image, a file system; no node's own fault."""

    @property
    def fit(self) -> bool:
        """Whether the work can begin."""
        return not self.unfit and not self.common

    def add(self, node: str, reason: str) -> None:
        """Name a node, once for each reason."""
        reasons = self.unfit.setdefault(node, [])
        if reason not in reasons:
            reasons.append(reason)


def judge(reports: Sequence[Report], skews: Mapping[str, float], settings: Preflight) -> Verdict:
    """Weigh what the ranks that came have found.

    Args:
        reports: theirs.
        skews: by node, how many seconds its clock is ahead of rank 0's.
        settings: the floors.
    """
    verdict = Verdict()
    nodes = list(dict.fromkeys(report.node for report in reports))
    _own_failures(verdict, reports, nodes)
    _shared_gpus(verdict, reports)
    _versions(verdict, reports)
    _clocks(verdict, skews, settings.max_clock_skew)
    return verdict


def _own_failures(verdict: Verdict, reports: Sequence[Report], nodes: Sequence[str]) -> None:
    """Each node's failed checks; what all of several nodes fail is not theirs."""
    failed: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for report in reports:
        for finding in report.findings:
            if finding.failed and finding.detail not in failed[finding.check][report.node]:
                failed[finding.check][report.node].append(finding.detail)
    for check, by_node in failed.items():
        if len(by_node) == len(nodes) > 1:
            example = next(iter(by_node.values()))[0]
            verdict.common.append(f"{check}, on every node: {example}")
            continue
        for node, details in by_node.items():
            for detail in details:
                verdict.add(node, f"{check}: {detail}")


def _shared_gpus(verdict: Verdict, reports: Sequence[Report]) -> None:
    """Two ranks of one node that would use one GPU."""
    seen: dict[tuple[str, str], int] = {}
    for report in reports:
        if report.gpu is None:
            continue
        first = seen.setdefault((report.node, report.gpu), report.rank)
        if first != report.rank:
            verdict.add(report.node, f"GPUs: ranks {first} and {report.rank} share {report.gpu}")


def _versions(verdict: Verdict, reports: Sequence[Report]) -> None:
    """A node whose versions are not those of most nodes; of two that differ, both."""
    by_node: dict[str, dict[str, str]] = {}
    for report in reports:  # only a node's first rank asks the driver
        by_node.setdefault(report.node, {}).update(report.versions)
    for name in dict.fromkeys(key for versions in by_node.values() for key in versions):
        have = {node: versions.get(name, "none") for node, versions in by_node.items()}
        counts = Counter(have.values())
        usual, count = counts.most_common(1)[0]
        if len(counts) == 1:
            continue
        if len(have) == 2:
            found = " and ".join(counts)
            for node in have:
                verdict.add(node, f"versions: {name} is {found}{EITHER}")
        elif count * 2 <= len(have):
            found = ", ".join(f"{value} on {n} nodes" for value, n in counts.items())
            verdict.common.append(f"versions: {name} is {found}")
        else:
            for node in (node for node, value in have.items() if value != usual):
                verdict.add(node, f"versions: {name} is {have[node]}, on most nodes {usual}")


def _clocks(verdict: Verdict, skews: Mapping[str, float], most: float | None) -> None:
    """A node whose clock is off from most nodes' (the median), or from the one other's."""
    if most is None or len(skews) < 2:
        return
    ordered = sorted(skews.values())
    middle = ordered[(len(ordered) - 1) // 2]
    pair = len(skews) == 2
    if pair and ordered[1] - ordered[0] > most:
        for node in skews:
            apart = f"{ordered[1] - ordered[0]:.2f} s"
            verdict.add(node, f"clock: {apart} apart, where {most:g} s are allowed{EITHER}")
        return
    for node, skew in skews.items():
        if not pair and abs(skew - middle) > most:
            off = f"{skew - middle:+.2f} s off most nodes'"
            verdict.add(node, f"clock: {off}, where {most:g} s are allowed")


def absent(
    came: Mapping[int, str], words: Sequence[Report], listed: Sequence[str]
) -> dict[str, str]:
    """The nodes whose ranks did not come to the meeting at rank 0, and the reason of each.

    Args:
        came: rank to node, of those that met.
        words: what ranks have left in the run's folder, be they come or not.
        listed: the job's nodes, where they are known.
    """
    begun = {word.node for word in words} | set(came.values())
    silent = "start: no rank of it has begun: its container, or its Python, did not start"
    found = {node: silent for node in listed if node not in begun}
    late = [word for word in words if word.rank not in came]
    for word in late:
        if not word.looked:
            found.setdefault(word.node, f"look: rank {word.rank} began, and came to no end")
    lost = {word.rank: word.node for word in late if word.looked and word.node not in found}
    return found | _unreached(lost, came[0], begun - {came[0]})


def _unreached(lost: Mapping[int, str], host: str, others: Collection[str]) -> dict[str, str]:
    """Ranks that are alive and could not reach rank 0's node.

    Where these are most of the other nodes, it is that one's fault.
    """
    gone = set(lost.values()) - {host}
    if len(others) > 1 and len(gone) * 2 > len(others):
        return {host: f"rendezvous: {len(gone)} of {len(others)} other nodes could not reach it"}
    found = {}
    for node in sorted(set(lost.values())):
        ranks = ", ".join(str(rank) for rank, place in sorted(lost.items()) if place == node)
        found[node] = f"rendezvous: rank {ranks} could not reach {host}"
    if len(others) == 1 and gone:
        found = {node: reason + EITHER for node, reason in found.items()}
        found |= {host: next(iter(found.values()))}
    return found
