"""The control API of a launch, and of replicas: documents over a socket, of supervisors that start nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from http.client import RemoteDisconnected
from pathlib import Path
from typing import TypeVar

import pytest
from msgspec.structs import replace

from autolaunch.client import Client, clients
from autolaunch.daemon.control import calls, serve
from autolaunch.daemon.control.contract import DeploymentDocument
from autolaunch.daemon.control.of_launch import SteeredLaunch, control_of
from autolaunch.daemon.control.places import launch_socket
from autolaunch.daemon.control.views import moment, shown
from autolaunch.daemon.deployment import Deployment, Fault, KeptDeployment
from autolaunch.daemon.hands import Decided, Hands
from autolaunch.daemon.happenings import Tell
from autolaunch.daemon.journal import Event
from autolaunch.daemon.machine import State
from autolaunch.daemon.shown import shown_phase
from autolaunch.daemon.supervisor import Supervisor
from autolaunch.server import LaunchEvent
from selector.catalog import Catalog
from selector.errors import AutolaunchError, NotRunning, NotServing, NotSteered, UsageError
from tests.fakes.plans import candidate
from tests.fakes.plans import plan as made_plan

T = TypeVar("T")
FAULT = Fault(reason="fault of ours", permanent=True, message="it failed", hint="mend it")


def supervisor(name: str, kept: KeptDeployment | None = None) -> Supervisor:
    def never(*_: object) -> None:
        raise AssertionError("nothing is planned here")

    hands = Hands(home=Path("/nowhere"), catalog=Catalog(()), planner=never)  # type: ignore[arg-type]  # never asked
    return Supervisor(Deployment(name=name, model="glm-tiny"), hands, kept=kept)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUTOLAUNCH_HOME", str(tmp_path))
    monkeypatch.delenv("AUTOLAUNCH_SOCKET", raising=False)
    return tmp_path


def asked(home: Path, steered: SteeredLaunch, ask: Callable[[Client], T]) -> T:
    """What a client gets that asks from a thread of its own."""

    async def play() -> T:
        control = control_of(steered, home)
        await control.start()
        try:
            return await asyncio.to_thread(ask, Client(control.path, timeout_seconds=5.0))
        finally:
            await control.close()

    return asyncio.run(play())


def test_replicas_are_shown_within_their_deployment_and_by_their_own_names(home: Path) -> None:
    failed = supervisor("a", KeptDeployment(latched=FAULT))
    steered = SteeredLaunch({"a": failed, "a#2": supervisor("a"), "b": supervisor("b")}, lambda: None)
    steered.hear("a#2", LaunchEvent(stage="weights", message="1 of 2 files", fraction=0.5))
    steered.gateway_url = "http://127.0.0.1:8000/v1"

    def ask(client: Client) -> None:
        one, two = client.deployments()
        assert (one.name, one.phase, one.url) == ("a", "planned", "http://127.0.0.1:8000/v1")
        assert [(each.unit, each.phase) for each in one.replicas] == [("a", "failed"), ("a#2", "planned")]
        assert two.name == "b"
        first, second = one.replicas
        assert first.fault is not None
        assert (first.fault.message, first.fault.hint) == ("it failed", "mend it")
        assert second.fault is None
        alone = client.deployment("a#2")
        assert (alone.name, [each.unit for each in alone.replicas]) == ("a", ["a#2"])
        with pytest.raises(NotServing, match="no plan"):
            client.plan("b")
        assert client.wait("a", phase="planned", timeout_seconds=1)[0].name == "a"
        assert list(client.logs("b")) == []

    asked(home, steered, ask)


def test_a_verb_is_for_all_replicas_and_a_launch_ends_when_it_is_stopped(home: Path) -> None:
    ended: list[bool] = []
    steered = SteeredLaunch({"a": supervisor("a"), "a#2": supervisor("a")}, lambda: ended.append(True))

    def ask(client: Client) -> DeploymentDocument:
        assert client.status().kind == "launch"
        with pytest.raises(UsageError, match="no configuration"):
            client.reload()
        return client.stop("a")

    found = asked(home, steered, ask)
    assert [each.wanted for each in found.replicas] == ["stopped", "stopped"]
    assert found.phase == "stopped"
    assert ended == [True]
    assert [each.event for each in steered.happened.after(0)] == ["control.stop"]


def test_a_launch_goes_on_when_one_of_its_replicas_is_stopped(home: Path) -> None:
    ended: list[bool] = []
    steered = SteeredLaunch({"a": supervisor("a"), "a#2": supervisor("a")}, lambda: ended.append(True))
    found = asked(home, steered, lambda client: client.stop("a#2"))
    assert [(each.unit, each.wanted) for each in found.replicas] == [("a#2", "stopped")]
    assert ended == []


def test_what_sleeps_is_waited_for_no_longer_and_what_is_stopped_is_an_error(home: Path) -> None:
    asleep, stopped = supervisor("a"), supervisor("b")
    asleep.state = replace(asleep.state, asleep=True)
    stopped.state = replace(stopped.state, wanted="stopped")
    steered = SteeredLaunch({"a": asleep, "b": stopped}, lambda: None)

    def ask(client: Client) -> None:
        assert client.wait("a", timeout_seconds=1)[0].phase == "asleep"
        with pytest.raises(NotServing, match="b: it is stopped"):
            client.wait(timeout_seconds=1)

    asked(home, steered, ask)


def test_what_a_launch_says_is_among_its_events(home: Path) -> None:
    one = supervisor("a")
    steered = SteeredLaunch({"a": one}, lambda: None)
    steered.tell(one, Tell(name="engine.ready", message="a token came back", seconds=1.5))
    (event,) = asked(home, steered, lambda client: tuple(client.events()))
    assert (event.event, event.deployment, event.figures) == ("engine.ready", "a", {"run": 0, "seconds": 1.5})


def test_what_a_replica_says_has_its_own_name() -> None:
    one = supervisor("a")
    one.state = replace(one.state, deployment=replace(one.state.deployment, replica=2))
    steered = SteeredLaunch({"a#2": one}, lambda: None)
    steered.tell(one, Tell(name="engine.ready", message="m"))
    assert [each.deployment for each in steered.happened.after(0)] == ["a#2"]


def test_a_launch_is_found_and_two_are_told_apart_by_their_sockets(home: Path) -> None:
    steered = SteeredLaunch({"a": supervisor("a")}, lambda: None)

    def ask(client: Client) -> None:
        assert [each.path for each in clients()] == [client.path]
        assert Client().status().kind == "launch"

    asked(home, steered, ask)
    assert clients() == ()
    with pytest.raises(NotRunning) as error:
        Client().status()
    assert "systemctl start autolaunch" in str(error.value.hint)

    async def two() -> None:
        first, second = control_of(steered, home), control_of(steered, home)
        second.path = launch_socket({"AUTOLAUNCH_HOME": str(home)}, home, 1)
        await first.start()
        await second.start()
        try:
            assert len(await asyncio.to_thread(clients)) == 2
            with pytest.raises(NotSteered, match="which of them"):
                await asyncio.to_thread(Client().status)
        finally:
            await first.close()
            await second.close()

    asyncio.run(two())


def test_a_fault_of_ours_is_an_error_document_and_the_next_request_is_answered(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steered = SteeredLaunch({"a": supervisor("a")}, lambda: None)
    monkeypatch.setattr(SteeredLaunch, "requests", lambda *_: 1 // 0)
    told: list[object] = []

    def ask(client: Client) -> None:
        for _ in range(2):
            with pytest.raises(AutolaunchError, match="a fault of autolaunch"):
                client.status()

    async def play() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context.get("exception")))
        control = control_of(steered, home)
        await control.start()
        try:
            await asyncio.to_thread(ask, Client(control.path))
        finally:
            await control.close()

    asyncio.run(play())
    assert [type(each) for each in told] == [ZeroDivisionError, ZeroDivisionError]


def test_streams_leave_room_for_questions_and_one_too_many_is_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "STREAMS", 2)
    steered = SteeredLaunch({"a": supervisor("a")}, lambda: None)
    steered.say(Event(event="e", message="m"))

    def ask(client: Client) -> None:
        followed = [client.events(follow=True) for _ in range(2)]
        assert [next(each).event for each in followed] == ["e", "e"]
        with pytest.raises(NotSteered, match="2 logs and events are being followed"):
            next(client.logs("a", follow=True))
        assert client.status().kind == "launch"

    asked(home, steered, ask)


def test_a_connection_that_is_reset_is_not_taken_for_nobody() -> None:
    for error in (ConnectionResetError(), BrokenPipeError(), RemoteDisconnected("")):
        assert type(calls.unreachable("/s", error)) is NotSteered
    assert type(calls.unreachable("/s", ConnectionRefusedError())) is NotRunning


def test_a_plan_is_shown_with_what_was_chosen_in_the_end(home: Path) -> None:
    one = supervisor("a")
    best, taken = candidate("vllm", "glm-tiny"), candidate("transformers", "glm-tiny", context=1024)
    one.run.decided = Decided(made_plan(best), taken)
    found = asked(home, SteeredLaunch({"a": one}, lambda: None), lambda client: client.plan("a"))
    assert found.chosen == taken


@pytest.mark.parametrize(
    ("state", "phase"),
    [
        (State(deployment=Deployment(name="a", model="m"), wanted="stopped"), "stopped"),
        (State(deployment=Deployment(name="a", model="m"), wanted="stopped", phase="draining"), "draining"),
        (State(deployment=Deployment(name="a", model="m"), asleep=True), "asleep"),
        (State(deployment=Deployment(name="a", model="m"), planning=True), "planned"),
        (State(deployment=Deployment(name="a", model="m"), phase="degraded"), "degraded"),
    ],
)
def test_a_phase_is_called_what_a_person_calls_it(state: State, phase: str) -> None:
    assert shown_phase(state) == phase


def test_moments_are_of_this_day_and_keys_are_not_shown() -> None:
    assert abs(moment(time.monotonic()).timestamp() - time.time()) < 1.0
    assert shown("--api-key secret \x1b[1mx", "secret", None) == "--api-key <key> x"


def test_a_name_that_is_ours_is_a_name_and_perhaps_a_port() -> None:
    for host in ("localhost", "LOCALHOST:80", "autolaunch", "127.0.0.1:9", "[::1]", "[::1]:9"):
        assert serve._is_ours(host), host
    for host in ("localhost:80@evil", "localhost:", "localhost:x", "localhost:1:2", "[::1]x", "[localhost]", "::1", ""):
        assert not serve._is_ours(host), host
