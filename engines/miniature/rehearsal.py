"""What a rehearsal serves instead of the real weights: the same model cut down, in the same format.

A rehearsal proves that this engine starts with these flags on these devices. So everything stays that its checks
and kernels look at: the architecture, attention heads and their width, the inner widths of experts and dense layers,
the vision tower's heads, biases and norms, the prediction layer, the context, the format. Cut is what is only bulk:
layers, experts, the width between the parts, the vocabulary.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from engines import miniature
from selector.contract import Candidate
from selector.errors import ConfigurationError
from selector.facts import Architecture, CheckpointFacts, ModelFacts, Vision

#: The width between the parts: GGUF's blocks are of 256, AWQ's groups of 128, MLX's of 64.
HIDDEN_SIZE = 256
#: The first layer dense, as the released models have one to three, and two of experts: a cut between two stages, and
#: the kernels of experts twice.
DENSE_LAYERS, LEAST_LAYERS = 1, 3
#: Twice the active ones, and a share for each rank of a node with expert parallelism.
EXPERTS = 16
#: The vocabulary of the miniatures: a word is a token.
VOCABULARY = 1024
VISION_DEPTH = 2


def cut_down(model: ModelFacts, candidate: Candidate) -> ModelFacts:
    """A generated model of ``model``'s kind, whose one checkpoint is in the format of the candidate's.

    It weighs about 200 MB in 16 bits, and a layer of experts (50 MB) more for each pipeline stage beyond three.

    Raises:
        ConfigurationError: the format's layout is not known for certain, so no file of it can be made.
    """
    checkpoint = _checkpoint(model, candidate)
    architecture = _architecture(model.architecture, candidate)
    name = f"{model.id}-rehearsal"
    made = msgspec.structs.replace(
        checkpoint,
        repo=f"autolaunch/{name}-{checkpoint.format}-{checkpoint.quantization}",
        modelscope=None,
        file_prefix=None if checkpoint.file_prefix is None else f"{name}-{checkpoint.quantization}",
        download_basis="derived",
        source="made on the spot from a fixed seed; nothing is downloaded",
        note=None,
    )
    cut = msgspec.structs.replace(
        model,
        id=name,
        title=f"{model.title}, cut down",
        aliases=(),
        generated=True,
        architecture=architecture,
        checkpoints=(made,),
        source=f"{model.id} cut down for a rehearsal",
    )
    sized = msgspec.structs.replace(made, download_bytes=miniature.size_bytes(cut, made))
    return msgspec.structs.replace(cut, checkpoints=(sized,))


def dummy_folder(model: ModelFacts, candidate: Candidate, directory: Path) -> Path:
    """What an engine with ``--load-format dummy`` reads of the candidate's checkpoint, at ``directory``.

    The configuration is of the real shapes, with the format's own part; the tokenizer has a token for every id of
    the real vocabulary, of its own words. There are no weights.

    Raises:
        ConfigurationError: the format's layout is not known for certain, or no engine makes up weights in it.
        NoRoomOnDisk, DownloadError: the folder cannot be made.
    """
    return miniature.generate_without_weights(model, directory, _checkpoint(model, candidate))


def _checkpoint(model: ModelFacts, candidate: Candidate) -> CheckpointFacts:
    wanted = candidate.checkpoint
    for each in model.checkpoints:
        if wanted.repo in (each.repo, each.modelscope) and wanted.file_prefix == each.file_prefix:
            return each
    raise ConfigurationError(f"{model.id} has no checkpoint {wanted.repo}")


def _architecture(real: Architecture, candidate: Candidate) -> Architecture:
    parallel = candidate.parallel
    ranks = parallel.tensor * parallel.data
    return msgspec.structs.replace(
        real,
        num_hidden_layers=max(LEAST_LAYERS, parallel.pipeline),
        first_k_dense_replace=min(DENSE_LAYERS, real.first_k_dense_replace),
        hidden_size=HIDDEN_SIZE,
        n_routed_experts=min(real.n_routed_experts, _multiple(EXPERTS, ranks)),
        vocab_size=VOCABULARY,
        vision=None if real.vision is None else _vision(real.vision),
        source=f"{real.class_name} cut down for a rehearsal",
    )


def _multiple(least: int, of: int) -> int:
    """The first multiple that is not less, where there are not too many ranks for that."""
    return least + -least % of


def _vision(real: Vision) -> Vision:
    # Its last part makes the language model's width.
    return msgspec.structs.replace(real, depth=min(VISION_DEPTH, real.depth), out_hidden_size=HIDDEN_SIZE)
