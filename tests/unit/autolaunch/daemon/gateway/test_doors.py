"""Who is let in: the addresses, pages and keys of requests."""

from __future__ import annotations

import asyncio

import pytest

from autolaunch.daemon.gateway.keys import Keys, key_of, made
from autolaunch.daemon.gateway.options import GatewayOptions
from tests.fakes.scripted import DONE, MODEL, STREAM, House, asked, event, house, request, story, until

PAGE = "https://chat.example.com"
ROUTES = (
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/responses"),
    ("POST", "/v1/embeddings"),
    ("POST", "/v1/messages"),
    ("POST", "/v1/messages/count_tokens"),
    ("GET", "/v1/models"),
    ("GET", f"/v1/models/{MODEL}"),
    ("GET", "/health"),
    ("GET", "/ready"),
    ("GET", "/metrics"),
    ("GET", "/"),
    ("GET", "/nothing"),
    ("HEAD", "/v1/models"),
    ("DELETE", f"/v1/models/{MODEL}"),
    ("TRACE", "/health"),
)


def one_key() -> tuple[str, Keys]:
    secret = made()
    return secret, Keys(entries=(key_of("web", secret),))


# --- addresses ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "LOCALHOST", "localhost:8000", "localhost.", "Localhost.:1", "ip6-localhost", "127.0.0.1"),
        *("127.0.0.1:65535", "127.9.9.9", "192.168.1.5:8000", "[::1]", "[::1]:8000", "[fe80::1]:80", "10.0.0.1"),
        *("gpu.example.com", "GPU.Example.COM:443", "gpu.example.com."),
    ],
)
@story
async def test_a_request_to_an_address_or_a_name_of_ours_is_served(host: str) -> None:
    async with house(GatewayOptions(allowed_hosts=("gpu.example.com",))) as found:
        client = await found.connect()
        for _ in range(2):
            assert (await client.ask("GET", "/health", None, f"Host: {host}")).status == 200


@pytest.mark.parametrize(
    "host",
    [
        *(
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "evil.example:8000",
            "sub.gpu.example.com",
        ),
        *("", ":8000", "[::1", "::1]", "[]", "localhost:", "localhost:80:80", "localhost:123456", "local host"),
        *(
            "localhost, evil.example",
            "user@localhost",
            "localhost/",
            "http://localhost",
            "a" * 300,
            "[v1.a]",
            ".",
            "..",
        ),
        *("0x7f000001", "2130706433", "localhost\\", "localhost#", "localhost%00", "b\xfccher.example"),
    ],
)
@story
async def test_a_request_to_any_other_name_is_refused(host: str) -> None:
    async with house(GatewayOptions(allowed_hosts=("gpu.example.com",))) as found:
        client = await found.connect()
        for method, path in (("GET", "/health"), ("POST", "/v1/chat/completions"), ("OPTIONS", "/v1/models")):
            refused = await client.ask(method, path, asked() if method == "POST" else None, f"Host: {host}")
            assert (refused.status, refused.code) == (403, "foreign_host")
        assert found.engine.asked == []


@story
async def test_a_request_has_one_host(swift: None) -> None:
    async with house() as found:
        client = await found.connect()
        for head in (
            b"GET /health HTTP/1.1\r\n\r\n",
            b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
            b"GET /health HTTP/1.1\r\nHost: localhost\r\nhost: evil.example\r\n\r\n",
        ):
            client.send(head)
            refused = await client.answer()
            assert (refused.status, refused.code) == (400, "host")
        client.send(b"GET /health HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert (await client.answer()).status == 200


# --- pages ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "", "http://localhost:3000", f"{PAGE}.evil.example", f"{PAGE}:8443", "*"]
)
@story
async def test_a_page_that_nobody_allowed_is_refused_and_told_of_no_leave(origin: str) -> None:
    async with house(GatewayOptions(allowed_origins=(PAGE,))) as found:
        client = await found.connect()
        for method, path in (("GET", "/v1/models"), ("POST", "/v1/chat/completions"), ("OPTIONS", "/v1/models")):
            refused = await client.ask(method, path, asked() if method == "POST" else None, f"Origin: {origin}")
            assert (refused.status, refused.code) == (403, "foreign_origin")
            assert b"access-control-" not in refused.head
        assert found.engine.asked == []


@story
async def test_a_page_that_is_allowed_may_read_answers_and_refusals() -> None:
    async with house(GatewayOptions(allowed_origins=(PAGE,))) as found:
        client = await found.connect()
        for answered in (
            await client.ask("GET", "/v1/models", None, f"Origin: {PAGE}"),
            await client.ask("GET", "/nothing", None, f"Origin: {PAGE}"),
            await client.chat(f"Origin: {PAGE}"),
            await client.chat(f"Origin: {PAGE}", model="nobody"),
        ):
            assert answered.header("access-control-allow-origin") == PAGE
            assert answered.header("vary") == "Origin"
        assert b"access-control" not in (await client.ask("GET", "/v1/models")).head


@story
async def test_a_page_that_is_allowed_may_read_a_stream() -> None:
    async with house(GatewayOptions(allowed_origins=(PAGE,))) as found:
        found.engine.usual = (STREAM, event("a", finish="stop"), DONE)
        answered = await (await found.connect()).chat(f"Origin: {PAGE}", stream=True)
        assert answered.header("access-control-allow-origin") == PAGE


@story
async def test_two_origins_are_both_looked_at() -> None:
    async with house(GatewayOptions(allowed_origins=(PAGE,))) as found:
        client = await found.connect()
        refused = await client.ask("GET", "/v1/models", None, f"Origin: {PAGE}", "Origin: https://evil.example")
        assert refused.status == 403


@story
async def test_a_browser_is_told_before_it_sends_a_pages_request_and_needs_no_key_for_that() -> None:
    _, keys = one_key()
    async with house(GatewayOptions(allowed_origins=(PAGE,)), keys=keys) as found:
        client = await found.connect()
        wants = ("Access-Control-Request-Method: POST", "Access-Control-Request-Headers: authorization,content-type")
        told = await client.ask("OPTIONS", "/v1/chat/completions", None, f"Origin: {PAGE}", *wants)
        assert (told.status, told.header("access-control-allow-origin")) == (204, PAGE)
        assert "POST" in (told.header("access-control-allow-methods") or "")
        assert "authorization" in (told.header("access-control-allow-headers") or "").lower()
        assert told.header("access-control-allow-credentials") is None


# --- keys -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), ROUTES)
@story
async def test_nothing_is_answered_without_a_key(method: str, path: str) -> None:
    secret, keys = one_key()
    async with house(keys=keys) as found:
        client = await found.connect()
        body = asked() if method == "POST" else None
        for wrong in ((), (f"Authorization: Bearer {made()}",), (f"X-Api-Key: {secret[:-1]}",)):
            refused = await client.ask(method, path, body, *wrong)
            assert refused.status == 401
            assert refused.header("www-authenticate") == "Bearer"
            assert secret[:-1] not in refused.body.decode()
        assert (await client.ask(method, path, body, f"Authorization: Bearer {secret}")).status != 401
        assert len(found.engine.asked) == (path.startswith("/v1/") and method == "POST")


@pytest.mark.parametrize("credentials", ["Authorization: Bearer {}", "authorization: bearer   {}", "x-api-key: {}"])
@story
async def test_a_key_is_taken_as_openais_and_as_anthropics_clients_send_it(credentials: str) -> None:
    secret, keys = one_key()
    async with house(keys=keys) as found:
        assert (await (await found.connect()).chat(credentials.format(secret))).status == 200


@pytest.mark.parametrize(
    "credentials",
    [
        ("Authorization: Bearer {0}", "Authorization: Bearer {0}"),
        ("Authorization: Bearer {0}", "authorization: Bearer {1}"),
        ("X-Api-Key: {0}", "X-Api-Key: {0}"),
        ("Authorization: Bearer {0}", "X-Api-Key: {1}"),
        ("Authorization: Basic {0}",),
        ("Authorization: {0}",),
        ("Authorization: Bearer",),
        ("Authorization: Bearer {0},{0}",),
        ("Authorization: Bearer {0}\xff",),
        ("Proxy-Authorization: Bearer {0}",),
        ("Cookie: key={0}",),
        ("X-Api-Key:",),
        ("Authorization: Bearer " + "a" * 20_000,),
    ],
)
@story
async def test_wrong_and_repeated_credentials_are_401(credentials: tuple[str, ...]) -> None:
    secret, keys = one_key()
    async with house(keys=keys) as found:
        sent = [each.format(secret, made()) for each in credentials]
        refused = await (await found.connect()).chat(*sent)
        assert (refused.status, refused.code) == (401, "invalid_api_key")
        assert secret not in refused.body.decode()
        assert found.engine.asked == []


@story
async def test_a_key_in_the_address_is_none() -> None:
    secret, keys = one_key()
    async with house(keys=keys) as found:
        assert (await (await found.connect()).ask("GET", f"/v1/models?api_key={secret}")).status == 401


@story
async def test_a_refusal_has_the_form_of_its_dialect() -> None:
    _, keys = one_key()
    async with house(keys=keys) as found:
        client = await found.connect()
        assert (await client.ask("POST", "/v1/messages", asked())).json["type"] == "error"
        assert set((await client.chat()).json["error"]) == {"message", "type", "param", "code"}


@story
async def test_who_has_no_key_is_refused_before_the_body_is_read(swift: None) -> None:
    _, keys = one_key()
    async with house(keys=keys) as found:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        for framing in (b"Content-Length: 60000000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n"):
            client = await found.connect()
            client.send(head + framing)
            refused = await client.answer()
            assert (refused.status, refused.header("connection")) == (401, "close")
            client.send(b"a" * 100_000)  # some send before they read; that must not cost them the answer
            assert await client.rest() == b""


@story
async def test_only_the_paths_that_were_opened_need_no_key() -> None:
    _, keys = one_key()
    async with house(GatewayOptions(open_paths=("/health", "/metrics")), keys=keys) as found:
        client = await found.connect()
        for path, expected in (
            *(("/health", 200), ("/metrics", 200), ("/ready", 401), ("/health/", 401), ("/Health", 401)),
            *(("//health", 401), ("/health/../v1/models", 401), ("/health%2f", 401), ("/health?x=1", 200)),
        ):
            assert (await client.ask("GET", path)).status == expected, path


# --- other doors later ----------------------------------------------------------------------------------------


@story
async def test_other_keys_and_options_hold_for_connections_that_are_open_already() -> None:
    secret, keys = one_key()
    other, others = one_key()

    async def statuses(found: House) -> tuple[int, int, int]:
        mine = (await client.ask("GET", "/v1/models", None, f"Authorization: Bearer {secret}")).status
        theirs = (await client.ask("GET", "/v1/models", None, f"Authorization: Bearer {other}")).status
        return mine, theirs, (await client.ask("GET", "/health", None, "Host: new.example")).status

    async with house(keys=keys) as found:
        client = await found.connect()
        assert await statuses(found) == (200, 401, 403)
        await found.gateway.reload(GatewayOptions(allowed_hosts=("new.example",)), others, None)
        assert await statuses(found) == (401, 200, 401)
        await found.gateway.reload(GatewayOptions(allowed_hosts=("new.example",), body_bytes=10), None, None)
        assert await statuses(found) == (200, 200, 200)
        assert (await client.chat()).status == 413


@story
async def test_a_stream_under_way_outlives_the_key_it_was_begun_with() -> None:
    secret, keys = one_key()
    _, others = one_key()
    async with house(keys=keys) as found:
        go = asyncio.Event()
        found.engine.usual = (STREAM, event("a"), go, event("b", finish="stop"), DONE)
        client = await found.connect()
        client.send(request("POST", "/v1/chat/completions", asked(stream=True), f"X-Api-Key: {secret}"))
        await until(lambda: found.under_way == 1)
        await found.gateway.reload(GatewayOptions(), others, None)
        go.set()
        assert (await client.answer()).events[-1] == b"[DONE]"
        assert (await client.chat(f"X-Api-Key: {secret}")).status == 401
