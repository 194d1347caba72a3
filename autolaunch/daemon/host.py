"""The machine as the deployments of one daemon share it, and a plan for any one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from autolaunch.daemon.deployment import Changes, Deployment
from autolaunch.daemon.hands import Decided, Refusal, fault_of
from autolaunch.daemon.ladder import choose
from autolaunch.daemon.planning import Share, devices_held, infeasible, plan_for
from selector.errors import AutolaunchError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from selector.catalog import Catalog
    from selector.hardware import HardwareReport


class Host:
    """Plans deployments on this machine.

    Args:
        known: the catalogue.
        probe: asks the machine what it is, at every plan anew.
    """

    def __init__(self, known: Catalog, probe: Callable[[], HardwareReport]) -> None:
        self.known = known
        self.probe = probe
        self.shares: Mapping[str, Share] = {}

    def divide(self, deployments: tuple[Deployment, ...], free: Mapping[str, int], *, lenient: bool = False) -> None:
        """Gives each deployment its share of the machine; they are planned together.

        ``free`` is what was free, by UUID in bytes, on devices that have engines of ours now: that memory is not
        others'. ``lenient``: a deployment whose wishes cannot be is refused when it is planned, and the others have the
        machine.

        Raises:
            AutolaunchError: a deployment's wishes cannot be.
        """
        from autolaunch.daemon.sharing import check, share

        dealt = []
        for each in deployments:
            try:
                check(each, self.known)
            except AutolaunchError:
                if not lenient:
                    raise
                continue
            dealt.append(each)
        report = self.probe()
        devices = tuple(
            msgspec.structs.replace(each, memory_free_bytes=free.get(each.uuid or "", each.memory_free_bytes))
            for each in report.accelerators
        )
        self.shares = share(msgspec.structs.replace(report, accelerators=devices), tuple(dealt), self.known)

    def __call__(self, deployment: Deployment, changes: Changes) -> Decided:
        """The plan to start.

        Raises:
            Refusal: nothing fits, others hold the devices, or what is wished cannot be.
        """
        from autolaunch.daemon.sharing import without_share

        share = self.shares.get(deployment.name)
        refused = None if share is None else without_share(deployment, share)
        if refused is not None:
            raise Refusal(refused)
        try:
            report = self.probe()
            decided = plan_for(deployment, report, changes, known=self.known, share=share)
            first = decided.chosen
            if changes.pinned is not None or changes.avoid:
                unchanged = Changes(without_devices=changes.without_devices)
                first = plan_for(deployment, report, unchanged, known=self.known, share=share).chosen
            held = devices_held(decided, deployment, report, changes, known=self.known, share=share)
        except AutolaunchError as error:
            raise Refusal(fault_of(error)) from error
        if held is not None:
            raise Refusal(held)
        chosen = choose(decided, changes, deployment, first)
        if chosen is None:
            raise Refusal(infeasible(decided, report))
        return Decided(decided, chosen, first)
