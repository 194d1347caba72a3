"""The exported units under a real systemd: they prepare, start as a user that systemd makes, answer, and stop."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from autolaunch import api
from autolaunch.exporting import ExportOptions, export
from engines import miniature
from engines.base import planned_package
from engines.environments import Environments
from selector.catalog import Catalog
from selector.request import Pins
from tests.integration.conftest import HOME
from tests.systemd.harness import PLACE, PYTHON, Systemd, why_not

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

UNIT, PREPARE = "llm-glm-tiny.service", "llm-glm-tiny-prepare.service"
SITE, MODEL = PLACE / "engine-site", PLACE / "model"
STATE = Path("/var/lib/private/llm-glm-tiny")
PORT = 8765
ASK = (
    "import json, sys, urllib.request as u; "
    "r = u.Request(sys.argv[1], json.dumps({'model': 'glm-tiny', 'max_tokens': 3, 'messages': "
    "[{'role': 'user', 'content': 'hello'}]}).encode(), {'content-type': 'application/json'}); "
    "print(json.load(u.urlopen(r, timeout=30))['usage']['completion_tokens'])"
)


@pytest.fixture
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Systemd]:
    """A systemd with the units; mlx-lm's environment stands where they would make it, and its Python is the tests'."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    known, folder = Catalog(), tmp_path_factory.mktemp("export")
    plan = api.plan("glm-tiny", hardware="cpu-64gb", pins=Pins(engine="mlx"), known=known)
    assert plan.chosen is not None
    model = known.model("glm-tiny")
    weights = miniature.generate(model, folder / "weights", miniature.checkpoint_of(model, plan.chosen.checkpoint.repo))
    made = Environments(HOME / "engines").ensure(*planned_package(known.engine("mlx"), plan.chosen.engine))
    (site,) = made.directory.glob("lib/python3.*/site-packages")
    systemd = Systemd(tmp_path_factory.mktemp("systemd"), binds=((site, SITE), (weights, MODEL)))
    try:
        bin_directory = STATE / "mlx-lm-0.32.2" / "bin"
        systemd.must("mkdir", "-m", "700", str(STATE.parent))  # as systemd has it
        # An interpreter of somebody's home finds its library there, and a unit sees no homes.
        python = f"LD_LIBRARY_PATH={PLACE}/python/lib PYTHONPATH={SITE} exec {PYTHON} -P"
        systemd.write(bin_directory / "mlx_lm.server", f'#!/bin/sh\n{python} -m mlx_lm.server "$@"\n', 0o755)
        systemd.write(bin_directory / "python", f'#!/bin/sh\n{python} "$@"\n', 0o755)
        systemd.write(bin_directory.parent / ".whole", "")
        options = ExportOptions(model_path=str(MODEL), port=PORT)
        for file in export(plan, "systemd", options=options, catalog=known).files:
            systemd.write(f"/etc/systemd/system/{file.name}", file.text)
        systemd.must("systemctl", "daemon-reload")
        yield systemd
    finally:
        systemd.stop()


def test_the_units_serve_and_end(served: Systemd) -> None:
    started = served.run("systemctl", "start", UNIT, timeout_seconds=120)
    assert started.returncode == 0, served.journal(PREPARE) + served.journal(UNIT)
    # Started means that it answers.
    told = served.must(str(PYTHON), "-c", ASK, f"http://127.0.0.1:{PORT}/v1/chat/completions")
    assert told.strip() == "3"
    user, _ = served.process(served.main_pid(UNIT))
    assert user not in ("root", "0")
    assert served.show(PREPARE, "ActiveState") == "active"
    served.systemctl("stop", UNIT)
    assert served.show(UNIT, "ActiveState") in ("inactive", "failed")
    assert served.processes(UNIT) == ()


def test_an_engine_that_ends_while_it_loads_fails_its_unit_at_once(served: Systemd) -> None:
    served.write(STATE / "mlx-lm-0.32.2/bin/mlx_lm.server", "#!/bin/sh\nsleep 3\nexit 1\n", 0o755)  # loads for a while
    assert served.run("systemctl", "start", UNIT, timeout_seconds=30).returncode != 0
