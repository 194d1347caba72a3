"""The machine as the deployments of one daemon share it, and a plan for any one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from autolaunch import api
from autolaunch.daemon.deployment import Changes, Deployment, Fault
from autolaunch.daemon.faults import Refusal, fault_of
from autolaunch.daemon.hands import Decided
from autolaunch.daemon.refusing import waited_for
from selector.errors import AutolaunchError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from autolaunch.daemon.planning import Share
    from autolaunch.daemon.replicas import Replica
    from selector.catalog import Catalog
    from selector.contract import Candidate, LaunchPlan
    from selector.hardware import HardwareReport


class Host:
    """Plans deployments on this machine.

    Args:
        known: the catalogue.
        probe: asks the machine what it is, at every plan anew.
        probe_nodes: asks the nodes of a cluster, for deployments that are started there.
        first: a plan that was made just now, for the first time that an unchanged one is asked for (of each engine).
    """

    def __init__(
        self,
        known: Catalog,
        probe: Callable[[], HardwareReport],
        *,
        first: LaunchPlan | None = None,
        probe_nodes: Callable[[str], HardwareReport] | None = None,
    ) -> None:
        self.known = known
        self.probe = probe
        self._probe_nodes = probe_nodes or api.nodes_to_plan
        self._first = first
        self._begun: set[str] = set()
        #: What is to be started, and what each may use, by its key.
        self.engines: tuple[Deployment, ...] = ()
        self.shares: Mapping[str, Share] = {}
        self._memory_bytes: int | None = None
        self._uuids: dict[str, frozenset[str]] = {}

    def divide(self, deployments: tuple[Deployment, ...], free: Mapping[str, int], *, tolerant: bool = False) -> None:
        """Gives each deployment its share of the machine, and each of its engines a part; they are planned together.

        ``free`` is what was free, by UUID in bytes, on devices that have engines of ours now: that memory is not
        others'. ``tolerant``: a deployment whose wishes cannot be is not dealt anything, and the others are.

        Raises:
            AutolaunchError: a deployment's wishes cannot be.
        """
        from autolaunch.daemon.planning import Share
        from autolaunch.daemon.replicas import divided, replicas_of, settled
        from autolaunch.daemon.sharing import share

        report = self._without_ours(self.probe())
        devices = tuple(
            msgspec.structs.replace(each, memory_free_bytes=free.get(each.uuid or "", each.memory_free_bytes))
            for each in report.accelerators
        )
        report = msgspec.structs.replace(report, accelerators=devices)
        here = tuple(one for one in deployments if one.nodes is None)
        shares = share(report, here, self.known, tolerant=tolerant)
        found: list[Replica] = []
        for one in deployments:
            if one.nodes is None:
                found += settled(divided(one, shares[one.name], report, self.known), self.shares)
            else:  # what of a cluster is whose, Ray says
                found += replicas_of(one, Share(), None)
        self.engines = tuple(one for one, _ in found)
        self.shares = {one.key: part for one, part in found}
        self._uuids = {
            key: frozenset(each.uuid for each in devices if each.uuid is not None and each.index in (one.devices or ()))
            for key, one in self.shares.items()
        }

    def deal(self, deployment: Deployment, decided: LaunchPlan) -> tuple[Deployment, ...]:
        """Gives ``deployment`` alone the machine, as its plan that was made just now divides it; returns its engines.

        The first that each of them is planned as, unchanged, is its replica of that plan.
        """
        from autolaunch.daemon.planning import Share
        from autolaunch.daemon.replicas import replicas_of

        found = replicas_of(deployment, Share(), decided.chosen)
        self._first, self._begun = decided, set()
        self.engines = tuple(one for one, _ in found)
        self.shares = {one.key: part for one, part in found}
        by_index = {each.index: each.uuid for each in decided.hardware.accelerators}
        self._uuids = {
            key: frozenset(uuid for index in part.devices or () if (uuid := by_index.get(index)) is not None)
            for key, part in self.shares.items()
        }
        return self.engines

    def _without_ours(self, report: HardwareReport) -> HardwareReport:
        """Main memory as it was when nothing of ours was in it: the most that was ever seen free."""
        now = report.host.memory_available_bytes
        if now is None:
            return report
        self._memory_bytes = max(now, self._memory_bytes or 0)
        return msgspec.structs.replace(
            report, host=msgspec.structs.replace(report.host, memory_available_bytes=self._memory_bytes)
        )

    def share_of(self, key: str, report: HardwareReport) -> Share | None:
        """An engine's share by the indices of ``report``: a driver may count anew when it has lost a device."""
        share, uuids = self.shares.get(key), self._uuids.get(key, frozenset())
        if share is None or share.devices is None or len(uuids) != len(share.devices):
            return share
        now = frozenset(each.index for each in report.accelerators if each.uuid in uuids)
        return msgspec.structs.replace(share, devices=now)

    def __call__(self, deployment: Deployment, changes: Changes) -> Decided:
        """The plan to start.

        Raises:
            Refusal: nothing fits, others hold the devices, or what is wished cannot be.
        """
        if deployment.lock is not None:
            return self._replayed(deployment, deployment.lock)
        made = self._first if deployment.key not in self._begun else None
        self._begun.add(deployment.key)
        if made is not None and made.chosen is not None and changes == Changes():
            own = made.chosen
            if len(self.engines) > 1:
                from autolaunch.daemon.replicas import one_replica

                own = one_replica(own, deployment.replica or 1)
            return Decided(made, own, own)
        # Not before the first engine is started: that one has its plan.
        from autolaunch.daemon.ladder import choose
        from autolaunch.daemon.planning import devices_held, infeasible, pinned_elsewhere, plan_for, too_few_nodes
        from autolaunch.daemon.sharing import without_share

        share = self.shares.get(deployment.key)
        refused = None if share is None else without_share(deployment, share)
        if refused is not None:
            raise Refusal(refused)
        try:
            report = self.probe() if deployment.nodes is None else self._probe_nodes(deployment.nodes)
            share = self.share_of(deployment.key, report)
            held = pinned_elsewhere(deployment, report)
            if held is not None:
                raise Refusal(held)
            decided = unspoilt = plan_for(deployment, report, changes, known=self.known, share=share)
            if changes.pinned or changes.avoid or any(each.code.startswith("learned.") for each in decided.rejected):
                # What would be chosen had nothing ever failed: no weights of a lower quality are taken than its.
                free = Changes(without_devices=changes.without_devices)
                unspoilt = plan_for(deployment, report, free, known=self.known, share=share, learned=False)
            held = devices_held(decided, deployment, report, changes, known=self.known, share=share)
            held = held or too_few_nodes(unspoilt, deployment, report)
        except AutolaunchError as error:
            raise Refusal(waited_for(fault_of(error), deployment)) from error
        if held is not None:
            raise Refusal(held)
        first = unspoilt.chosen
        chosen = choose(decided, changes, deployment, first)
        if chosen is None and decided.chosen is not None:
            raise Refusal(_only_worse(decided.chosen, deployment))
        if chosen is None:
            raise Refusal(infeasible(decided, report))
        return Decided(decided, chosen, first)

    def _replayed(self, deployment: Deployment, path: Path) -> Decided:
        """What a lock has, on this machine as it is now; whatever failed, nothing of it is changed."""
        from autolaunch.daemon.planning import devices_held, plan_for
        from autolaunch.daemon.replicas import one_replica
        from autolaunch.locked import read_lock
        from autolaunch.replaying import checked, refuse_other_hardware, replayed

        try:
            lock = checked(read_lock(path), self.known, path)
            report = self.probe()
            refuse_other_hardware(lock, report, path)
            share = self.share_of(deployment.key, report)
            decided = plan_for(deployment, report, Changes(), known=self.known, share=share)
            held = devices_held(decided, deployment, report, Changes(), known=self.known, share=share)
            if held is not None:
                raise Refusal(held)
            if lock.plan.parallel.data > 1:
                own = one_replica(lock.plan, deployment.replica or 1)
                lock = msgspec.structs.replace(lock, plan=own)
            found = replayed(lock, decided, self.known, path)
        except AutolaunchError as error:
            raise Refusal(fault_of(error)) from error
        return Decided(msgspec.structs.replace(decided, chosen=found), found, found, lock)


def _only_worse(left: Candidate, deployment: Deployment) -> Fault:
    checkpoint = left.checkpoint
    return Fault(
        reason="no plan",
        permanent=True,
        message=f"everything of the quality that {deployment.name} was planned with has failed here; the best that is "
        f"left is {checkpoint.repo} ({checkpoint.quantization})",
        hint=f"lower_accuracy = true takes it; autolaunch plan {deployment.model} tells what failed",
    )
