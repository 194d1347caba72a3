"""Every name that a user's script is likely to touch, with the types that it gives them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import assert_type

import autolaunch


def planned() -> autolaunch.LaunchPlan:
    report = assert_type(autolaunch.probe(), autolaunch.HardwareReport)
    pins = autolaunch.Pins(engine="vllm", tensor_parallel=8)
    plan = autolaunch.plan("glm-4.6", hardware=report, objective="throughput", pins=pins)
    assert_type(plan.chosen, autolaunch.Candidate | None)
    return plan


def launched(plan: autolaunch.LaunchPlan) -> None:
    def hear(event: autolaunch.Event) -> None:
        print(event.name, event.message, event.transfer and event.transfer.left_seconds)

    with autolaunch.launch(plan, port=8000, home=Path("/srv"), on_event=hear) as server:
        assert_type(server, autolaunch.Launch)
        server.wait_ready(timeout=60.0)
        assert_type(server.base_url, str)
        assert_type(server.api_key, str | None)
        assert_type(server.measurements, tuple[autolaunch.Comparison, ...])
        assert_type(server.events(), Iterator[autolaunch.Event])
        assert_type(server.pids, tuple[int, ...])


async def awaited(plan: autolaunch.LaunchPlan) -> None:
    async with autolaunch.launch(plan) as server:
        assert_type(server, autolaunch.AsyncLaunch)
        await server.wait_ready(timeout=60.0)
        assert_type(server.events(), AsyncIterator[autolaunch.Event])
        await server.stop()


def steered() -> None:
    with autolaunch.Client() as client:
        status = assert_type(client.status(), autolaunch.StatusDocument)
        print(status.url)
        for each in client.wait("glm-4.6", timeout_seconds=1800):
            assert_type(each, autolaunch.DeploymentDocument)
        assert_type(client.events(follow=True), Iterator[autolaunch.EventDocument])


async def deployed(plan: autolaunch.LaunchPlan) -> None:
    async with autolaunch.AsyncClient() as client:
        document = await client.deploy(plan, name="chat", idle_seconds=600.0)
        assert_type(document, autolaunch.DeploymentDocument)
        await client.undeploy(document.name)


def guarded() -> str | None:
    try:
        result = autolaunch.rehearse(planned(), mode="miniature")
    except autolaunch.NoFeasiblePlan as error:
        return error.hint
    return assert_type(result, autolaunch.Rehearsal).to_json()
