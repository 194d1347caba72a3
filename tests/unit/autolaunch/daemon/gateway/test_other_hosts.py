"""Other hosts behind the gateway: asked, sent requests, passed over, lost and found again.

The hosts are real gateways over scripted engines on the same loop, or scripts where a gateway would not misbehave so.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from autolaunch.daemon.gateway import other_hosts, proxy
from autolaunch.daemon.gateway.host_access import HostAccess, accesses
from autolaunch.daemon.gateway.keys import Keys, key_of, made
from autolaunch.daemon.gateway.options import GatewayOptions, HostOptions
from autolaunch.daemon.gateway.other_hosts import Hosts, OtherHost
from autolaunch.daemon.gateway.routing import Standing
from tests.fakes.scripted import (
    DONE,
    MODEL,
    STREAM,
    Engine,
    House,
    Step,
    asked,
    chunk,
    event,
    header_of,
    house,
    request,
    story,
    until,
    whole,
)

#: A certificate of 127.0.0.1 and localhost that is its own authority, and its key: from 2020 to 2120, for nothing else.
TLS = Path(__file__).parents[4] / "data" / "tls"
CHAT = "/v1/chat/completions"
LOADING = Standing(condition="loading", message="is loading", retry_seconds=30.0)
HERE = {"model": MODEL, "choices": [{"message": {"content": "here"}, "finish_reason": "stop"}]}
THERE = {"model": MODEL, "choices": [{"message": {"content": "there"}, "finish_reason": "stop"}]}


@pytest.fixture(autouse=True)
def swift(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked every two seconds is asked fifty times a second."""
    monkeypatch.setattr(other_hosts, "ASK_SECONDS", 0.02)
    monkeypatch.setattr(other_hosts, "ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(other_hosts, "AGAIN_SECONDS", 0.005)
    monkeypatch.setattr(other_hosts, "AGAIN_MOST_SECONDS", 0.02)


def reached(port: int, name: str = "h2", **more: object) -> tuple[HostAccess, ...]:
    return accesses((HostOptions(url=f"http://127.0.0.1:{port}", name=name, **more),))  # type: ignore[arg-type]  # a test's own


def port(of: House) -> int:
    return of.gateway.address.port


def hosts(of: House) -> tuple[OtherHost, ...]:
    return of.gateway.hosts.all


async def heard_of(of: House, state: str = "up") -> None:
    await until(lambda: all(each.state == state for each in hosts(of)))


@asynccontextmanager
async def two(*, key: str | None = None, folder: Path | None = None) -> AsyncIterator[tuple[House, House]]:
    """A gateway with an engine, and another host's, which it has heard of."""
    keys = None if key is None else Keys(entries=(key_of("h1", key),))
    more: dict[str, Path] = {}
    if folder is not None and key is not None:
        file = folder / "key"
        file.touch(mode=0o600)
        file.write_text(f"{key}\n")
        more["api_key_file"] = file
    async with house() as first, house(keys=keys) as second:
        first.engine.usual = (whole(HERE),)
        second.engine.usual = (whole(THERE),)
        first.gateway.hosts.take(reached(port(second), "h2", **more))
        await heard_of(first)
        yield first, second
        for client in (*first.clients, *second.clients):
            client.leave()
        for each in (first, second):
            await until(lambda: each.under_way == 0)  # noqa: B023 - awaited here
            each.gateway.hosts.take(())


@asynccontextmanager
async def beside(**pages: Sequence[Step]) -> AsyncIterator[tuple[House, Engine]]:
    """A gateway with an engine, and a script for another host: it is well and serves the model until it says else."""
    async with house() as first:
        first.engine.usual = (whole(HERE),)
        other = Engine()
        other.pages = {"/health": (whole({"status": "ok"}),), "/v1/models": (models(MODEL),), **pages}
        other.usual = (whole(THERE),)
        await other.start()
        try:
            first.gateway.hosts.take(reached(other.port))
            yield first, other
            for client in first.clients:
                client.leave()
            await until(lambda: first.under_way == 0)
        finally:
            first.gateway.hosts.take(())
            other.stop()
        await until(lambda: not other.links)


def models(*names: str, **more: object) -> bytes:
    return whole({"object": "list", "data": [{"id": name, "object": "model", **more} for name in names]})


def said(answered: object) -> str:
    found: str = answered["choices"][0]["message"]["content"]  # type: ignore[index]  # a test's own
    return found


# --- one pool ---------------------------------------------------------------------------------------------------


@story
async def test_requests_are_spread_over_this_host_and_others_by_what_is_under_way() -> None:
    async with two() as (first, second):
        go = asyncio.Event()
        for each in (first, second):
            each.engine.usual = (go, whole())
        clients = [await first.connect() for _ in range(8)]
        for number, client in enumerate(clients):
            client.send(request("POST", CHAT, asked(user=f"user {number}")))
            await until(lambda: len(first.engine.asked) + len(second.engine.asked) > number)  # noqa: B023 - awaited here
        assert abs(len(first.engine.asked) - len(second.engine.asked)) <= 2 * 4
        assert min(len(first.engine.asked), len(second.engine.asked)) >= 1
        assert first.gateway.hosts.all[0].requests == len(second.engine.asked)
        go.set()
        assert [(await each.answer()).status for each in clients] == [200] * 8
        assert first.gateway.hosts.all[0].requests == 0


@story
async def test_a_model_that_loads_here_is_answered_by_another_host_meanwhile() -> None:
    async with two() as (first, _):
        first.replica.leave(LOADING)
        client = await first.connect()
        answered = await client.chat()
        assert (answered.status, said(answered.json)) == (200, "there")
        listed = (await client.ask("GET", "/v1/models")).json["data"]
        assert [(each["id"], each["status"]) for each in listed] == [(MODEL, "serving")]
        first.replica.serve()
        assert said((await client.chat(user="x")).json) in ("here", "there")


@story
async def test_a_model_that_only_other_hosts_have_is_listed_and_served() -> None:
    async with two() as (first, second):
        from tests.fakes.scripted import Standin

        own = Standin(second.engine, "only-there")
        own.context_tokens = 4096
        second.reroute(second.replica, own)
        await until(lambda: "only-there" in first.gateway.models)
        client = await first.connect()
        assert (await client.chat(model="only-there")).status == 200
        entry = (await client.ask("GET", "/v1/models/only-there")).json
        assert (entry["status"], entry["max_model_len"]) == ("serving", 4096)
        assert "requests" not in entry
        second.reroute(second.replica)
        await until(lambda: "only-there" not in first.gateway.models)
        assert (await client.chat(model="only-there")).status == 404


@story
async def test_only_the_models_that_are_named_are_asked_of_a_host() -> None:
    async with beside() as (first, other):
        other.pages["/v1/models"] = (models(MODEL, "other"),)
        first.gateway.hosts.take(reached(other.port, models=("other", "missing")))
        await until(lambda: first.gateway.models.keys() == {MODEL, "other", "missing"})
        await heard_of(first)
        client = await first.connect()
        assert (await client.chat(model="other")).status == 200
        refused = await client.chat(model="missing")
        assert (refused.status, refused.code) == (503, "model_stopped")
        assert [said((await client.chat()).json) for _ in range(3)] == ["here"] * 3


@story
async def test_a_hosts_other_requests_and_its_number_of_engines_count() -> None:
    async with beside() as (first, other):
        other.pages["/v1/models"] = (models(MODEL, requests=40, engines=4, status="serving"),)
        await until(lambda: bool(hosts(first)[0].members) and hosts(first)[0].members[0].traffic.engines == 4)
        member = hosts(first)[0].members[0]
        assert member.traffic.load == 10.0
        first.replica.traffic.under_way = 9
        assert first.gateway.models[MODEL].pick(None) == (first.replica, first.replica.endpoint())
        first.replica.traffic.under_way = 11
        assert first.gateway.models[MODEL].pick(None) == (member, member.endpoint())
        first.replica.traffic.under_way = 0


# --- keys and headers -------------------------------------------------------------------------------------------


@story
async def test_a_host_gets_its_own_key_and_never_the_clients(tmp_path: Path) -> None:
    key, clients = made(), made()
    async with two(key=key, folder=tmp_path) as (first, second):
        first.replica.leave(LOADING)
        answered = await (await first.connect()).chat(f"Authorization: Bearer {clients}", f"Cookie: {clients}")
        assert answered.status == 200
        head = second.engine.asked[0][0]
        assert clients.encode() not in head
        assert key.encode() not in head, "it is for the gateway, not for its engines"
        assert key not in repr(hosts(first)[0].access)
        assert key not in repr(hosts(first)[0].members[0].endpoint())


@story
async def test_what_a_host_is_sent_says_that_it_was_passed_on_and_has_its_key(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.touch(mode=0o600)
    file.write_text("key-of-the-host")
    async with beside() as (first, other):
        first.gateway.hosts.take(reached(other.port, api_key_file=file))
        await until(lambda: any(b"key-of-the-host" in each for each in other.heads))
        first.replica.leave(LOADING)
        assert (await (await first.connect()).chat("X-Request-Id: 7", "Autolaunch-Hop: 9, 9")).status == 503
        assert (await (await first.connect()).chat("X-Request-Id: 7")).status == 200
        ((head, body),) = other.asked
        assert header_of(head, b"authorization") == b"Bearer key-of-the-host"
        assert header_of(head, b"host") == f"127.0.0.1:{other.port}".encode()
        assert head.lower().count(b"autolaunch-hop") == 1
        assert header_of(head, b"autolaunch-hop") == b"2", "nobody else could be asked: both tries are that host's"
        assert header_of(head, b"x-request-id") == b"7"
        assert json.loads(body) == asked()
        for asking in other.heads:
            assert header_of(asking, b"autolaunch-hop") == b"1"


@pytest.mark.parametrize("status", [401, 403])
@story
async def test_a_host_that_does_not_take_its_key_is_down_and_says_why(status: int) -> None:
    async with beside() as (first, other):
        await heard_of(first)
        for page in other.pages:
            other.pages[page] = (whole({"error": "no"}, status=status),)
        await heard_of(first, "down")
        assert str(status) in (hosts(first)[0].error or "")
        client = await first.connect()
        assert [said((await client.chat(user=str(each))).json) for each in range(6)] == ["here"] * 6


# --- no request goes round --------------------------------------------------------------------------------------


@story
async def test_two_gateways_that_name_each_other_answer_by_themselves_what_the_other_sends() -> None:
    async with two() as (first, second):
        second.gateway.hosts.take(reached(port(first), "h1"))
        await heard_of(second)
        client = await first.connect()
        for of, engine in ((first, second.engine), (second, first.engine)):
            before = len(engine.asked)
            of.replica.leave(LOADING)
            assert (await (await of.connect()).chat()).status == 200
            assert len(engine.asked) == before + 1
            of.replica.serve()
            await until(lambda: all(each.members[0].condition == "serving" for each in (*hosts(first), *hosts(second))))
        # Neither has an engine, and the first does not know that yet of the second.
        first.replica.leave(LOADING)
        second.replica.leave(LOADING)
        refused = await client.chat()
        assert (refused.status, refused.code) == (503, "model_loading")
        assert refused.header("retry-after") is not None
        # Now both have heard: neither is well because it hears of itself from the other.
        await until(lambda: all(hosts(each)[0].members[0].condition == "loading" for each in (first, second)))
        await asyncio.sleep(0.1)  # several rounds of asking: that nothing changes shows in time alone
        assert all(hosts(each)[0].members[0].condition == "loading" for each in (first, second))


@story
async def test_a_request_that_was_passed_on_is_answered_by_an_engine_of_this_host_or_not_at_all() -> None:
    async with two() as (first, second):
        client = await first.connect()
        for number in range(12):
            assert said((await client.chat("Autolaunch-Hop: 1", user=str(number))).json) == "here"
        assert second.engine.asked == []
        first.replica.leave(LOADING)
        assert (await client.chat("Autolaunch-Hop: 1")).code == "model_loading"
        assert second.engine.asked == []


@story
async def test_another_gateway_is_told_of_this_hosts_engines_alone() -> None:
    async with two() as (first, second):
        from tests.fakes.scripted import Standin

        second.reroute(second.replica, Standin(second.engine, "only-there"))
        await until(lambda: "only-there" in first.gateway.models)
        first.replica.leave(LOADING)
        client = await first.connect()
        told = await client.ask("GET", "/v1/models", None, "Autolaunch-Hop: 1")
        ((entry),) = told.json["data"]
        assert (entry["id"], entry["status"], entry["engines"], entry["requests"]) == (MODEL, "loading", 0, 0)
        assert told.header("autolaunch-gateway") == first.gateway.hosts.id
        refused = await client.chat("Autolaunch-Hop: 1", model="only-there")
        assert (refused.status, refused.code) == (404, "model_not_found")
        assert (await client.ask("GET", "/v1/models")).header("autolaunch-gateway") is None


@story
async def test_a_host_that_is_this_gateway_or_one_that_is_there_already_is_none() -> None:
    async with two() as (first, second):
        itself, same = reached(port(first), "itself"), reached(port(second), "same")
        first.gateway.hosts.take((*first_access(first), *itself, *same))
        await until(lambda: [each.state for each in hosts(first)] == ["up", "down", "down"])
        assert "this gateway itself" in (hosts(first)[1].error or "")
        assert "the same gateway as h2" in (hosts(first)[2].error or "")


def first_access(of: House) -> tuple[HostAccess, ...]:
    return (hosts(of)[0].access,)


# --- hosts that end ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["fin", "rst"])
@pytest.mark.parametrize("streamed", [False, True])
@story
async def test_a_host_that_breaks_off_before_its_answer_is_no_loss(end: str, streamed: bool) -> None:
    async with beside() as (first, other):
        await heard_of(first)
        other.usual = (end,)  # type: ignore[assignment]  # one of the two
        client = await first.connect()
        first.engine.usual = (STREAM, event("a", finish="stop"), DONE) if streamed else (whole(HERE),)
        for number in range(20):
            assert (await client.chat(user=f"user {number}", stream=streamed)).status == 200
        assert other.asked, "it was never asked, so nothing was shown"


@pytest.mark.parametrize("streamed", [False, True])
@story
async def test_a_host_that_ends_behind_the_head_of_its_answer_is_no_loss_and_is_asked_at_once(
    monkeypatch: pytest.MonkeyPatch, streamed: bool
) -> None:
    monkeypatch.setattr(other_hosts, "ASK_SECONDS", 600.0)
    async with beside() as (first, other):
        await heard_of(first)
        other.usual = (STREAM, 0.005, "rst") if streamed else (whole(THERE)[:-10], 0.005, "rst")
        first.engine.usual = (STREAM, event("here", finish="stop"), DONE) if streamed else (whole(HERE),)
        first.replica.traffic.under_way = 20
        before = len(other.heads)
        answered = await (await first.connect()).chat(stream=streamed)
        first.replica.traffic.under_way = 0
        assert answered.status == 200
        assert b"here" in answered.body
        assert len(other.asked) == 1
        await until(lambda: len(other.heads) == before + 2)
        await until(lambda: not hosts(first)[0].doubted)


@pytest.mark.parametrize("status", [502, 504])
@pytest.mark.parametrize("streamed", [False, True])
@story
async def test_a_host_whose_proxy_says_that_it_is_gone_is_no_loss(status: int, streamed: bool) -> None:
    async with beside() as (first, other):
        await heard_of(first)
        gone = (whole(b"<html>Bad Gateway</html>", status=status),)
        other.usual = gone
        other.pages = dict.fromkeys(other.pages, gone)
        first.engine.usual = (STREAM, event("here", finish="stop"), DONE) if streamed else (whole(HERE),)
        first.replica.traffic.under_way = 20  # one that answers so fast has always the least to do
        client = await first.connect()
        for _ in range(20):
            answered = await client.chat(stream=streamed)
            assert answered.status == 200
            assert b"here" in answered.body
        first.replica.traffic.under_way = 0
        await heard_of(first, "down")
        assert str(status) in (hosts(first)[0].error or "")
        assert len(other.asked) <= 1, "once is enough"


@story
async def test_proxies_that_say_so_of_every_host_are_asked_twice() -> None:
    async with house() as first:
        others = [Engine() for _ in range(4)]
        for each in others:
            each.pages = {"/health": (whole({}),), "/v1/models": (models("far"),)}
            each.usual = (whole(b"", status=502),)
            await each.start()
        first.gateway.hosts.take(tuple(one for n, each in enumerate(others) for one in reached(each.port, f"h{n}")))
        await heard_of(first)
        refused = await (await first.connect()).chat(model="far")
        assert (refused.status, refused.code) == (503, "engine_died")
        assert sum(len(each.asked) for each in others) == proxy.TRIES
        first.gateway.hosts.take(())
        for each in others:
            each.stop()


@pytest.mark.parametrize("status", [500, 502, 504])
@story
async def test_what_an_engine_says_of_a_request_that_it_failed_on_is_risked_on_no_other(status: int) -> None:
    async with beside() as (first, other):
        await heard_of(first)
        document = {"error": {"message": "no", "type": "server_error", "param": None, "code": "engine_error"}}
        other.usual = (whole(document, status=status),)
        first.replica.traffic.under_way = 20
        answered = await (await first.connect()).chat()
        first.replica.traffic.under_way = 0
        assert (answered.status, answered.code) == (504 if status == 504 else 502, "engine_error")
        assert (len(other.asked), len(first.engine.asked)) == (1, 0)


@story
async def test_a_host_that_fails_on_a_request_is_asked_at_once_whether_it_is_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(other_hosts, "ASK_SECONDS", 600.0)
    async with beside() as (first, other):
        await heard_of(first)
        other.usual = (whole({"error": {"message": "EngineDeadError"}}, status=500),)
        first.replica.traffic.under_way = 20
        client = await first.connect()
        for page, state in ((whole({}), "up"), (whole({}, status=503), "down")):
            before = len(other.heads)
            other.pages["/health"] = (page,)
            await client.chat()
            await until(lambda: len(other.heads) > before)  # noqa: B023 - awaited here
            await until(lambda: (hosts(first)[0].state, hosts(first)[0].doubted) == (state, False))  # noqa: B023
        first.replica.traffic.under_way = 0


@story
async def test_engines_of_hosts_that_a_request_ends_are_two_at_most() -> None:
    async with house() as first:
        others = [Engine() for _ in range(4)]
        document = {"error": {"message": "it has ended", "type": "x", "param": None, "code": "engine_died"}}
        for each in others:
            each.pages = {"/health": (whole({}),), "/v1/models": (models("far"),)}
            each.usual = (whole(document, status=503),)
            await each.start()
        first.gateway.hosts.take(tuple(one for n, each in enumerate(others) for one in reached(each.port, f"h{n}")))
        await heard_of(first)
        refused = await (await first.connect()).chat(model="far")
        assert (refused.status, refused.code) == (503, "engine_died")
        assert sum(len(each.asked) for each in others) == proxy.TRIES
        first.gateway.hosts.take(())
        for each in others:
            each.stop()


ENDS: tuple[Step, ...] = (STREAM, "fin")


@story
async def test_engines_behind_several_gateways_that_a_request_ends_are_two_at_most() -> None:
    """Each gateway would risk two of its own; together they risk two."""
    async with house() as first, house(engines=2) as second, house(engines=2) as third:
        engines = (*first.engines, *second.engines, *third.engines)
        for each in engines:
            each.usual = ENDS
        first.gateway.hosts.take((*reached(port(second), "h2"), *reached(port(third), "h3")))
        for serves in (True, False, True, False):
            first.replica.serve() if serves else first.replica.leave(LOADING)
            await until(lambda: [each.endpoint() is not None for each in first.gateway.hosts] == [True, True])
            for each in engines:
                each.asked.clear()
            answered = await (await first.connect()).chat(stream=True)
            assert (answered.status, answered.code) == (503, "engine_died")
            assert sum(len(each.asked) for each in engines) == proxy.TRIES
        first.gateway.hosts.take(reached(port(second), "h2"))
        await until(lambda: [each.endpoint() is not None for each in first.gateway.hosts] == [True])
        second.engines[0].usual, second.engines[1].usual = ENDS, (STREAM, event("there", finish="stop"), DONE)
        answers = [await (await first.connect()).chat(stream=True, user=str(each)) for each in range(4)]
        assert all(each.status == 200 and b"there" in each.body for each in answers), "its other engine has it"
        first.gateway.hosts.take(())


@story
async def test_a_refusal_tells_the_gateway_that_passed_a_request_on_how_many_engines_had_it() -> None:
    async with house() as one:
        client = await one.connect()
        one.engine.usual = ENDS
        for hop, risked in (("1", 1), ("2", 1), ("0", 1), ("x", 1), ("99", 1)):
            one.engine.asked.clear()
            answered = await client.chat(f"Autolaunch-Hop: {hop}", stream=True)
            assert (answered.status, answered.header("autolaunch-risked")) == (503, str(risked)), hop
            assert len(one.engine.asked) == 1, "there is one engine"
        assert (await client.chat(stream=True)).header("autolaunch-risked") is None


@story
async def test_an_engine_of_a_host_that_ends_behind_comments_is_gone_elsewhere_from() -> None:
    async with two() as (first, second):
        second.engine.usual = (STREAM, chunk(b": keepalive 1/3\n\n"), "fin")
        first.engine.usual = (STREAM, event("here", finish="stop"), DONE)
        first.replica.traffic.under_way += 20  # the host is asked first
        client = await first.connect()
        answered = await client.chat(stream=True)
        first.replica.traffic.under_way -= 20
        assert answered.status == 200
        assert len(second.engine.asked) == 1
        assert b": keepalive" in answered.body
        assert b"here" in answered.body
        assert b"error" not in answered.body


@story
async def test_a_host_that_nobody_listens_at_is_down_and_asked_again_until_it_is_there() -> None:
    async with beside() as (first, other):
        await heard_of(first)
        other.stop()
        await heard_of(first, "down")
        assert "nobody listens" in (hosts(first)[0].error or "")
        assert hosts(first)[0].members[0].endpoint() is None
        client = await first.connect()
        assert [(await client.chat(user=str(each))).status for each in range(8)] == [200] * 8
        await other.start()
        await heard_of(first)
        first.replica.leave(LOADING)
        assert said((await client.chat()).json) == "there"


@story
async def test_more_hosts_than_tries_that_nobody_listens_at_cost_a_request_nothing() -> None:
    async with house() as first:
        first.engine.usual = (whole(HERE),)
        gone = [Engine() for _ in range(4)]
        for each in gone:
            each.pages = {"/health": (whole({}),), "/v1/models": (models(MODEL),)}
            await each.start()
        first.gateway.hosts.take(tuple(one for n, each in enumerate(gone) for one in reached(each.port, f"h{n}")))
        await heard_of(first)
        first.replica.traffic.under_way = 50  # the others are asked first
        for each in gone:
            each.stop()
        answered = await (await first.connect()).chat()
        first.replica.traffic.under_way = 0
        assert (answered.status, said(answered.json)) == (200, "here")


@story
async def test_when_no_host_answers_a_model_that_only_they_have_is_503_with_a_time() -> None:
    async with beside() as (first, other):
        other.pages["/v1/models"] = (models("only-there"),)
        await until(lambda: "only-there" in first.gateway.models)
        other.stop()
        await heard_of(first, "down")
        client = await first.connect()
        refused = await client.chat(model="only-there")
        assert (refused.status, refused.code) == (503, "model_unreachable")
        assert int(refused.header("retry-after") or "0") >= 1
        assert "h2" not in refused.json["error"]["message"], "what hosts are called is nobody's business"
        listed = (await client.ask("GET", "/v1/models")).json["data"]
        assert {each["id"]: each["status"] for each in listed} == {MODEL: "serving", "only-there": "unreachable"}
        # Who prefers to wait is served when it is there again.
        client.send(request("POST", CHAT, asked(model="only-there"), "Prefer: wait=30"))
        await until(lambda: first.under_way == 1)
        await other.start()
        assert (await client.answer()).status == 200


@pytest.mark.parametrize("streamed", [False, True])
@story
async def test_a_host_that_hangs_loses_what_it_has_and_requests_without_an_answer_go_elsewhere(streamed: bool) -> None:
    async with beside() as (first, other):
        await heard_of(first)
        never = asyncio.Event()
        other.usual = (never,)
        first.replica.leave(LOADING)
        client = await first.connect()
        client.send(request("POST", CHAT, asked(stream=streamed)))
        await until(lambda: len(other.asked) == 1)
        other.pages = dict.fromkeys(other.pages, (never,))
        await heard_of(first, "down")
        first.engine.usual = (STREAM, event("here", finish="stop"), DONE) if streamed else (whole(HERE),)
        first.replica.serve()
        answered = await client.answer()
        assert answered.status == 200
        assert b"here" in answered.body


@story
async def test_a_stream_of_a_host_that_hangs_ends_in_an_error_event() -> None:
    async with beside() as (first, other):
        await heard_of(first)
        never = asyncio.Event()
        other.usual = (STREAM, event("a"), never)
        first.replica.leave(LOADING)
        client = await first.connect()
        client.send(request("POST", CHAT, asked(stream=True)))
        await until(lambda: len(other.asked) == 1)
        other.pages = dict.fromkeys(other.pages, (never,))
        told = await client.answer()
        assert told.events[-1] == b"[DONE]"
        assert told.events[-2]["error"]["code"] == "engine_died"


@story
async def test_an_engine_of_another_host_that_dies_midway_is_told_as_one_of_this_host() -> None:
    async with two() as (first, second):
        first.replica.leave(LOADING)
        client = await first.connect()
        second.engine.usual = (STREAM, event("a"), 0.01, "rst")
        told = await client.chat(stream=True)
        assert told.events[-1] == b"[DONE]"
        assert len([each for each in told.events if each != b"[DONE]" and "error" in each]) == 1
        assert told.events[-2]["error"]["code"] == "engine_died"
        assert "ask again" in told.events[-2]["error"]["message"]
        assert told.head.lower().count(b"x-accel-buffering") == 1
        second.engine.usual = (whole({"error": {"message": "at /root/x.py"}}, status=500),)
        failed = await client.chat()
        assert (failed.status, failed.code) == (502, "engine_error")
        assert b"/root" not in failed.body


@story
async def test_what_a_server_of_another_kind_says_of_its_faults_is_not_passed_on() -> None:
    async with beside() as (first, other):
        await heard_of(first)
        first.replica.leave(LOADING)
        for code in (None, 500, "internal", "a" * 500):
            error = {"error": {"message": "at 10.0.0.9: a secret", "type": "x", "code": code}}
            other.usual = (whole(error, status=500),)
            failed = await (await first.connect()).chat()
            assert (failed.status, failed.code) == (502, "engine_error")
            assert b"secret" not in failed.body


@story
async def test_a_stream_that_flows_is_not_cut_however_little_else_its_host_answers() -> None:
    async with beside() as (first, other):
        await heard_of(first)
        steps = [step for number in range(60) for step in (event(str(number)), 0.02)]
        other.usual = (STREAM, *steps, event("end", finish="stop"), DONE)
        first.replica.leave(LOADING)
        client = await first.connect()
        client.send(request("POST", CHAT, asked(stream=True)))
        await until(lambda: len(other.asked) == 1)
        other.pages = dict.fromkeys(other.pages, (asyncio.Event(),))
        told = await client.answer()
        assert hosts(first)[0].state == "down"
        assert len(told.events) == 62
        assert b"error" not in told.body


@story
async def test_a_client_that_leaves_takes_its_request_at_the_other_host_with_it() -> None:
    async with two() as (first, second):
        second.engine.usual = (STREAM, event("a"), asyncio.Event())
        first.replica.leave(LOADING)
        client = await first.connect()
        client.send(request("POST", CHAT, asked(stream=True)))
        await until(lambda: len(second.engine.asked) == 1)
        client.leave()
        await until(lambda: second.under_way == 0 and first.under_way == 0)
        await until(lambda: not second.engine.links)


@story
async def test_an_event_of_another_host_is_with_the_client_before_the_next_is_sent() -> None:
    async with two() as (first, second):
        goes = [asyncio.Event() for _ in range(3)]
        script = [step for number, go in enumerate(goes) for step in (event(str(number)), go)]
        second.engine.usual = (STREAM, *script, event("", finish="stop"), DONE)
        first.replica.leave(LOADING)
        client = await first.connect()
        client.send(request("POST", CHAT, asked(stream=True)))
        await client.head()
        for number, go in enumerate(goes):
            assert json.loads((await client.piece())[6:])["choices"][0]["delta"]["content"] == str(number)
            go.set()
        while await client.piece():
            pass


# --- hosts that do not take a request ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code"), [(503, "model_loading"), (429, "queue_full"), (404, "model_not_found"), (401, "x"), (403, "x")]
)
@story
async def test_a_host_that_does_not_take_a_request_is_passed_over(status: int, code: str) -> None:
    async with beside() as (first, other):
        await heard_of(first)
        document = {"error": {"message": "not now", "type": "x", "param": None, "code": code}}
        other.usual = (whole(document, status=status, headers=("Retry-After: 7",)),)
        first.replica.traffic.under_way = 20
        answered = await (await first.connect()).chat()
        first.replica.traffic.under_way = 0
        assert (answered.status, said(answered.json)) == (200, "here")
        assert len(other.asked) == 1


@pytest.mark.parametrize(("status", "expected"), [(503, (503, "model_loading")), (429, (429, "queue_full"))])
@story
async def test_when_none_takes_it_the_client_is_told_when_to_come_again(status: int, expected: tuple[int, str]) -> None:
    async with beside() as (first, other):
        await heard_of(first)
        first.replica.leave(LOADING if status == 503 else Standing(condition="failed", message="has failed"))
        code = "model_loading" if status == 503 else "queue_full"
        document = {"error": {"message": "not now", "type": "x", "param": None, "code": code}}
        other.usual = (whole(document, status=status, headers=("Retry-After: 7",)),)
        refused = await (await first.connect()).chat()
        assert (refused.status, refused.code) == expected
        assert refused.header("retry-after") == "7"


@story
async def test_what_a_host_says_is_wrong_with_a_request_is_its_clients_with_its_code() -> None:
    async with beside() as (first, other):
        await heard_of(first)
        first.replica.leave(LOADING)
        client = await first.connect()
        for status, code, param in ((400, "invalid_request", "messages"), (404, "not_supported", None)):
            error = {"message": "it is wrong", "type": "invalid_request_error", "param": param, "code": code}
            other.usual = (whole({"error": error}, status=status),)
            refused = await client.chat()
            assert (refused.status, refused.code) == (status, code)
            assert refused.json["error"]["message"] == "it is wrong"
            assert refused.json["error"]["param"] == param


@story
async def test_a_model_that_sleeps_on_another_host_is_woken_by_a_request_where_none_serves() -> None:
    asleep = Standing(condition="asleep", message="was stopped because nobody asked", retry_seconds=9.0)
    async with two() as (first, second):
        second.replica.leave(asleep)
        await until(lambda: hosts(first)[0].members[0].condition == "asleep")
        client = await first.connect()
        assert [said((await client.chat(user=str(each))).json) for each in range(8)] == ["here"] * 8
        assert second.replica.woken == 0
        first.replica.leave(LOADING)
        assert (await client.chat()).status == 503
        assert second.replica.woken == 1


# --- what a host says of itself ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("page", "words"),
    [
        (whole({}, status=302, headers=("Location: http://127.0.0.1:1/v1/models",)), "redirection"),
        (whole({}, status=500), "500"),
        (whole(b"<html>"), "no JSON"),
        (whole([]), "no list"),
        (whole({"data": {}}), "no list"),
        (whole(b"[" * 100_000), "no JSON"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n" + b"a" * 2_000_000, "longer"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "no HTTP"),
    ],
    ids=["redirected", "500", "html", "list", "object", "nested", "long", "ssh"],
)
@story
async def test_a_host_whose_list_is_none_is_down_and_says_why(page: bytes, words: str) -> None:
    async with beside(**{"/v1/models": (page,)}) as (first, _):
        await heard_of(first, "down")
        assert words in (hosts(first)[0].error or "")


@story
async def test_of_a_list_only_names_that_can_be_asked_for_are_taken_and_only_so_many() -> None:
    many = [{"id": f"m{number}", "status": "serving"} for number in range(500)]
    odd = [{"id": each} for each in ("../etc", "a b", "", 7, None, "x" * 500)] + [7, {"status": "serving"}]
    async with beside(**{"/v1/models": (whole({"data": [*odd, *many]}),)}) as (first, _):
        await heard_of(first)
        names = [each.name for each in hosts(first)[0].members]
        assert names == [f"m{number}" for number in range(64)]


@story
async def test_figures_of_a_list_that_cannot_be_are_not_taken() -> None:
    odd = models(MODEL, status="odd", max_model_len=-4, requests=10**40, engines="9")
    async with beside(**{"/v1/models": (odd,)}) as (first, _):
        await heard_of(first)
        (member,) = hosts(first)[0].members
        assert (member.condition, member.context_tokens) == ("loading", None)
        assert (member.traffic.of_others, member.traffic.engines) == (0, 1)


@story
async def test_a_server_of_another_kind_that_tells_less_is_taken_as_serving() -> None:
    async with beside(**{"/health": (whole({}, status=404),)}) as (first, other):
        await heard_of(first)
        first.replica.leave(LOADING)
        client = await first.connect()
        assert (await client.chat()).status == 200
        other.pages["/v1/models"] = (whole({}, status=404),)
        first.gateway.hosts.take(reached(other.port, models=(MODEL,)))
        await asyncio.sleep(0.1)  # several rounds of asking: that nothing changes shows in time alone
        assert (await client.chat()).status == 200


@story
async def test_readiness_waits_for_the_first_word_of_hosts_and_for_none_where_something_serves() -> None:
    go = asyncio.Event()
    async with beside(**{"/health": (go, whole({}))}) as (first, other):
        client = await first.connect()
        waits = await client.ask("GET", "/ready")
        assert (waits.status, waits.json["status"]) == (503, "waiting")
        unknown = await client.chat(model="perhaps-there")
        assert (unknown.status, unknown.header("retry-after")) == (503, "1")
        go.set()
        await heard_of(first)
        assert (await client.ask("GET", "/ready")).status == 200
        assert (await client.chat(model="perhaps-there")).status == 404
        other.pages["/v1/models"] = (models("only-there"),)
        await until(lambda: "only-there" in first.gateway.models)
        other.stop()
        await heard_of(first, "down")
        ready = await client.ask("GET", "/ready")
        assert (ready.status, ready.json["models"]) == (200, {MODEL: "serving", "only-there": "unreachable"})
        first.reroute()
        assert (await client.ask("GET", "/ready")).status == 503


@story
async def test_what_happens_to_a_host_is_told_once() -> None:
    told: list[tuple[str, str, str, str]] = []
    async with beside() as (first, other):
        first.gateway.hosts.tell = lambda *said: told.append(said)
        await heard_of(first)
        other.stop()
        await heard_of(first, "down")
        await asyncio.sleep(0.1)  # several rounds of asking: that nothing changes shows in time alone
        await other.start()
        await heard_of(first)
        await asyncio.sleep(0.1)  # several rounds of asking: that nothing changes shows in time alone
    assert [(level, name, host) for level, name, host, _ in told] == [
        ("info", "host.up", "h2"),
        ("warning", "host.down", "h2"),
        ("info", "host.up", "h2"),
    ]
    assert told[0][3] == f"serves {MODEL} at http://127.0.0.1:{other.port}"
    assert "nobody listens" in told[1][3]


# --- other configurations ---------------------------------------------------------------------------------------


@story
async def test_a_reload_changes_hosts_and_drops_no_request() -> None:
    async with two() as (first, second):
        go = asyncio.Event()
        second.engine.usual = (STREAM, event("a"), go, event("b", finish="stop"), DONE)
        first.replica.leave(LOADING)
        held = [await first.connect() for _ in range(3)]
        client = await first.connect()
        options = GatewayOptions()
        access = hosts(first)[0].access

        async def begun(number: int) -> None:
            held[number].send(request("POST", CHAT, asked(stream=True)))
            await until(lambda: len(second.engine.asked) == number + 1)

        await begun(0)
        await first.gateway.reload(options, None, None, (access,))
        before = hosts(first)[0]
        assert before.state == "up"
        await begun(1)
        # Another key of the same host: it stays in use.
        await first.gateway.reload(options, None, None, reached(port(second), models=(MODEL,)))
        assert hosts(first)[0] is before
        await begun(2)
        await first.gateway.reload(options, None, None, ())
        assert (await client.chat()).code == "model_loading"
        go.set()
        for each in held:
            told = await each.answer()
            assert told.events[-1] == b"[DONE]"
            assert b"error" not in told.body


@story
async def test_hosts_are_asked_no_more_when_the_gateway_has_closed() -> None:
    async with beside() as (first, other):
        await heard_of(first)
        await first.gateway.close()
        await until(lambda: not other.links)
        before = len(other.heads)
        await asyncio.sleep(0.1)  # several rounds of asking: that nothing changes shows in time alone
        assert len(other.heads) == before


def test_without_hosts_there_is_nothing_to_ask() -> None:
    none = Hosts()
    assert (list(none), none.asking, none.all) == ([], False, ())


# --- over TLS ---------------------------------------------------------------------------------------------------


class Encrypted(Engine):
    """A script behind TLS, with the certificate of the tests."""

    async def start(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(TLS / "server.pem", TLS / "server.key")
        self.serve_over(context)
        await super().start()


def over_tls(other: Engine, **more: object) -> tuple[HostAccess, ...]:
    url = f"https://127.0.0.1:{other.port}"
    return accesses((HostOptions(url=url, name="h2", **more),))  # type: ignore[arg-type]  # a test's own


@story
async def test_over_tls_a_host_is_asked_and_streams_and_its_certificate_is_checked() -> None:
    other = Encrypted()
    other.pages = {"/health": (whole({}),), "/v1/models": (models(MODEL),)}
    await other.start()
    try:
        async with house() as first:
            first.replica.leave(LOADING)
            first.gateway.hosts.take(over_tls(other))
            await heard_of(first, "down")
            assert "TLS fails" in (hosts(first)[0].error or "")
            assert other.asked == []
            first.gateway.hosts.take(over_tls(other, ca_file=TLS / "server.pem"))
            await heard_of(first)
            client = await first.connect()
            other.usual = (whole(THERE),)
            assert said((await client.chat()).json) == "there"
            other.usual = (STREAM, event("a"), event("b", finish="stop"), DONE)
            assert len((await client.chat(stream=True)).events) == 3
            other.usual = (STREAM, event("a"), 0.01, "fin")
            assert (await client.chat(stream=True)).events[-2]["error"]["code"] in ("engine_died", "engine_error")
            # A certificate of another name is no certificate.
            access = accesses((HostOptions(url=f"https://[::1]:{other.port}", ca_file=TLS / "server.pem"),))[0]
            context = access.tls()
            assert context is not None
            with pytest.raises(ssl.SSLCertVerificationError):
                await asyncio.open_connection("127.0.0.1", other.port, ssl=context, server_hostname="h2.example")
            first.gateway.hosts.take(())
    finally:
        other.stop()
    await until(lambda: not other.links)


@story
async def test_a_host_that_speaks_no_tls_is_down_and_says_so() -> None:
    async with house() as first, house() as second:
        first.gateway.hosts.take(accesses((HostOptions(url=f"https://127.0.0.1:{port(second)}"),)))
        await heard_of(first, "down")
        assert "TLS fails" in (hosts(first)[0].error or "")
        first.gateway.hosts.take(())
