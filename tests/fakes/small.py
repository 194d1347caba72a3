"""Released models cut down to a few megabytes, in the format of one of their checkpoints."""

from __future__ import annotations

import msgspec

from engines.miniature.rehearsal import cut_down
from selector.facts import CheckpointFacts, ModelFacts
from tests.fakes.plans import candidate


def small(model: ModelFacts, checkpoint: CheckpointFacts) -> tuple[ModelFacts, CheckpointFacts]:
    """The same architecture and format in a few layers of a few experts; a miniature as it is."""
    if model.generated:
        return model, checkpoint
    plan = candidate("vllm", model.id)
    named = msgspec.structs.replace(plan.checkpoint, repo=checkpoint.repo)
    cut = cut_down(model, msgspec.structs.replace(plan, checkpoint=named))
    shape = msgspec.structs.replace(
        cut.architecture, n_routed_experts=8, moe_intermediate_size=128, intermediate_size=256
    )
    cut = msgspec.structs.replace(cut, architecture=shape)
    return cut, cut.checkpoints[0]
