"""Which replica a request goes to, and what the gateway answers without any."""

from __future__ import annotations

import asyncio
import json

import pytest

from autolaunch.daemon.gateway.routing import STICKY_SLACK, Endpoint, Model, Place, Standing, Traffic
from tests.fakes.scripted import MODEL, STREAM, Standin, asked, event, house, request, story, until, whole

CHAT = "/v1/chat/completions"
LOADING = Standing(condition="loading", message="is loading", retry_seconds=30.0)
FAILED = Standing(condition="failed", message="has failed", retry_seconds=600.0)
ASLEEP = Standing(condition="asleep", message="was stopped because nobody asked", retry_seconds=9.0)


class Replica:
    """One that is nowhere."""

    def __init__(self, port: int, *, under_way: int = 0, degraded: bool = False, up: bool = True) -> None:
        self.name = MODEL
        self.context_tokens = None
        self.traffic = Traffic()
        self.traffic.under_way = under_way
        self.place = Endpoint(
            run=1, engine="vllm", host="127.0.0.1", port=port, served_name=MODEL, degraded=degraded, api_key="secret"
        )
        self.up = up

    def endpoint(self) -> Endpoint | None:
        return self.place if self.up else None

    def standing(self) -> Standing:
        return Standing(condition="serving", message="serves") if self.up else LOADING

    def wake(self) -> None:
        pass


def model(*replicas: Replica) -> Model:
    made = Model(MODEL)
    made.replicas = replicas
    return made


def picked(of: Model, conversation: bytes | None = None, without: frozenset[Place] = frozenset()) -> int:
    found = of.pick(conversation, without)
    assert found is not None
    return found[1].port


def place(port: int, run: int) -> Place:
    return Place("127.0.0.1", port, run)


def conversations(count: int) -> list[bytes]:
    return [f"conversation {number}".encode() for number in range(count)]


# --- one of several -------------------------------------------------------------------------------------------


def test_a_request_goes_to_the_replica_with_the_least_to_do() -> None:
    assert picked(model(Replica(1, under_way=3), Replica(2, under_way=1), Replica(3, under_way=2))) == 2


def test_a_conversation_stays_with_its_replica() -> None:
    of = model(Replica(1), Replica(2), Replica(3))
    for each in conversations(50):
        assert len({picked(of, each) for _ in range(5)}) == 1
    assert {picked(of, each) for each in conversations(50)} == {1, 2, 3}


def test_a_conversation_leaves_its_replica_only_for_one_with_much_less_to_do() -> None:
    of = model(Replica(1), Replica(2))
    for each in conversations(20):
        own = picked(of, each)
        replica = of.replicas[own - 1]
        replica.traffic.under_way = STICKY_SLACK
        assert picked(of, each) == own
        replica.traffic.under_way = STICKY_SLACK + 1
        assert picked(of, each) != own
        replica.traffic.under_way = 0


def test_only_the_conversations_of_a_replica_that_goes_move() -> None:
    replicas = [Replica(port) for port in (1, 2, 3, 4)]
    of = model(*replicas)
    before = {each: picked(of, each) for each in conversations(200)}
    replicas[3].up = False
    after = {each: picked(of, each) for each in before}
    assert all(after[each] == port for each, port in before.items() if port != 4)
    assert {after[each] for each, port in before.items() if port == 4} == {1, 2, 3}
    replicas[3].up = True
    assert {each: picked(of, each) for each in before} == before


def test_a_degraded_replica_serves_only_where_no_other_does() -> None:
    assert picked(model(Replica(1, degraded=True), Replica(2, under_way=90))) == 2
    assert picked(model(Replica(1, degraded=True), Replica(2, up=False))) == 1
    assert picked(model(Replica(1, degraded=True), Replica(2)), b"any", frozenset({place(2, 1)})) == 1


def test_an_engine_that_failed_a_request_is_not_asked_again_but_its_next_run_is() -> None:
    of = model(Replica(1), Replica(2, up=False))
    assert of.pick(None, frozenset({place(1, 1)})) is None
    assert picked(of, None, frozenset({place(1, 0)})) == 1
    of = model(Replica(1))
    assert of.pick(None, frozenset({place(1, 1)})) is None


def test_a_model_stands_as_the_replica_that_is_nearest_to_serving() -> None:
    class Stands(Replica):
        def __init__(self, state: Standing) -> None:
            super().__init__(1, up=False)
            self.state = state

        def standing(self) -> Standing:
            return self.state

    sooner = Standing(condition="loading", message="is loading", retry_seconds=3.0)
    assert model(Stands(FAILED), Stands(LOADING), Stands(sooner), Stands(ASLEEP)).standing() is sooner
    assert model(Stands(FAILED), Stands(ASLEEP)).standing() is ASLEEP
    assert model().standing().condition == "stopped"


def test_an_engines_key_is_in_no_repr() -> None:
    assert "secret" not in repr(Replica(1).place)


@story
async def test_requests_are_spread_over_replicas_and_come_back_to_the_one_that_holds_their_beginning() -> None:
    async with house(engines=2) as found:
        go = asyncio.Event()
        for each in found.engines:
            each.usual = (STREAM, event("a"), go, event("b", finish="stop"), b"0\r\n\r\n")
        clients = [await found.connect() for _ in range(8)]
        for number, client in enumerate(clients):
            client.send(request("POST", CHAT, asked(stream=True, user=f"user {number}")))
        await until(lambda: found.under_way == 8)
        await until(lambda: sum(len(each.asked) for each in found.engines) == 8)
        counts = [each.traffic.under_way for each in found.replicas]
        assert abs(counts[0] - counts[1]) <= 2 * STICKY_SLACK
        go.set()
        for client in clients:
            await client.answer()
        for engine in found.engines:
            engine.asked.clear()
            engine.usual = (whole(),)
        for _ in range(4):
            assert (await clients[0].chat(user="one")).status == 200
        assert sorted(len(each.asked) for each in found.engines) == [0, 4]


# --- routes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "expected", "allow"),
    [
        ("GET", CHAT, 405, "POST"),
        ("DELETE", "/v1/messages", 405, "POST"),
        ("POST", "/v1/models", 405, "GET"),
        ("DELETE", f"/v1/models/{MODEL}", 405, "GET"),
        ("POST", "/health", 405, "GET"),
        ("PUT", "/metrics", 405, "GET"),
        *(
            ("GET", path, 404, None)
            for path in ("/", "/v1", "/v1/", "/v2/models", "/docs", "/openapi.json", "/v1//models")
        ),
        *(
            ("POST", path, 404, None)
            for path in ("/v1/chat", f"{CHAT}/", "/v1/Chat/completions", "/v1/images/generations")
        ),
        *(("POST", path, 404, None) for path in ("/v1/load_lora_adapter", "/sleep", "/collective_rpc", "/slots/0")),
        ("GET", "/v1/models/../../health", 404, None),
    ],
)
@story
async def test_only_what_is_served_here_is_reached(method: str, path: str, expected: int, allow: str | None) -> None:
    async with house() as found:
        refused = await (await found.connect()).ask(method, path, asked() if method == "POST" else None)
        assert (refused.status, refused.header("allow")) == (expected, allow)
        assert refused.json["error"]["message"]
        assert found.engine.accepted == 0


@story
async def test_models_are_listed_by_the_names_they_are_asked_by() -> None:
    async with house() as found:
        other = Standin(found.engine, "other")
        other.context_tokens = 4096
        other.leave(LOADING)
        found.reroute(found.replica, other)
        client = await found.connect()
        listed = (await client.ask("GET", "/v1/models")).json
        assert listed["object"] == "list"
        assert [(each["id"], each["status"]) for each in listed["data"]] == [(MODEL, "serving"), ("other", "loading")]
        one = (await client.ask("GET", "/v1/models/other")).json
        assert one == listed["data"][1]
        assert (one["object"], one["max_model_len"]) == ("model", 4096)
        refused = await client.ask("GET", "/v1/models/othre")
        assert refused.status == 404
        assert "did you mean 'other'?" in refused.json["error"]["message"]


@story
async def test_health_is_the_gateways_and_readiness_that_of_its_models() -> None:
    async with house() as found:
        client = await found.connect()
        ready = await client.ask("GET", "/ready")
        assert (ready.status, ready.json) == (200, {"status": "ready", "models": {MODEL: "serving"}})
        for state, expected in ((LOADING, 503), (FAILED, 503), (ASLEEP, 200)):
            found.replica.leave(state)
            ready = await client.ask("GET", "/ready")
            assert (ready.status, ready.json["models"]) == (expected, {MODEL: state.condition})
            assert (ready.header("retry-after") is not None) == (expected == 503)
            assert (await client.ask("GET", "/health")).json == {"status": "ok"}


@story
async def test_models_that_come_and_go_are_there_and_gone_for_open_connections() -> None:
    async with house() as found:
        client = await found.connect()
        assert (await client.chat(model="other")).status == 404
        found.reroute(found.replica, Standin(found.engine, "other"))
        assert (await client.chat(model="other")).status == 200
        found.reroute()
        assert (await client.chat()).status == 404
        assert (await client.ask("GET", "/ready")).json == {"status": "ready", "models": {}}
        assert json.loads((await client.ask("GET", "/v1/models")).body)["data"] == []
