"""The keys of clients: what a file of them may say, whose key was presented, and that none is ever shown."""

from __future__ import annotations

import hashlib
import hmac
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autolaunch.daemon.gateway import keys
from autolaunch.daemon.gateway.keys import Key, Keys, Wrong, key_of, made, presented
from selector.errors import ConfigurationError, UsageError


def line(name: str, secret: str) -> str:
    return key_of(name, secret).line


def written(folder: Path, text: str | bytes, mode: int = 0o640) -> Path:
    path = folder / "keys"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)
    return path


def refused(path: Path) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        Keys.read(path)
    assert caught.value.exit_code == 78
    assert str(path) in caught.value.message
    return caught.value


def test_a_key_is_known_by_its_name(tmp_path: Path) -> None:
    first, second = made(), made()
    path = written(tmp_path, f"# clients\n{line('web', first)}\n\n  {line('batch.1', second)}  \r\n")
    found = Keys.read(path)
    assert found.names == ("web", "batch.1")
    assert found.name_of(first) == "web"
    assert found.name_of(second.encode()) == "batch.1"


def test_what_is_no_key_is_nobodys(tmp_path: Path) -> None:
    secret = made()
    found = Keys.read(written(tmp_path, line("web", secret)))
    digest = found.entries[0].digest
    nobodys: tuple[str | bytes | None, ...] = (
        *(None, "", b"", secret[:-1], secret + "a", secret.upper(), f" {secret}", "web", digest, digest.hex()),
        *("\udcff" * 30, "x" * 10_000_000, b"\x00" * 43, "é" * 43),
    )
    for each in nobodys:
        assert found.name_of(each) is None


def test_a_key_that_is_too_long_is_not_even_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Keys.read(written(tmp_path, line("web", made())))

    def hashed(_: bytes) -> None:
        raise AssertionError("hashed")

    monkeypatch.setattr(hashlib, "sha256", hashed)
    assert found.name_of("x" * (keys.MOST_CHARACTERS + 1)) is None


@pytest.mark.parametrize("place", [0, 3, 6, None])
def test_a_key_is_compared_with_all_of_them_wherever_it_stands(
    place: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = [made() for _ in range(7)]
    found = Keys(entries=tuple(key_of(f"client-{number}", secret) for number, secret in enumerate(secrets)))
    compared: list[bytes] = []
    compare = hmac.compare_digest

    def noted(one: bytes, other: bytes) -> bool:
        compared.append(other)
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", noted)
    name = found.name_of("not-any-of-them-at-all" if place is None else secrets[place])
    assert name == (None if place is None else f"client-{place}")
    assert compared == [each.digest for each in found.entries]


def test_neither_keys_nor_hashes_are_in_what_is_shown_of_them() -> None:
    secret = made()
    key = key_of("web", secret)
    for shown in (repr(key), str(key), repr(Keys(entries=(key,))), str((Keys(entries=(key,)),)), f"{key}"):
        assert "web" in shown
        assert secret not in shown
        assert key.digest.hex() not in shown
        assert repr(key.digest) not in shown


def test_keys_of_ours_are_random_and_stand_in_any_header() -> None:
    several = {made() for _ in range(100)}
    assert len(several) == 100
    for each in several:
        assert each.startswith("al-")
        assert len(each) == 3 + 43
        assert each.removeprefix("al-").replace("-", "").replace("_", "").isalnum()
        assert key_of("x", each).digest == hashlib.sha256(each.encode()).digest()


@pytest.mark.parametrize(
    "secret", ["", "short", "x" * 19, "x" * 513, "x" * 30 + " ", "x" * 30 + "\n", "ключ" * 10, "x" * 30 + "\0"]
)
def test_a_key_that_can_be_guessed_or_sent_by_nobody_is_refused_unseen(secret: str) -> None:
    with pytest.raises(UsageError) as caught:
        key_of("web", secret)
    assert not secret or secret not in caught.value.message + (caught.value.hint or "")


@pytest.mark.parametrize("name", ["", "-web", "a b", "a:b", "#web", "x" * 65, "wéb", "web\n", "..", "al-" + "x" * 80])
def test_a_name_is_one_word_and_a_wrong_one_is_not_repeated(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        key_of(name, made())
    assert name in ("", "..") or name not in caught.value.message


GOOD = key_of("good", "k" * 20).line
SENTINEL = "hunter2-hunter2-hunter2"
MALFORMED = {
    "a key itself": SENTINEL,
    "a key with its name": f"web:{SENTINEL}",
    "a key named as a hash": f"web:sha256:{SENTINEL}",
    "a key after a hash": f"{GOOD}:{SENTINEL}",
    "a key before a hash": f"{SENTINEL} {GOOD}",
    "another hash": f"web:sha512:{'a' * 64}{SENTINEL}",
    "a hash too short": f"web:sha256:{'a' * 63}",
    "no hash": "web:sha256:",
    "no name": f":sha256:{'a' * 64}",
    "a name of two words": f"{SENTINEL} b:sha256:{'a' * 64}",
    "full-width figures": "web:sha256:" + "\uff11" * 64,
    "an assignment": f"OPENAI_API_KEY={SENTINEL}",
    "NUL": f"web:sha256:{'a' * 64}\0{SENTINEL}",
}


@pytest.mark.parametrize("wrong", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_line_is_refused_by_its_number_and_not_repeated(wrong: str, tmp_path: Path) -> None:
    error = refused(written(tmp_path, f"# first\n{GOOD}\n{wrong}\n"))
    assert "line 3 " in error.message
    assert error.hint is not None
    assert "autolaunch keys add" in error.hint
    assert SENTINEL not in error.message + error.hint


@given(wrong=st.text(min_size=12, max_size=200).filter(lambda text: text.strip() and not text.strip().startswith("#")))
def test_whatever_stands_in_the_file_none_of_it_is_in_the_refusal(
    wrong: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("keys")
    path = written(folder, wrong.encode(errors="surrogatepass"))
    error = refused(path)
    said = (error.message + (error.hint or "")).replace(str(path), "")
    pieces = [wrong[start : start + 12] for start in range(0, len(wrong) - 11, 12)]
    assert not [piece for piece in pieces if piece in said]
    assert error.__cause__ is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no key in it"),
        ("# nothing\n\n", "no key in it"),
        (f"{GOOD}\n{GOOD}\n", "line 2 has the same name as line 1"),
        (f"{GOOD}\n# a\nother{GOOD.removeprefix('good')}\n", "line 3 has the same key as line 1"),
        (f"{GOOD}\n".encode() + b"web:sha256:\xff\xfe", "line 2 is not UTF-8"),
        ("# " + "x" * keys.MAXIMUM_BYTES, "larger than 256 KiB"),
        ("".join(f"c{n}:sha256:{n:064x}\n" for n in range(1001)), "more than 1000 keys"),
    ],
)
def test_a_file_that_lets_in_nobody_or_says_it_twice_is_refused(text: str | bytes, said: str, tmp_path: Path) -> None:
    assert said in refused(written(tmp_path, text)).message


@pytest.mark.parametrize("mode", [0o660, 0o602, 0o666, 0o620])
def test_a_file_that_others_may_write_is_refused(mode: int, tmp_path: Path) -> None:
    error = refused(written(tmp_path, GOOD, mode))
    assert f"{mode:04o}" in error.message
    assert error.hint is not None
    assert "chmod go-w" in error.hint


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o400])
def test_a_file_that_others_may_read_is_taken_for_hashes_are_no_keys(mode: int, tmp_path: Path) -> None:
    assert Keys.read(written(tmp_path, GOOD, mode)).names == ("good",)


def test_what_is_no_file_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "is no regular file" in refused(tmp_path / "pipe").message
    assert "is a directory" in refused(tmp_path).message
    assert "is no regular file" in refused(Path("/dev/zero")).message
    missing = refused(tmp_path / "missing")
    assert "there is no such file" in missing.message
    assert missing.hint == f"autolaunch keys add NAME --file {tmp_path / 'missing'} makes it"


def test_a_file_is_found_through_a_link_as_mounted_secrets_are(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(written(tmp_path, GOOD))
    assert Keys.read(tmp_path / "link").names == ("good",)


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ([], None),
        ([("Accept", "x")], None),
        ([("Authorization", "Bearer abc")], "abc"),
        ([("authorization", "bearer   abc ")], "abc"),
        ([("X-Api-Key", "abc")], "abc"),
        ([("x-api-key", "abc"), ("AUTHORIZATION", "Bearer abc")], "abc"),
    ],
)
def test_a_key_comes_as_a_bearer_or_as_anthropics_clients_send_it(
    headers: list[tuple[str, str]], found: str | None
) -> None:
    assert presented(iter(headers)) == found


@pytest.mark.parametrize(
    "headers",
    [
        [("Authorization", f"Bearer {SENTINEL}"), ("authorization", f"Bearer {SENTINEL}")],
        [("x-api-key", SENTINEL), ("X-API-KEY", "other")],
        [("Authorization", f"Bearer {SENTINEL}"), ("x-api-key", "other")],
        [("Authorization", f"Bearer {SENTINEL}"), ("x-api-key", "")],
        [("Authorization", f"Basic {SENTINEL}")],
        [("Authorization", SENTINEL)],
        [("Authorization", "Bearer ")],
        [("Authorization", "")],
        [("x-api-key", " ")],
    ],
)
def test_credentials_that_are_repeated_or_of_another_kind_are_wrong(headers: list[tuple[str, str]]) -> None:
    found = presented(headers)
    assert isinstance(found, Wrong)
    assert found.reason
    assert SENTINEL not in repr(found)


def test_a_key_has_one_form_as_a_line() -> None:
    key = key_of("web", "k" * 20)
    assert key.line == f"web:sha256:{hashlib.sha256(b'k' * 20).hexdigest()}"
    assert Key(name="web", digest=key.digest) == key
