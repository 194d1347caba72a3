"""The answers of a cluster's nodes as one report: nothing that a node lacks ends the question, all of it is said."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from autolaunch.cluster.answers import Answer
from autolaunch.cluster.members import listed, names_of, place_of
from selector.errors import ClusterError
from selector.hardware import Accelerator, Driver, Finding, HardwareReport, Link, Node, Outcome
from selector.versions import version_key

#: What findings about nodes are called in a report.
PROBE = "cluster"


def merged(answers: Iterable[Answer], *, ray: str | None = None, version: str | None = None) -> HardwareReport:
    """One report of the nodes that can be planned with: those with accelerators; without any, the first one's alone.

    The head is first, then the host that asks, then the others by address, so that it does not matter in which order
    they answered. Accelerators are counted over all nodes, and with them their links. Where Ray gives fewer GPUs of a
    node to work than its probe saw, the last of them are left out.

    Args:
        answers: one a member, the dead among them.
        ray: what is said of the cluster itself, in a finding of its own.
        version: of the autolaunch that asks.

    Raises:
        ClusterError: not one node could be probed.
    """
    every = sorted(answers, key=lambda each: (not each.member.is_head, not each.member.is_here, place_of(each.member)))
    names = names_of(each.member for each in every)
    told = _Findings()
    found = [each for each in every if each.report is not None]
    for each in every:
        if each.report is None:
            told.add("failed", each.trouble or "did not answer", names[each.member.id])
    if not found:
        why = "; ".join(each.reason or "" for each in told.findings())
        raise ClusterError(
            f"no node of the cluster could be probed: {why or 'it has none'}",
            hint="autolaunch is needed on every node, beside the Python that Ray runs in: pip install glm-autolaunch",
        )
    parts = [_Part(each, names[each.member.id], told) for each in found]
    planned = [each for each in parts if each.accelerators]
    for part in parts if planned else ():
        if not part.accelerators:
            told.add("absent", "no GPU that can be used, and not planned with", part.name)
    _versions(found, names, version, told)
    chosen = planned or parts[:1]
    _drivers_differ(chosen, told)
    first = chosen[0]
    accelerators: list[Accelerator] = []
    links: list[Link] = []
    for node, part in enumerate(chosen):
        start = len(accelerators)
        accelerators += part.numbered(start, node)
        links += part.links(start)
    here = () if ray is None else (Finding(probe="ray", outcome="found", reason=ray),)
    return HardwareReport(
        host=first.report.host,
        accelerators=tuple(accelerators),
        links=tuple(links),
        drivers=_oldest(chosen),
        network=first.report.network,
        nodes=len(chosen),
        hosts=tuple(part.node(index) for index, part in enumerate(chosen)),
        findings=(*here, *told.findings(), *_own(parts)),
    )


class _Findings:
    """What is wrong with nodes, said once for all that it is wrong with."""

    def __init__(self) -> None:
        self._names: dict[tuple[Outcome, str], list[str]] = {}

    def add(self, outcome: Outcome, what: str, name: str) -> None:
        self._names.setdefault((outcome, what), []).append(name)

    def findings(self) -> tuple[Finding, ...]:
        return tuple(
            Finding(probe=PROBE, outcome=outcome, reason=f"{listed(names)}: {what}")
            for (outcome, what), names in self._names.items()
        )


class _Part:
    """A node that answered, with the accelerators of it that may be used."""

    def __init__(self, answer: Answer, name: str, told: _Findings) -> None:
        assert answer.report is not None  # noqa: S101 - only such are given
        self.member, self.name, self.report = answer.member, name, answer.report
        if answer.unknown:
            keys = ", ".join(answer.unknown)
            told.add("found", f"its report has keys that this release does not know, left out: {keys}", name)
        seen = sorted(self.report.accelerators, key=lambda each: each.index)
        declared = answer.member.gpus
        self.accelerators = seen if declared is None else seen[: int(declared)]
        if declared is not None and int(declared) != len(seen):
            counts = f"Ray counts {int(declared)} GPUs and the probe found {len(seen)}"
            left = len(seen) - len(self.accelerators)
            told.add("found", f"{counts}: {left} left out" if left else f"{counts}: those are used", name)

    def numbered(self, start: int, node: int) -> list[Accelerator]:
        return [
            msgspec.structs.replace(each, index=start + place, node=node)
            for place, each in enumerate(self.accelerators)
        ]

    def links(self, start: int) -> list[Link]:
        index = {each.index: start + place for place, each in enumerate(self.accelerators)}
        return [
            msgspec.structs.replace(each, from_=index[each.from_], to=index[each.to])
            for each in self.report.links
            if each.from_ in index and each.to in index
        ]

    def node(self, index: int) -> Node:
        return Node(
            index=index,
            name=self.name,
            address=self.member.address or None,
            id=self.member.id,
            host=self.report.host,
            network=self.report.network,
        )


def _versions(found: Sequence[Answer], names: dict[str, str], version: str | None, told: _Findings) -> None:
    """Another autolaunch than the one that asks, or, where that is not said, than the first node's."""
    ours = version or found[0].version
    for each in found:
        if each.version != ours:
            here = "here" if version is not None else f"on {names[found[0].member.id]}"
            what = (
                "an autolaunch that does not say its version" if each.version is None else f"autolaunch {each.version}"
            )
            told.add("found", f"{what}, {ours or 'one that does not say'} {here}", names[each.member.id])


def _drivers_differ(parts: Sequence[_Part], told: _Findings) -> None:
    versions: dict[str, dict[str, list[str]]] = {}
    for part in parts:
        for driver in part.report.drivers:
            versions.setdefault(driver.vendor, {}).setdefault(driver.version or "of unknown version", []).append(
                part.name
            )
    for vendor, each in versions.items():
        if len(each) > 1:
            for version in sorted(each, key=version_key):
                for name in each[version]:
                    told.add("found", f"the {vendor} driver is {version}, and others have another", name)


def _oldest(parts: Sequence[_Part]) -> tuple[Driver, ...]:
    """Of each vendor's drivers the oldest: what it cannot do the plan may not ask for."""
    found: dict[str, Driver] = {}
    for part in parts:
        for driver in part.report.drivers:
            one = found.get(driver.vendor)
            if one is None or _age(driver) < _age(one):
                found[driver.vendor] = driver
    return tuple(found[vendor] for vendor in sorted(found))


def _age(driver: Driver) -> tuple[bool, tuple[int, ...], tuple[int, ...]]:
    """Unknown versions are no older than known ones."""
    return driver.version is None, version_key(driver.version or ""), version_key(driver.runtime or "")


def _own(parts: Sequence[_Part]) -> tuple[Finding, ...]:
    """What the nodes' own probes came back with, once for all that say the same."""
    said: dict[tuple[str, Outcome, str | None], list[str]] = {}
    for part in parts:
        for each in part.report.findings:
            said.setdefault((each.probe, each.outcome, each.reason), []).append(part.name)
    findings = []
    for (probe, outcome, reason), names in said.items():
        who = ""
        if outcome == "failed" and len(parts) > 1:
            who = listed(dict.fromkeys(names))
        elif len(names) < len(parts):
            who = f"{len(names):,} of {len(parts):,} nodes"
        findings.append(Finding(probe=probe, outcome=outcome, reason=": ".join(filter(None, (who, reason))) or None))
    return tuple(findings)
