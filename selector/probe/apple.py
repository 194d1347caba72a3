"""Apple silicon: the chip, the memory it shares, and how much of that its GPU may wire."""

from __future__ import annotations

import re

import msgspec

from selector.hardware import Accelerator, Driver, Finding, Host, Metal
from selector.probe.system import Probed, System
from selector.probe.text import printable, whole_number
from selector.values import readable

SYSCTL = "/usr/sbin/sysctl"
DISPLAYS = ("/usr/sbin/system_profiler", "SPDisplaysDataType", "-json")
#: Asked by name, not with -n: a key that this macOS does not know must not shift the others' lines.
KEYS = ("hw.memsize", "hw.optional.arm64", "machdep.cpu.brand_string", "iogpu.wired_limit_mb", "sysctl.proc_translated")

GIB = 1 << 30
MIB = 1 << 20


class _Display(msgspec.Struct):
    """A GPU in system_profiler's JSON. What a Mac with Apple silicon says; other keys are passed over."""

    sppci_model: str = ""
    sppci_cores: str | int | None = None
    spdisplays_vendor: str = ""
    spdisplays_mtlgpufamilysupport: str = ""
    spdisplays_metal: str = ""


class _Displays(msgspec.Struct):
    SPDisplaysDataType: list[_Display]


def probe_apple(system: System, host: Host) -> Probed:
    """The GPU of a Mac with Apple silicon. ``host`` lends its available memory."""
    if system.platform != "darwin":
        return _nothing("this is not macOS")
    told = _sysctl(system)
    chip = printable(told.get("machdep.cpu.brand_string"))
    if told.get("hw.optional.arm64") != "1":
        if chip is None:
            return Probed(findings=(Finding(probe="apple", outcome="failed", reason="sysctl tells nothing"),))
        return _nothing(f"{chip} is not Apple silicon, and MLX needs it")
    display, trouble = _display(system)
    if display is None and trouble is None:
        return _nothing("this macOS has no Metal GPU (a virtual machine?)")
    total = whole_number(told.get("hw.memsize"))
    device = Accelerator(
        index=0,
        vendor="apple",
        name=chip or (printable(display.sppci_model) if display else None) or "Apple GPU",
        memory_kind="unified",
        memory_total_bytes=total if total and total > 0 else None,
        memory_free_bytes=_free(total, host),
        metal=_metal(told, display, total if total and total > 0 else None),
    )
    reasons = [trouble] if trouble else []
    if told.get("sysctl.proc_translated") == "1":
        reasons.append("this Python runs under Rosetta: MLX needs one built for arm64")
    return Probed(
        accelerators=(device,),
        drivers=(Driver(vendor="apple", version=host.os_version),),
        findings=(Finding(probe="apple", outcome="found", reason="; ".join(reasons) or None),),
    )


def _nothing(reason: str) -> Probed:
    return Probed(findings=(Finding(probe="apple", outcome="absent", reason=reason),))


def _sysctl(system: System) -> dict[str, str]:
    # It exits with 1 when it does not know a key, and prints the others all the same.
    lines = system.run((SYSCTL, *KEYS)).output.splitlines()
    return {key: value.strip() for key, colon, value in (line.partition(":") for line in lines) if colon}


def _display(system: System) -> tuple[_Display | None, str | None]:
    """Apple's GPU, and why it could not be asked. Neither: macOS has none."""
    answer = system.run(DISPLAYS)
    try:
        displays = msgspec.json.decode(answer.output, type=readable(_Displays)).SPDisplaysDataType
    except msgspec.DecodeError:
        return (
            None,
            f"the GPU's cores and Metal version are unknown: {answer.failure or 'system_profiler says nothing'}",
        )
    own = [
        each for each in displays if "apple" in each.spdisplays_vendor.lower() or each.sppci_model.startswith("Apple")
    ]
    return (own[0] if own else None), None


def _metal(told: dict[str, str], display: _Display | None, total: int | None) -> Metal:
    wired = whole_number(told.get("iogpu.wired_limit_mb"))
    limit = None if wired is None or wired < 0 else wired * MIB
    cores = None if display is None else whole_number(str(display.sppci_cores))
    return Metal(
        gpu_cores=cores if cores and 0 < cores < 10_000 else None,
        recommended_working_set_bytes=_working_set(limit, total),
        wired_limit_bytes=limit,
        version=_version(display),
    )


def _version(display: _Display | None) -> str | None:
    """``spdisplays_metal3`` is Metal 3; macOS before 13 wrote a feature set, which says no version."""
    words = "" if display is None else f"{display.spdisplays_mtlgpufamilysupport} {display.spdisplays_metal}"
    match = re.search(r"_metal(\d{1,2})\b", words)
    return None if match is None else match[1]


def _working_set(limit: int | None, total: int | None) -> int | None:
    """What the GPU may wire: the limit that was set, else macOS's default, from below.

    The default is Metal's recommendedMaxWorkingSetSize, which only a program that opens Metal can read (MLX tells
    it once its environment exists). On machines of 64 GiB and more it was three quarters of memory (M2 Ultra
    192 GiB: 144 GiB), two thirds on smaller ones; newer macOS gives more. The older figures are taken, since a
    plan that relies on the newer ones would not start on the older.
    """
    if total is None:
        return None
    if limit:  # the sysctl takes any figure, and grants no more than there is
        return min(limit, total)
    return total * 3 // 4 if total >= 64 * GIB else total * 2 // 3


def _free(total: int | None, host: Host) -> int | None:
    free = host.memory_available_bytes
    return free if free is not None and total is not None and 0 <= free <= total else None
