"""The table ``[gateway]``: what of it is refused, by its key, before anything listens."""

from __future__ import annotations

from pathlib import Path

import pytest

from autolaunch.daemon.configuration import read
from autolaunch.daemon.gateway.keys import key_of
from autolaunch.daemon.gateway.options import GatewayOptions
from selector.catalog import Catalog
from selector.errors import ConfigurationError

ONE = '[[deployments]]\nmodel = "glm-4.6"\n'
SENTINEL = "hunter2-hunter2-hunter2"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(key_of("web", SENTINEL).line)
    path.chmod(0o640)
    return path


def gateway(folder: Path, known: Catalog, table: str) -> GatewayOptions:
    path = folder / "autolaunch.toml"
    path.write_text(f"{ONE}[gateway]\n{table}\n")
    return read(path, known).gateway


def refused(folder: Path, known: Catalog, table: str) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as told:
        gateway(folder, known, table)
    assert told.value.exit_code == 78
    assert "\n" not in told.value.message
    return told.value


def test_without_the_table_the_gateway_is_on_loopback(tmp_path: Path, catalog: Catalog) -> None:
    path = tmp_path / "autolaunch.toml"
    path.write_text(ONE)
    assert read(path, catalog).gateway == GatewayOptions(host="127.0.0.1", port=8000, keys_file=None)


def test_everything_that_is_written_is_kept_in_the_form_of_requests(
    tmp_path: Path, catalog: Catalog, keys: Path
) -> None:
    found = gateway(
        tmp_path,
        catalog,
        f"""
host = "0.0.0.0"
port = 8443
keys_file = "{keys}"
allowed_hosts = ["Models.Example.COM", "gpu_1", "192.0.2.7", "2001:DB8:0:0::1"]
allowed_origins = ["https://Chat.example.com", "https://a.example:443", "http://localhost:3000", "http://[::1]:80",
  "http://[0:0::1]:81", "chrome-extension://abcdef"]
open_paths = ["/health", "/metrics"]
body_bytes = 1024
header_seconds = 0.5
body_seconds = 3
idle_seconds = 1e2
connections = 2
queue = 1
wait_seconds = 60
""",
    )
    assert found == GatewayOptions(
        host="0.0.0.0",  # noqa: S104 - nothing listens: it is what was written
        port=8443,
        keys_file=keys,
        allowed_hosts=("models.example.com", "gpu_1", "192.0.2.7", "2001:db8::1"),
        allowed_origins=(
            *("https://chat.example.com", "https://a.example", "http://localhost:3000", "http://[::1]"),
            *("http://[::1]:81", "chrome-extension://abcdef"),
        ),
        open_paths=("/health", "/metrics"),
        body_bytes=1024,
        header_seconds=0.5,
        body_seconds=3.0,
        idle_seconds=100.0,
        connections=2,
        queue=1,
        wait_seconds=60.0,
    )


FAULTS = [
    ("prot = 80", "gateway.prot: unknown key, did you mean 'port'?"),
    ('key_file = "/etc/k"', "gateway.key_file: unknown key, did you mean 'keys_file'?"),
    ("port = 0", "gateway.port: 0 is no port from 1 to 65535"),
    ("port = 65536", "gateway.port: 65536 is no port"),
    ("port = true", "gateway.port: expected `int`, got `bool`"),
    ('port = "8000"', "gateway.port: expected `int`, got `str`"),
    ('host = ""', "gateway.host: '' is no address"),
    ('host = "*"', "gateway.host: '*' is no address"),
    ('host = "models.example.com"', "gateway.host: 'models.example.com' is no address"),
    ('host = "127.0.0.1:8000"', "gateway.host: '127.0.0.1:8000' is no address"),
    ('host = "fe80::1%eth0"', "gateway.host: 'fe80::1%eth0' is no address"),
    ('host = "0.0.0.0"', "gateway.host: 0.0.0.0 is open to the network"),
    ('host = "::"', "gateway.host: :: is open to the network"),
    ('host = "192.0.2.1"', "gateway.host: 192.0.2.1 is open to the network"),
    ('keys_file = "keys"', "gateway.keys_file: is no absolute path of a file"),
    ("keys_file = 3", "gateway.keys_file: is no absolute path"),
    ('keys_file = "/a\\u0000b"', "gateway.keys_file: is no absolute path"),
    ('keys_file = "/nowhere/keys"', "gateway.keys_file: /nowhere/keys: there is no such file"),
    ('keys_file = "/dev/zero"', "gateway.keys_file: /dev/zero: is no regular file"),
    ('allowed_hosts = "a"', "gateway.allowed_hosts: expected `array`, got `str`"),
    (
        'allowed_hosts = ["a.example", "*.example.com"]',
        "gateway.allowed_hosts[1]: '*.example.com' is no name of a host",
    ),
    ('allowed_hosts = ["*"]', "gateway.allowed_hosts[0]"),
    ('allowed_hosts = [""]', "gateway.allowed_hosts[0]"),
    ('allowed_hosts = ["https://a.example"]', "gateway.allowed_hosts[0]"),
    ('allowed_hosts = ["a.example:443"]', "gateway.allowed_hosts[0]"),
    ('allowed_hosts = ["a.example."]', "gateway.allowed_hosts[0]"),
    ('allowed_hosts = ["-a.example"]', "gateway.allowed_hosts[0]"),
    ('allowed_hosts = ["a b"]', "gateway.allowed_hosts[0]"),
    ('allowed_hosts = ["ä.example"]', "gateway.allowed_hosts[0]"),
    ('allowed_hosts = ["a\\n"]', "gateway.allowed_hosts[0]"),
    (f'allowed_hosts = ["{"a." * 127}a"]', "gateway.allowed_hosts[0]"),
    (f"allowed_hosts = {['a'] * 257}", "gateway.allowed_hosts: has 257 names, and 256 are the most"),
    ('allowed_origins = ["*"]', "gateway.allowed_origins[0]: '*' is no origin of a page"),
    ('allowed_origins = ["null"]', "gateway.allowed_origins[0]"),
    ('allowed_origins = ["https://*.example.com"]', "gateway.allowed_origins[0]"),
    ('allowed_origins = ["chat.example.com"]', "gateway.allowed_origins[0]"),
    ('allowed_origins = ["https://chat.example.com/"]', "gateway.allowed_origins[0]"),
    ('allowed_origins = ["https://u@chat.example.com"]', "gateway.allowed_origins[0]"),
    ('allowed_origins = ["https://a.example:0"]', "gateway.allowed_origins[0]"),
    ('allowed_origins = ["https://a.example:99999"]', "gateway.allowed_origins[0]"),
    ('allowed_origins = ["https://a.example:"]', "gateway.allowed_origins[0]"),
    ('allowed_origins = ["http://[zz]"]', "gateway.allowed_origins[0]"),
    ('allowed_origins = ["http://"]', "gateway.allowed_origins[0]"),
    ('open_paths = ["/v1/models"]', "gateway.open_paths[0]: invalid enum value '/v1/models'"),
    ('open_paths = ["/metric"]', "gateway.open_paths[0]: invalid enum value '/metric', did you mean '/metrics'?"),
    ("body_bytes = 0", "gateway.body_bytes: 0 is not from 1024 to 1073741824"),
    ("body_bytes = -1", "gateway.body_bytes: -1 is not"),
    (f"body_bytes = {2**31}", "gateway.body_bytes"),
    (f"body_bytes = {10**30}", "gateway.body_bytes"),
    ("body_bytes = 1e6", "gateway.body_bytes"),
    ("connections = 0", "gateway.connections: 0 is not from 1 to 65536"),
    ("queue = 70000", "gateway.queue: 70000 is not from 1 to 65536"),
    ("header_seconds = 0", "gateway.header_seconds: 0 is no time above 0 and up to 600 s"),
    ("header_seconds = nan", "gateway.header_seconds: nan is no time"),
    ("body_seconds = inf", "gateway.body_seconds: inf is no time"),
    ("body_seconds = -inf", "gateway.body_seconds"),
    ("idle_seconds = -5", "gateway.idle_seconds: -5 is no time"),
    ("wait_seconds = 1e9", "gateway.wait_seconds: 1e+09 is no time above 0 and up to 86400 s"),
    ('wait_seconds = "30"', "gateway.wait_seconds: expected `float`, got `str`"),
]


@pytest.mark.parametrize(("table", "said"), FAULTS, ids=[said[:40] for _, said in FAULTS])
def test_a_fault_is_told_by_file_and_key(tmp_path: Path, catalog: Catalog, table: str, said: str) -> None:
    told = refused(tmp_path, catalog, table)
    assert told.message.removeprefix(f"{tmp_path / 'autolaunch.toml'}: ").startswith(said)


def test_a_table_that_is_none_is_told(tmp_path: Path, catalog: Catalog) -> None:
    path = tmp_path / "autolaunch.toml"
    path.write_text(f"gateway = 8000\n{ONE}")
    with pytest.raises(ConfigurationError, match="gateway: expected `object`, got `int`"):
        read(path, catalog)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_on_loopback_nobody_has_to_have_a_key(host: str, tmp_path: Path, catalog: Catalog) -> None:
    assert gateway(tmp_path, catalog, f'host = "{host}"').host == host


def test_beyond_loopback_the_hint_says_how_a_key_is_made(tmp_path: Path, catalog: Catalog) -> None:
    hint = refused(tmp_path, catalog, 'host = "0.0.0.0"').hint
    assert hint == "autolaunch keys add NAME makes a key and its file; gateway.keys_file names that file"


def test_a_wrong_file_of_keys_is_a_fault_of_the_configuration_and_not_repeated(
    tmp_path: Path, catalog: Catalog, keys: Path
) -> None:
    keys.write_text(f"web:{SENTINEL}\n")
    told = refused(tmp_path, catalog, f'keys_file = "{keys}"')
    assert f"gateway.keys_file: {keys}: line 1 is no name with the hash of a key" in told.message
    assert told.hint is not None
    assert "autolaunch keys add" in told.hint
    assert SENTINEL not in told.message + told.hint


@pytest.mark.parametrize("name", ["keys_file", "keys", "api_key"])
def test_a_key_that_stands_in_the_configuration_itself_is_not_repeated(
    name: str, tmp_path: Path, catalog: Catalog
) -> None:
    told = refused(tmp_path, catalog, f'{name} = "{SENTINEL}"')
    assert f"gateway.{name}: " in told.message
    assert SENTINEL not in told.message + (told.hint or "")


def test_a_file_of_keys_that_others_may_write_is_a_fault_of_the_configuration(
    tmp_path: Path, catalog: Catalog, keys: Path
) -> None:
    keys.chmod(0o666)
    assert "mode 0666" in refused(tmp_path, catalog, f'keys_file = "{keys}"').message
