"""A fleet's plan in plain sentences, one a line."""

from __future__ import annotations

import math
from collections.abc import Iterator

from selector.fleet.contract import FleetPlan, Served


def explain(plan: FleetPlan) -> str:
    """What the plan comes to, how near the best it is, what each deployment gets and what is left over."""
    return "\n".join(_sentences(plan))


def _sentences(plan: FleetPlan) -> Iterator[str]:
    used = plan.devices - sum(each.idle_devices for each in plan.hardware)
    yield f"{plan.hosts:,} hosts, {used:,} of {plan.devices:,} devices in use."
    yield quality(plan)
    for each in plan.deployments:
        yield _served(each)
    for use in plan.hardware:
        if use.idle_devices or use.idle_hosts:
            idle = f"{use.idle_devices:,} of {use.devices:,} devices are idle"
            yield f"{use.hardware}: {idle}, and {use.idle_hosts:,} of {use.hosts:,} hosts hold nothing."


def quality(plan: FleetPlan) -> str:
    """How the packing was found and how near the best it is, in one sentence."""
    counted = plan.objective == "replicas"
    what = "number of devices" if counted else "output"
    if plan.method == "exact":
        return f"Packed exactly: no plan has a better {what}."
    if plan.gap is None:
        return "Packed by the heuristic; how near the best it is was not proven."
    if plan.gap == 0:
        return f"Packed by the heuristic, and proven to have the best {what}."
    if counted:
        fewest = f"no plan as good takes fewer than {math.ceil(plan.bound):,}"
        return f"Packed by the heuristic: it takes {plan.value:,.0f} devices, and {fewest}."
    return f"Packed by the heuristic: the {what} is at most {plan.gap:.2%} from the best there could be."


def _served(each: Served) -> str:
    most = "" if each.maximum_replicas is None else f" of at most {each.maximum_replicas:,}"
    replicas = f"{each.replicas:,} replica{'' if each.replicas == 1 else 's'}{most}"
    text = (
        f"{each.name} ({each.model}): {replicas} on {each.devices:,} devices, "
        f"{each.throughput_tokens_per_second:,.0f} tokens/s."
    )
    if each.reason is not None:
        text += f" It lacks {each.lacking_replicas:,}: {each.reason}."
    if each.less_accurate is not None:
        text += f" Less accurate: {each.less_accurate}."
    return text
