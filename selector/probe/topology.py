"""The ways between NVIDIA GPUs: NVLink, directly or through NVSwitch, and PCIe where there is no NVLink."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

from selector.hardware import Link
from selector.probe.nvml import Nvml, NvmlFailure

#: Bytes a second of one NVLink in one direction, by nvmlNvlinkVersion_t (NVIDIA's datasheets: 25 GB/s a link for
#: NVLink 2 to 4, of which an H100 has 18 for the 900 GB/s of both directions; 50 GB/s for NVLink 5).
_NVLINK_BYTES_PER_SECOND = {1: 20e9, 2: 25e9, 3: 25e9, 4: 25e9, 5: 25e9, 6: 25e9, 7: 50e9}
#: Bytes a second of one PCIe lane in one direction, by generation, after line coding (PCI-SIG: 128b/130b from 3.0
#: on, FLIT mode in 6.0). Packet headers cost a further tenth that is not taken off here.
_LANE_BYTES_PER_SECOND = {1: 0.25e9, 2: 0.5e9, 3: 0.985e9, 4: 1.969e9, 5: 3.938e9, 6: 7.563e9}

_FIELD_NVLINK_SPEED_MBPS = 164  # NVML_FI_DEV_NVLINK_GET_SPEED: megabytes a second, one direction
_REMOTE_IS_SWITCH = 2  # NVML_NVLINK_DEVICE_TYPE_SWITCH


class Endpoint(NamedTuple):
    """A GPU as the topology sees it. ``number`` is its index in the report."""

    number: int
    handle: object
    bus_id: str | None


class _Ways(NamedTuple):
    """Bytes a second out of one GPU: to the switches, and to each neighbour by its PCI address.

    ``None`` is no such way; 0 is a way whose speed NVML does not tell.
    """

    to_switch: float | None
    to_peers: dict[str, float]
    pcie: float | None


def links(nvml: Nvml, endpoints: Sequence[Endpoint]) -> tuple[Link, ...]:
    """One link a pair, the fastest way between the two, ordered by index."""
    ways = {endpoint.number: _ways(nvml, endpoint) for endpoint in endpoints}
    return tuple(_link(one, other, ways[one.number], ways[other.number]) for one, other in combinations(endpoints, 2))


def _link(one: Endpoint, other: Endpoint, here: _Ways, there: _Ways) -> Link:
    out = here.to_peers.get(other.bus_id or "")
    back = there.to_peers.get(one.bus_id or "")
    direct = min((rate for rate in (out, back) if rate is not None), default=None)
    if direct is not None:
        return Link(from_=one.number, to=other.number, kind="nvlink", bandwidth_bytes_per_second=_whole(direct))
    if here.to_switch is not None and there.to_switch is not None:
        switched = min(here.to_switch, there.to_switch)
        return Link(from_=one.number, to=other.number, kind="nvswitch", bandwidth_bytes_per_second=_whole(switched))
    pcie = None if here.pcie is None or there.pcie is None else min(here.pcie, there.pcie)
    return Link(
        from_=one.number, to=other.number, kind="pcie", bandwidth_bytes_per_second=None if pcie is None else int(pcie)
    )


def _whole(rate: float) -> int | None:
    return int(rate) or None


def _ways(nvml: Nvml, endpoint: Endpoint) -> _Ways:
    to_switch: float | None = None
    to_peers: dict[str, float] = {}
    try:
        for link in range(nvml.constant("NVML_NVLINK_MAX_LINKS", 18)):
            if nvml.number("nvmlDeviceGetNvLinkState", endpoint.handle, link) != 1:
                continue
            rate = _nvlink_rate(nvml, endpoint.handle, link)
            if nvml.number("nvmlDeviceGetNvLinkRemoteDeviceType", endpoint.handle, link) == _REMOTE_IS_SWITCH:
                to_switch = (to_switch or 0.0) + rate
                continue
            peer = nvml.bus_id("nvmlDeviceGetNvLinkRemotePciInfo", endpoint.handle, link)
            if peer is not None:
                to_peers[peer] = to_peers.get(peer, 0.0) + rate
        return _Ways(to_switch, to_peers, _pcie_rate(nvml, endpoint.handle))
    except NvmlFailure:  # lost since it was listed: its links are unknown, the others' are not
        return _Ways(None, {}, None)


def _nvlink_rate(nvml: Nvml, handle: object, link: int) -> float:
    """The smaller of the version's rate and the one NVML tells.

    NVML's figure holds the line coding (26.56 GB/s a link on H100, 25 of them data); but a bridge of consumer
    cards runs slower than its version allows (14.06 GB/s on RTX 3090), which only NVML's figure says.
    """
    version = nvml.number("nvmlDeviceGetNvLinkVersion", handle, link)
    nominal = _NVLINK_BYTES_PER_SECOND.get(version or 0)
    speed = nvml.field(handle, _FIELD_NVLINK_SPEED_MBPS, link)
    told = speed * 1e6 if speed else None
    return min((rate for rate in (nominal, told) if rate is not None), default=0.0)


def _pcie_rate(nvml: Nvml, handle: object) -> float | None:
    # An idle GPU drops to generation 1, so the largest generation counts; but a slot wired with fewer lanes
    # shows in the current width only.
    generation = nvml.number("nvmlDeviceGetMaxPcieLinkGeneration", handle)
    width = nvml.number("nvmlDeviceGetCurrPcieLinkWidth", handle) or nvml.number(
        "nvmlDeviceGetMaxPcieLinkWidth", handle
    )
    lane = _LANE_BYTES_PER_SECOND.get(generation or 0)
    if lane is None or width not in (1, 2, 4, 8, 12, 16, 32):
        return None
    return lane * width
