"""Machines that are not here: what ``--hardware`` takes, turned into the report a probe would have written.

``8xh100``, ``2x8xh200`` (nodes x devices), ``4090+192gb`` (with so much main memory beside it), ``m3-ultra-512gb``,
``cpu-64gb``, or the path of a recorded ``autolaunch probe --json``. A described machine is an idle one: all of its
memory is free. How much main memory it has beside GPUs is unknown unless it is written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import msgspec

from selector.catalog import VENDORS, Catalog, nearest, shown
from selector.errors import UnknownHardware
from selector.facts import AcceleratorFacts
from selector.hardware import (
    MAXIMUM_DEVICES,
    MAXIMUM_NODES,
    Accelerator,
    Finding,
    HardwareReport,
    Host,
    Link,
    LinkKind,
    Metal,
)

#: The largest recorded report that is read; 1024 nodes of eight devices, each with its host and ports, take half.
MAXIMUM_BYTES = 32 << 20
MAXIMUM_DEVICES_PER_NODE = 64
MAXIMUM_CPU_GIB = 16_384

GRAMMAR = (
    "write 8xh100, h200, 2x8xh200 (nodes x GPUs), 4090+192gb (with main memory), m3-ultra-512gb, cpu-64gb, or the path "
    "of a recorded `autolaunch probe --json`; `autolaunch hardware` lists the names"
)

_MIB = 1 << 20
_GIB = 1 << 30
_SPEC = re.compile(r"(?:(?P<first>\d+)x)?(?:(?P<second>\d+)x)?(?P<name>[a-z0-9][a-z0-9.-]*)(?:\+(?P<host>\d+)gb)?")
_SIZE = re.compile(r"(?P<name>.+)-(?P<gib>\d+)gb")


def report_from_spec(spec: str, catalog: Catalog) -> HardwareReport:
    """The machine that a specification names.

    Args:
        spec: what ``--hardware`` was given. With a path separator, or ending in ``.json``, it is a file.
        catalog: where the accelerators are described.

    Raises:
        UnknownHardware: it names no machine; the hint holds the nearest names or the grammar.
        ProfileError: a description that had to be read is wrong.
    """
    if "/" in spec or spec.lower().endswith(".json"):
        return report_from_file(spec)
    found = _SPEC.fullmatch(spec.strip().lower()) if len(spec) <= 200 and spec.isascii() else None
    if found is None:
        raise UnknownHardware(f"{shown(spec)} is no machine", hint=GRAMMAR)
    nodes, count = ("1", found["first"]) if found["second"] is None else (found["first"], found["second"])
    finding = Finding(probe="specification", outcome="found", reason=spec.strip())
    name = found["name"]
    if name == "cpu" or (name.startswith("cpu-") and _SIZE.fullmatch(name)):
        if count is not None or found["host"] is not None:
            what = "no count" if found["host"] is None else "its memory once"
            raise UnknownHardware(f"{shown(spec)}: a machine without a GPU takes {what}", hint="write cpu-64gb")
        return HardwareReport(host=_host("linux", _cpu_bytes(name)), findings=(finding,))
    facts, size_bytes = _named(name, catalog, spec)
    counts = _counts(spec, facts, nodes, count)
    return _report(facts, size_bytes, counts, finding, _beside(spec, facts, counts[0], found["host"]))


def hardware_names(catalog: Catalog) -> tuple[str, ...]:
    """Every name that ``--hardware`` takes for one device, the memory with it where a machine comes in sizes."""
    named = [name for facts in catalog.every_accelerator() for name in _sized(facts)]
    return (*named, "cpu-64gb")


# --- names -------------------------------------------------------------------------------------------


def _sized(facts: AcceleratorFacts) -> tuple[str, ...]:
    if len(facts.memory_options_gib) < 2:
        return (facts.id,)
    return tuple(f"{facts.id}-{size}gb" for size in facts.memory_options_gib)


def _named(name: str, catalog: Catalog, spec: str) -> tuple[AcceleratorFacts, int | None]:
    """The accelerator of a name and, where a machine comes in sizes, its memory in bytes."""
    size = _SIZE.fullmatch(name)
    for vendor in VENDORS:
        known = {each.lower(): facts for facts in catalog.accelerators(vendor) for each in (facts.id, *facts.aliases)}
        if (facts := known.get(name)) is not None:
            return facts, _only_size(facts)
        if size is not None and (facts := known.get(size["name"])) is not None:
            return facts, _chosen_size(facts, size["gib"], catalog)
    near = nearest(name, hardware_names(catalog))
    meant = "" if near is None else f"did you mean {near.join(spec.strip().lower().rsplit(name, 1))}? "
    raise UnknownHardware(f"no accelerator is called {shown(name)} (in {shown(spec)})", hint=meant + GRAMMAR)


def _only_size(facts: AcceleratorFacts) -> int | None:
    if len(facts.memory_options_gib) > 1:
        hint = f"write {' or '.join(_sized(facts))}"
        raise UnknownHardware(f"{facts.name} comes with {_sizes(facts)} GB: say which", hint=hint)
    return facts.memory_options_gib[0] * _GIB if facts.memory_options_gib else None


def _chosen_size(facts: AcceleratorFacts, digits: str, catalog: Catalog) -> int:
    gib = int(digits) if len(digits) <= 6 else 0
    if gib in facts.memory_options_gib:
        return gib * _GIB
    # A chip of the same name, with other GPU cores, may have it: the M4 Max with 32 cores has 36 GB.
    siblings = [each for each in catalog.accelerators(facts.vendor) if set(each.driver_names) & set(facts.driver_names)]
    like = next((f"{each.id}-{gib}gb" for each in siblings if gib in each.memory_options_gib), None)
    hint = f"did you mean {like}?" if like else f"write {' or '.join(_sized(facts))}"
    only = f", only {_sizes(facts)}" if facts.memory_options_gib else ""
    raise UnknownHardware(f"there is no {facts.name} with {digits[:12]} GB{only}", hint=hint)


def _sizes(facts: AcceleratorFacts) -> str:
    return ", ".join(str(size) for size in facts.memory_options_gib)


def _cpu_bytes(name: str) -> int:
    size = _SIZE.fullmatch(name)
    if size is None:
        raise UnknownHardware("a machine without a GPU is named with its memory", hint="write cpu-64gb")
    gib = int(size["gib"]) if size["name"] == "cpu" and len(size["gib"]) <= 6 else 0
    if not 1 <= gib <= MAXIMUM_CPU_GIB:
        raise UnknownHardware(f"{shown(name)}: memory is 1 to {MAXIMUM_CPU_GIB} GB", hint="write cpu-64gb")
    return gib * _GIB


def _beside(spec: str, facts: AcceleratorFacts, nodes: int, digits: str | None) -> int | None:
    """Main memory beside the GPUs, in bytes; ``None`` where none was written."""
    if digits is None:
        return None
    if facts.memory_kind == "unified":
        hint = f"write {_sized(facts)[0]}"
        raise UnknownHardware(f"{shown(spec)}: the {facts.name} shares the memory of its machine", hint=hint)
    if nodes > 1:
        raise UnknownHardware(f"{shown(spec)}: main memory is told of one machine alone", hint=GRAMMAR)
    gib = int(digits) if len(digits) <= 6 else 0
    if not 1 <= gib <= MAXIMUM_CPU_GIB:
        raise UnknownHardware(f"{shown(spec)}: main memory is 1 to {MAXIMUM_CPU_GIB} GB", hint=GRAMMAR)
    return gib * _GIB


def _counts(spec: str, facts: AcceleratorFacts, nodes: str | None, count: str | None) -> tuple[int, int]:
    """Nodes and devices a node."""
    machines, devices = (_number(spec, text) for text in (nodes or "1", count or "1"))
    if not 1 <= machines <= MAXIMUM_NODES:
        raise UnknownHardware(f"{shown(spec)}: nodes are 1 to {MAXIMUM_NODES}", hint=GRAMMAR)
    if not 1 <= devices <= MAXIMUM_DEVICES_PER_NODE:
        raise UnknownHardware(f"{shown(spec)}: a node has 1 to {MAXIMUM_DEVICES_PER_NODE} GPUs", hint=GRAMMAR)
    if facts.memory_kind == "unified" and devices > 1:
        hint = f"write {devices}x1x{_sized(facts)[0]} for {devices} machines"
        raise UnknownHardware(f"{shown(spec)}: a machine has one {facts.name}", hint=hint)
    if machines * devices > MAXIMUM_DEVICES:
        raise UnknownHardware(f"{shown(spec)}: that is more than {MAXIMUM_DEVICES} GPUs in all", hint=GRAMMAR)
    return machines, devices


def _number(spec: str, digits: str) -> int:
    if len(digits) > 6:
        raise UnknownHardware(f"{shown(spec)}: {shown(digits)} is no number of machines or GPUs", hint=GRAMMAR)
    return int(digits)


# --- the report --------------------------------------------------------------------------------------


def _report(
    facts: AcceleratorFacts,
    size_bytes: int | None,
    counts: tuple[int, int],
    finding: Finding,
    beside_bytes: int | None,
) -> HardwareReport:
    nodes, count = counts
    unified = facts.memory_kind == "unified"
    mib = facts.memory_total_mib or (facts.cuda_total_mib if unified else None)
    total = size_bytes if mib is None else mib * _MIB
    accelerators = tuple(
        Accelerator(
            index=node * count + place,
            vendor=facts.vendor,
            name=facts.driver_names[0] if facts.driver_names else facts.name,
            node=node,
            memory_kind=facts.memory_kind,
            memory_total_bytes=total,
            memory_free_bytes=total,
            compute_capability=facts.compute_capability,
            architecture=facts.architecture,
            metal=_metal(facts, total) if facts.vendor == "apple" and total else None,
        )
        for node in range(nodes)
        for place in range(count)
    )
    host = _host("darwin" if facts.vendor == "apple" else "linux", total if unified else beside_bytes)
    return HardwareReport(
        host=host, accelerators=accelerators, links=tuple(_links(facts, nodes, count)), nodes=nodes, findings=(finding,)
    )


def _host(system: str, memory_bytes: int | None) -> Host:
    return Host(
        os="darwin" if system == "darwin" else "linux",
        machine="arm64" if system == "darwin" else None,
        memory_total_bytes=memory_bytes,
        memory_available_bytes=memory_bytes,
    )


def _metal(facts: AcceleratorFacts, total_bytes: int) -> Metal:
    # The conservative default of older macOS; newer ones allow more (84 % on an M4 Max 128, 90 % on an M3
    # Ultra 512 have been reported), and the device says how much once there is one to ask.
    recommended = total_bytes * 3 // 4 if total_bytes >= 64 * _GIB else total_bytes * 2 // 3
    cores = facts.gpu_cores[0] if len(facts.gpu_cores) == 1 else None
    return Metal(gpu_cores=cores, recommended_working_set_bytes=recommended)


def _links(facts: AcceleratorFacts, nodes: int, count: int) -> Iterator[Link]:
    """One link a pair of a node; the way between nodes is not known from a name."""
    pcie = None if facts.pcie_gb_per_second is None else round(facts.pcie_gb_per_second * 1e9)
    fast = None if facts.link_gb_per_second is None else round(facts.link_gb_per_second * 1e9)
    group = facts.link_group or count
    for node in range(nodes):
        for one, other in combinations(range(count), 2):
            joined = facts.link_kind is not None and one // group == other // group
            kind: LinkKind = facts.link_kind if joined and facts.link_kind is not None else "pcie"
            bandwidth = fast if joined else pcie
            yield Link(
                from_=node * count + one, to=node * count + other, kind=kind, bandwidth_bytes_per_second=bandwidth
            )


# --- recorded reports --------------------------------------------------------------------------------


def report_from_file(path: str | Path) -> HardwareReport:
    """A report that ``autolaunch probe --json`` wrote, checked as strictly as if a stranger had written it.

    Raises:
        UnknownHardware: there is no such file, it is no report, or a value in it cannot be; the message names
            the file and the key.
    """
    place = shown(str(path))[1:-1]
    hint = "record one with `autolaunch probe --json`"
    try:
        if Path(path).is_dir():
            raise UnknownHardware(f"{place}: a folder, and a report is a file", hint=hint)
        with Path(path).open("rb") as file:  # a pipe will do: --hardware <(ssh host autolaunch probe --json)
            content = file.read(MAXIMUM_BYTES + 1)
    except FileNotFoundError as error:
        raise UnknownHardware(f"{place}: there is no such file", hint=hint) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else "not a path"
        raise UnknownHardware(f"{place}: {reason}", hint=hint) from error
    if len(content) > MAXIMUM_BYTES:
        raise UnknownHardware(f"{place}: larger than {MAXIMUM_BYTES // _MIB} MiB, which no report is", hint=hint)
    try:
        report = msgspec.json.decode(content, type=HardwareReport)
    except msgspec.ValidationError as error:
        from selector.mismatch import explain

        raise UnknownHardware(f"{place}: {explain(error, HardwareReport)}", hint=hint) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnknownHardware(f"{place}: not JSON: {shown(str(error))[1:-1]}", hint=hint) from error
    from selector.possible import faults  # a machine that was only named has none

    for key, reason in faults(report):
        raise UnknownHardware(f"{place}: {key}: {reason}", hint=hint)
    return report


def checked_report(report: HardwareReport) -> HardwareReport:
    """A report that a script made, held to what a machine can be.

    Raises:
        UnknownHardware: a value in it cannot be; the message names the key.
    """
    from selector.possible import faults

    for key, reason in faults(report):
        raise UnknownHardware(f"the hardware report: {key}: {reason}", hint="autolaunch.probe() makes one")
    return report
