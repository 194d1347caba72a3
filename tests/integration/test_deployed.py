"""Deployments that are added to a daemon while it runs, by both clients: kept up, kept, refused, taken away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import pytest

from autolaunch.async_client import AsyncClient
from autolaunch.client import Client
from selector.errors import NotRunning, NotSteered, UnknownDeployment, UsageError, WaitTimedOut
from tests.fakes.plans import plan
from tests.fakes.served import Served, entry

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

Serve = Callable[..., Served]


def client_of(one: Served) -> Client:
    return Client(one.home / "control" / "control.sock")


def names(client: Client) -> list[str]:
    return [each.name for each in client.deployments()]


def test_what_is_deployed_is_kept_up_over_restarts_until_it_is_undeployed(serve: Serve) -> None:
    one = serve()
    one.begin()
    client = client_of(one)
    written = one.configuration.read_bytes()
    document = client.deploy("glm-tiny", name="b", context_tokens=512)
    assert (document.name, document.model) == ("b", "glm-tiny")
    client.wait("b", timeout_seconds=30)
    assert names(client) == ["a", "b"]
    assert one.configuration.read_bytes() == written
    assert client.reload().holds
    assert names(client) == ["a", "b"]
    one.stop()
    one.start()
    one.until(lambda: one.told("engine.ready", "b"))
    assert names(client) == ["a", "b"]
    assert [each.added for each in client.deployments()] == [False, True]
    assert client.undeploy("b").name == "b"
    assert names(client) == ["a"]
    with pytest.raises(UnknownDeployment):
        client.undeploy("b")
    assert len(one.engines()) == 1
    one.stop()
    assert json.loads((one.home / "daemon" / "deployed.json").read_bytes()) == {"schema": 1, "deployments": []}


def test_what_cannot_be_deployed_is_refused_and_changes_nothing(serve: Serve) -> None:
    one = serve()
    one.begin()
    client = client_of(one)
    refused: tuple[tuple[dict[str, object], str], ...] = (
        ({"model": "glm-tiny", "name": "A"}, "is taken"),
        ({"model": "glm-5"}, "deployment.model"),
        ({"model": "glm-tiny", "name": "../b"}, "cannot be a served name"),
        ({"model": "glm-tiny", "name": "b", "contexttokens": 5}, "contexttokens"),
        ({"model": "glm-tiny", "name": "b", "port": one.gateway_port}, "is the gateway's"),
        ({"model": "glm-tiny", "name": "b", "port": one.port}, "is that of a"),
        ({"model": "glm-tiny", "name": "b", "model_path": "relative"}, "no absolute path"),
        ({"model": "glm-tiny", "name": "b", "pinned": {"engine": "vllm2"}}, "pinned.engine"),
        ({"model": "glm-tiny", "name": "b", "idle_seconds": object()}, "plain values"),
    )
    for options, said in refused:
        with pytest.raises(UsageError, match=said):
            client.deploy(str(options.pop("model")), **options)  # type: ignore[arg-type]  # name is among them
    with pytest.raises(UsageError, match="is a deployment of the configuration"):
        client.undeploy("a")
    assert names(client) == ["a"]
    assert not (one.home / "daemon" / "deployed.json").exists()
    client.deploy("glm-tiny", name="b")
    one.configure(entry("a", one.port), entry("b", None))
    assert "undeploy it first" in (client.reload().wrong or "")
    one.stop()


def test_a_file_that_is_damaged_is_set_aside_and_the_configuration_served(serve: Serve) -> None:
    one = serve()
    kept = one.home / "daemon" / "deployed.json"
    kept.parent.mkdir(parents=True)
    kept.write_text('{"schema": 1, "deployments": [{"model": "glm-5"}, {"model": "glm-tiny", "name": "b"}]}')
    one.begin()
    assert "glm-5" in one.told("deployed")[0]["message"]
    assert names(client_of(one)) == ["a", "b"]
    one.stop()
    kept.write_text('{"schema": 2, "deployments": 7')
    one.begin()
    assert "has to be deployed again" in one.told("deployed")[0]["message"]
    assert names(client_of(one)) == ["a"]
    assert kept.with_name("deployed.json.corrupt").exists()
    one.stop()


def test_the_async_client_is_the_twin_of_the_other(serve: Serve) -> None:
    one = serve()
    one.begin()
    path = one.home / "control" / "control.sock"

    async def story() -> None:
        async with AsyncClient(path) as client:
            assert (await client.status()).kind == "daemon"
            await client.deploy("glm-tiny", name="b")
            (found,) = await client.wait("b", timeout_seconds=30)
            assert found.phase == "ready"
            assert (await client.plan("b")).model == "glm-tiny"
            assert [line async for line in client.logs("b", lines=1)] == ["listening"]
            assert (await client.reload()).holds
            seen = [event.event async for event in client.events()]
            assert "engine.ready" in seen
            following = client.events(follow=True, since=len(seen))
            await client.stop("b")
            async for event in following:
                if event.event == "control.stop":
                    break
            with pytest.raises(WaitTimedOut):
                await client.wait("a", phase="asleep", timeout_seconds=0.3)
            with pytest.raises(UnknownDeployment):
                await client.deployment("c")
            listening = asyncio.create_task(read_to_its_end(client))
            await asyncio.gather(client.undeploy("b"), client.deployments(), client.deployment("a"))
            listening.cancel()
            ended = asyncio.create_task(read_to_its_end(client))
            await asyncio.sleep(0.3)
            one.kill()
            with pytest.raises(NotSteered, match="broke off"):
                await ended
            with pytest.raises(NotRunning):
                await client.status()

    asyncio.run(story())
    one.nothing_left(10.0, swept=False)


async def read_to_its_end(client: AsyncClient) -> None:
    async for _ in client.events(follow=True):
        pass


def test_a_plan_is_deployed_with_what_was_asked_for(serve: Serve) -> None:
    from autolaunch.daemon.control import calls

    call = calls.deploy(plan(None), "b", {"offline": True, "idle_seconds": None})
    assert json.loads(call.body or b"") == {
        "model": "glm-tiny",
        "objective": "balanced",
        "input_tokens": 1000,
        "output_tokens": 500,
        "pinned": {},
        "offline": True,
        "name": "b",
    }
