"""The machine as the deployments of one daemon share it, and a plan for any one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from autolaunch.daemon.deployment import Changes, Deployment, Fault
from autolaunch.daemon.faults import Refusal, fault_of
from autolaunch.daemon.hands import Decided
from selector.errors import AutolaunchError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from autolaunch.daemon.planning import Share
    from selector.catalog import Catalog
    from selector.contract import Candidate, LaunchPlan
    from selector.hardware import HardwareReport


class Host:
    """Plans deployments on this machine.

    Args:
        known: the catalogue.
        probe: asks the machine what it is, at every plan anew.
        first: a plan that was made just now, for the first time that an unchanged one is asked for.
    """

    def __init__(self, known: Catalog, probe: Callable[[], HardwareReport], *, first: LaunchPlan | None = None) -> None:
        self.known = known
        self.probe = probe
        self._first = first
        self.shares: Mapping[str, Share] = {}
        self._uuids: dict[str, frozenset[str]] = {}

    def divide(self, deployments: tuple[Deployment, ...], free: Mapping[str, int], *, tolerant: bool = False) -> None:
        """Gives each deployment its share of the machine; they are planned together.

        ``free`` is what was free, by UUID in bytes, on devices that have engines of ours now: that memory is not
        others'. ``tolerant``: a deployment whose wishes cannot be is not dealt anything, and the others are.

        Raises:
            AutolaunchError: a deployment's wishes cannot be.
        """
        from autolaunch.daemon.sharing import share

        report = self.probe()
        devices = tuple(
            msgspec.structs.replace(each, memory_free_bytes=free.get(each.uuid or "", each.memory_free_bytes))
            for each in report.accelerators
        )
        report = msgspec.structs.replace(report, accelerators=devices)
        self.shares = share(report, deployments, self.known, tolerant=tolerant)
        self._uuids = {
            name: frozenset(
                each.uuid for each in devices if each.uuid is not None and each.index in (one.devices or ())
            )
            for name, one in self.shares.items()
        }

    def share_of(self, name: str, report: HardwareReport) -> Share | None:
        """A deployment's share by the indices of ``report``: a driver may count anew when it has lost a device."""
        share, uuids = self.shares.get(name), self._uuids.get(name, frozenset())
        if share is None or share.devices is None or len(uuids) != len(share.devices):
            return share
        now = frozenset(each.index for each in report.accelerators if each.uuid in uuids)
        return msgspec.structs.replace(share, devices=now)

    def __call__(self, deployment: Deployment, changes: Changes) -> Decided:
        """The plan to start.

        Raises:
            Refusal: nothing fits, others hold the devices, or what is wished cannot be.
        """
        made, self._first = self._first, None
        if made is not None and made.chosen is not None and changes == Changes():
            return Decided(made, made.chosen, made.chosen)
        # Not before the first engine is started: that one has its plan.
        from autolaunch.daemon.ladder import choose
        from autolaunch.daemon.planning import devices_held, infeasible, plan_for
        from autolaunch.daemon.sharing import without_share

        share = self.shares.get(deployment.name)
        refused = None if share is None else without_share(deployment, share)
        if refused is not None:
            raise Refusal(refused)
        try:
            report = self.probe()
            share = self.share_of(deployment.name, report)
            decided = plan_for(deployment, report, changes, known=self.known, share=share)
            first = decided.chosen
            if changes.pinned or changes.avoid or any(each.code.startswith("learned.") for each in decided.rejected):
                # What would be chosen had nothing ever failed: no weights of a lower quality are taken than its.
                free = Changes(without_devices=changes.without_devices)
                first = plan_for(deployment, report, free, known=self.known, share=share, learned=False).chosen
            held = devices_held(decided, deployment, report, changes, known=self.known, share=share)
        except AutolaunchError as error:
            raise Refusal(fault_of(error)) from error
        if held is not None:
            raise Refusal(held)
        chosen = choose(decided, changes, deployment, first)
        if chosen is None and decided.chosen is not None:
            raise Refusal(_only_worse(decided.chosen, deployment))
        if chosen is None:
            raise Refusal(infeasible(decided, report))
        return Decided(decided, chosen, first)


def _only_worse(left: Candidate, deployment: Deployment) -> Fault:
    checkpoint = left.checkpoint
    return Fault(
        reason="no plan",
        permanent=True,
        message=f"everything of the quality that {deployment.name} was planned with has failed here; the best that is "
        f"left is {checkpoint.repo} ({checkpoint.quantization})",
        hint=f"lower_accuracy = true takes it; autolaunch plan {deployment.model} tells what failed",
    )
