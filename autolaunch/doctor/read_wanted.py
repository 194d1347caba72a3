"""Reads what the plan of a model asks of the host, and whether hubs answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from autolaunch.doctor.facts import Wanted
from engines.base import planned_package
from selector.contract import Candidate, LaunchPlan
from selector.errors import EngineInstallError

if TYPE_CHECKING:
    from selector.catalog import Catalog
    from selector.hardware import HardwareReport

HUB_SECONDS = 5.0
_HUBS = {
    "Hugging Face": ("HF_ENDPOINT", "https://huggingface.co"),
    "ModelScope": ("MODELSCOPE_DOMAIN", "modelscope.cn"),
}


def read_wanted(model: str, report: HardwareReport, known: Catalog) -> Wanted:
    """The plan of ``model`` on this machine, as figures to hold it against.

    Raises:
        UnknownModel: nobody described this model.
    """
    from autolaunch import api
    from autolaunch.daemon.planning import nearest

    decided = api.plan(model, hardware=report, known=known, here=True)
    chosen = decided.chosen
    if chosen is None:
        return Wanted(
            model=decided.model,
            feasible=False,
            reason=nearest(decided.rejected, report, 1),
            advice=next((each.command for each in decided.advice if each.command is not None), None),
            memory_bytes=_least(decided),
        )
    memory = chosen.memory.per_device
    return Wanted(
        model=decided.model,
        feasible=True,
        engine=chosen.engine.name,
        devices=len(chosen.parallel.devices),
        uses_gpus=bool(chosen.parallel.devices),
        download_bytes=chosen.checkpoint.download_bytes,
        environment_bytes=_environment_bytes(chosen, known),
        installed=bool(chosen.engine.installed),
        local=bool(chosen.checkpoint.local) or known.find_model(model).model.generated,
        host_bytes=chosen.memory.host_bytes,
        memory_bytes=memory.weights_bytes
        + memory.kv_cache_bytes
        + memory.activations_bytes
        + memory.graphs_bytes
        + memory.runtime_bytes,
        load_seconds=chosen.speed.load_seconds,
    )


def _least(decided: LaunchPlan) -> int:
    """The least memory of a device that any refused way of serving it needs; 0 where none was refused for that."""
    needs = [each.numbers["needed_bytes"] for each in decided.rejected if each.numbers.get("needed_bytes")]
    return int(min(needs, default=0))


def _environment_bytes(chosen: Candidate, known: Catalog) -> int:
    try:
        return planned_package(known.engine(chosen.engine.name), chosen.engine)[1].bytes_on_disk
    except EngineInstallError:  # somebody else's installation
        return 0


def ask_hubs(environ: Mapping[str, str]) -> dict[str, str | None]:
    """Whether each hub answers at all, within :data:`HUB_SECONDS`: ``None``, or why not."""
    return {name: _silent(environ.get(variable) or default) for name, (variable, default) in _HUBS.items()}


def _silent(address: str) -> str | None:
    import http.client
    import urllib.error
    import urllib.request

    url = address if address.startswith(("http://", "https://")) else f"https://{address}"
    try:
        asked = urllib.request.Request(url, method="HEAD")  # noqa: S310 (a hub's address, http or https)
        urllib.request.urlopen(asked, timeout=HUB_SECONDS).close()  # noqa: S310 (as above)
    except urllib.error.HTTPError:
        return None  # it answers
    except urllib.error.URLError as error:
        return f"{url}: {error.reason}"
    except (OSError, ValueError, http.client.HTTPException) as error:
        return f"{url}: {error}"
    return None
