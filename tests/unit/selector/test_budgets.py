"""What an engine takes of a device, by its own rule and version."""

from __future__ import annotations

import msgspec
import pytest

from selector.budgets import Budget, batch_default, budgets, default_sequences, relaxed
from selector.catalog import Catalog
from selector.contract import Parallel
from selector.devices import GIB, MIB, Device, groups
from selector.legality import Refusal
from selector.machines import report_from_spec


def device_of(catalog: Catalog, machine: str) -> Device:
    found, _ = groups(report_from_spec(machine, catalog), catalog.accelerator_for)
    return found[0].devices[0]


def budget(
    catalog: Catalog,
    engine: str,
    machine: str,
    parallel: Parallel,
    *,
    model: str = "glm-4.6",
    version: str | None = None,
    eager: bool = False,
    device: Device | None = None,
) -> tuple[Budget, ...]:
    facts = catalog.engine(engine)
    found = budgets(
        facts,
        device or device_of(catalog, machine),
        parallel,
        eager=eager,
        version=version or facts.version,
        pinned=None,
    )
    assert not isinstance(found, Refusal), found
    return found


@pytest.mark.parametrize(("version", "share"), [("0.14.0", 0.90), ("0.20.2", 0.90), ("0.25.1", 0.92), ("0.33.0", 0.92)])
def test_vllm_takes_the_share_of_its_version(catalog: Catalog, version: str, share: float) -> None:
    first = budget(catalog, "vllm", "8xh200", Parallel(tensor=8), version=version)[0]
    # 143,155 MiB is what CUDA reports on an H200, 143,771 what NVML does.
    assert (first.utilization, first.pool) == (share, int(share * 143_155 * MIB))


def test_cuda_graphs_lie_outside_of_the_share_before_they_were_profiled(catalog: Catalog) -> None:
    before = budget(catalog, "vllm", "8xh200", Parallel(tensor=8), version="0.19.0")[0]
    since = budget(catalog, "vllm", "8xh200", Parallel(tensor=8), version="0.21.0")[0]
    assert before.outside is not None
    assert 12 * GIB < before.outside < 14 * GIB
    assert since.outside is None


@pytest.mark.parametrize(
    ("machine", "tensor", "eager", "fraction"),
    [
        # 512 + 1.5 chunks + 1024 TP / 8 + 2 x the largest graph, of the driver's total
        ("8xh100", 8, False, round(1 - (512 + 12_288 + 1024 + 1024) / 81_559, 3)),
        ("8xh100", 2, False, round(1 - (512 + 12_288 + 256 + 512) / 81_559, 3)),
        ("8xh200", 4, False, round(1 - (512 + 12_288 + 512 + 1024) / 143_771, 3)),
        ("8xh200", 8, True, round(1 - (512 + 12_288 + 1024) / 143_771, 3)),
        ("8xb200", 8, False, round(1 - (512 + 24_576 + 1024 + 1024) / 183_359, 3)),
        ("8xrtx4090", 8, False, round(1 - (512 + 6144 + 1024 + 320) / 24_564, 3)),
    ],
)
def test_sglang_computes_its_fraction_from_the_batch(
    catalog: Catalog, machine: str, tensor: int, eager: bool, fraction: float
) -> None:
    (found,) = budget(catalog, "sglang", machine, Parallel(tensor=tensor), eager=eager)
    assert found.utilization == pytest.approx(fraction, abs=1e-9)


def test_a_vision_tower_takes_its_peak_of_sglangs_share_and_no_guess(catalog: Catalog) -> None:
    """A little more free memory never halves the cache: the share is one, whatever fits beside it."""
    (text,) = budget(catalog, "sglang", "4xh100", Parallel(tensor=4), model="glm-4.6")
    (vision,) = budget(catalog, "sglang", "4xh100", Parallel(tensor=4), model="glm-4.5v")
    assert vision == text


def test_a_static_share_is_lowered_until_the_rest_fits(catalog: Catalog) -> None:
    (found,) = budget(catalog, "sglang", "8xh100", Parallel(tensor=8))
    assert found.rest is not None
    assert relaxed(found, found.rest) == found
    lowered = relaxed(found, found.rest + 2 * GIB)
    assert lowered.rest is not None
    assert lowered.rest >= found.rest + 2 * GIB
    assert lowered.pool + lowered.rest == found.pool + found.rest
    assert relaxed(found, 1000 * GIB).pool == 0


def test_a_static_share_is_one_of_what_is_free(catalog: Catalog) -> None:
    """SGLang compares with what it finds free, so memory held by others shrinks the pool, not the fraction."""
    empty = device_of(catalog, "8xh200")
    busy = msgspec.structs.replace(empty, free_bytes=empty.free_bytes - 40 * GIB)
    (all_of_it,) = budget(catalog, "sglang", "8xh200", Parallel(tensor=8))
    (left,) = budget(catalog, "sglang", "8xh200", Parallel(tensor=8), device=busy)
    assert left.utilization == all_of_it.utilization
    assert all_of_it.pool - left.pool == pytest.approx(all_of_it.utilization * 40 * GIB, abs=2)


def test_default_sequences_depend_on_device_and_width(catalog: Catalog) -> None:
    vllm, sglang = catalog.engine("vllm"), catalog.engine("sglang")
    h100, a100 = device_of(catalog, "8xh100"), device_of(catalog, "8xa100-80gb")
    assert default_sequences(batch_default(vllm, h100), Parallel(tensor=2)) == 1024
    assert default_sequences(batch_default(vllm, a100), Parallel(tensor=8)) == 256
    assert default_sequences(batch_default(sglang, h100), Parallel(tensor=2)) == 256
    assert default_sequences(batch_default(sglang, h100), Parallel(tensor=4)) == 512
