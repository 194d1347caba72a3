"""The tables ``[[gateway.hosts]]``: what of them is refused, by its key, and what is read of their files."""

from __future__ import annotations

from pathlib import Path

import pytest

from autolaunch.daemon.configuration import read
from autolaunch.daemon.gateway.host_access import HostAccess, accesses
from autolaunch.daemon.gateway.keys import key_of
from autolaunch.daemon.gateway.options import HostOptions
from selector.catalog import Catalog
from selector.errors import ConfigurationError

SENTINEL = "hunter2-hunter2-hunter2"
CERTIFICATE = Path(__file__).parents[4] / "data" / "tls" / "server.pem"


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "h2.key"
    path.touch(mode=0o600)
    path.write_text(f"{SENTINEL}\n")
    return path


def found(folder: Path, known: Catalog, *tables: str) -> tuple[HostAccess, ...]:
    path = folder / "autolaunch.toml"
    path.write_text("".join(f"[[gateway.hosts]]\n{table}\n" for table in tables))
    return accesses(read(path, known).gateway.hosts)


def refused(folder: Path, known: Catalog, *tables: str) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as told:
        found(folder, known, *tables)
    assert told.value.exit_code == 78
    assert "\n" not in told.value.message
    assert SENTINEL not in told.value.message + (told.value.hint or "")
    return told.value


def test_a_gateway_may_have_hosts_and_no_deployment_of_its_own(tmp_path: Path, catalog: Catalog) -> None:
    (one,) = found(tmp_path, catalog, 'url = "http://10.0.0.2:8000"')
    assert (one.name, one.url, one.authority) == ("10.0.0.2:8000", "http://10.0.0.2:8000", "10.0.0.2:8000")
    assert (one.api_key, one.tls()) == (None, None)
    (tmp_path / "autolaunch.toml").write_text("[gateway]\nport = 8000\n")
    with pytest.raises(ConfigurationError, match="there is none to keep up"):
        read(tmp_path / "autolaunch.toml", catalog)


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("http://h2", ("http", "h2", 80)),
        ("https://H2.Example.com", ("https", "h2.example.com", 443)),
        ("https://h2.example.com:8443/", ("https", "h2.example.com", 8443)),
        ("http://127.0.0.1:8001/v1", ("http", "127.0.0.1", 8001)),
        ("http://127.0.0.1:8001/v1/", ("http", "127.0.0.1", 8001)),
        ("http://[2001:DB8:0::1]:8000", ("http", "2001:db8::1", 8000)),
    ],
)
def test_an_address_is_taken_apart_once(
    url: str, place: tuple[str, str, int], tmp_path: Path, catalog: Catalog
) -> None:
    (one,) = found(tmp_path, catalog, f'url = "{url}"')
    assert (one.scheme, one.host, one.port) == place


def test_a_key_is_read_without_its_line_and_shown_nowhere(tmp_path: Path, catalog: Catalog, key_file: Path) -> None:
    (one,) = found(tmp_path, catalog, f'url = "http://h2"\napi_key_file = "{key_file}"')
    assert one.api_key == SENTINEL
    assert SENTINEL not in repr(one)
    assert SENTINEL not in str(one)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("", "gateway.hosts[0].url"),
        ('url = ""', "gateway.hosts[0].url: is no address of a gateway"),
        ('url = "10.0.0.2:8000"', "gateway.hosts[0].url: is no address of a gateway"),
        ('url = "ftp://h2"', "gateway.hosts[0].url: is no address"),
        ('url = "file:///etc/passwd"', "gateway.hosts[0].url: is no address"),
        ('url = "unix:///run/control.sock"', "gateway.hosts[0].url: is no address"),
        (f'url = "http://user:{SENTINEL}@h2"', "gateway.hosts[0].url: is no address"),
        ('url = "http://h2/other"', "gateway.hosts[0].url: is no address"),
        ('url = "http://h2/v1/models"', "gateway.hosts[0].url: is no address"),
        ('url = "http://h2?x=1"', "gateway.hosts[0].url: is no address"),
        ('url = "http://h2#x"', "gateway.hosts[0].url: is no address"),
        ('url = "http://h2\\r\\nX: y"', "gateway.hosts[0].url: is no address"),
        ('url = "http://h2 "', "gateway.hosts[0].url: is no address"),
        ('url = "http://hä"', "gateway.hosts[0].url: is no address"),
        (f'url = "http://{"a" * 254}"', "gateway.hosts[0].url: is no address"),
        ('url = "http://[::zz]"', "gateway.hosts[0].url"),
        ('url = "http://[10.0.0.1]"', "gateway.hosts[0].url: '[10.0.0.1]' is no address"),
        ('url = "http://[fe80::1%eth0]"', "gateway.hosts[0].url"),
        ('url = "http://h2:0"', "gateway.hosts[0].url: 0 is no port"),
        ('url = "http://h2:70000"', "gateway.hosts[0].url: 70000 is no port"),
        ('url = "http://h2"\nname = ""', "gateway.hosts[0].name: '' is no name"),
        ('url = "http://h2"\nname = "a b"', "gateway.hosts[0].name: 'a b' is no name"),
        ('url = "http://h2"\nmodels = ["../etc"]', "gateway.hosts[0].models[0]: '../etc' cannot be a served name"),
        (f'url = "http://h2"\nmodels = {["a"] * 65}', "gateway.hosts[0].models: has 65 names"),
        ('url = "http://h2"\napi_key_file = "h2.key"', "gateway.hosts[0].api_key_file: is no absolute path"),
        (f'url = "http://h2"\napi_key_file = "{SENTINEL}"', "gateway.hosts[0].api_key_file: is no absolute path"),
        ('url = "http://h2"\napi_key_file = 3', "gateway.hosts[0].api_key_file: is no absolute path"),
        ('url = "http://h2"\napi_key_file = "/nowhere/key"', "gateway.hosts[0].api_key_file: /nowhere/key: there is"),
        ('url = "http://h2"\napi_key_file = "/dev/zero"', "gateway.hosts[0].api_key_file: /dev/zero: is no regular"),
        (f'url = "http://h2"\napi_key = "{SENTINEL}"', "gateway.hosts[0].api_key"),
        ('url = "http://h2"\nca_file = "/etc/hostname"', "gateway.hosts[0].ca_file: is for https"),
        ('url = "https://h2"\nca_file = "/nowhere.pem"', "gateway.hosts[0].ca_file: /nowhere.pem: there is no"),
    ],
)
def test_a_fault_is_told_by_file_and_key(table: str, said: str, tmp_path: Path, catalog: Catalog) -> None:
    told = refused(tmp_path, catalog, table)
    assert told.message.removeprefix(f"{tmp_path / 'autolaunch.toml'}: ").startswith(said), told.message


def test_two_hosts_have_two_names_and_two_addresses(tmp_path: Path, catalog: Catalog) -> None:
    told = refused(tmp_path, catalog, 'url = "http://h2"\nname = "a"', 'url = "http://h3"\nname = "A"')
    assert "gateway.hosts[1].name: A is the name of gateway.hosts[0]" in told.message
    told = refused(tmp_path, catalog, 'url = "http://h2"', 'url = "http://h2"')
    assert "gateway.hosts[1].url: http://h2:80 is the address of gateway.hosts[0]" in told.message
    told = refused(tmp_path, catalog, 'url = "http://h2"', 'url = "http://H2:80/v1"\nname = "other"')
    assert "gateway.hosts[1].url: http://h2:80 is the address of gateway.hosts[0]" in told.message
    told = refused(tmp_path, catalog, *(f'url = "http://h{number}"' for number in range(65)))
    assert "gateway.hosts: has 65 hosts, and 64 are the most" in told.message


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("127.0.0.1", "http://localhost:8000"),
        ("::1", "http://[::1]:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),  # noqa: S104 - nothing listens
        ("10.0.0.1", "https://10.0.0.1:8000"),
    ],
)
def test_a_gateway_is_no_other_host_of_itself(host: str, url: str, catalog: Catalog, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.touch(mode=0o600)
    keys.write_text(f"{key_of('someone', SENTINEL).line}\n")
    path = tmp_path / "autolaunch.toml"
    tables = ('url = "http://10.0.0.2:8000"', f'url = "{url}"')
    hosts = "".join(f"[[gateway.hosts]]\n{table}\n" for table in tables)
    path.write_text(f'[gateway]\nhost = "{host}"\nkeys_file = "{keys}"\n{hosts}')
    with pytest.raises(ConfigurationError, match=r"gateway\.hosts\[1\]\.url: .* is this gateway itself"):
        read(path, catalog)
    path.write_text(path.read_text().replace(f"{url}", url.replace("8000", "8001")))
    assert len(read(path, catalog).gateway.hosts) == 2


def test_another_daemon_of_this_machine_is_another_host(catalog: Catalog, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.touch(mode=0o600)
    keys.write_text(f"{key_of('someone', SENTINEL).line}\n")
    path = tmp_path / "autolaunch.toml"
    host = '[[gateway.hosts]]\nurl = "http://localhost:8000"\n'
    path.write_text(f'[gateway]\nhost = "10.0.0.1"\nkeys_file = "{keys}"\n{host}')
    assert len(read(path, catalog).gateway.hosts) == 1


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o602, 0o660, 0o666])
def test_a_key_that_others_may_read_or_write_is_refused(
    mode: int, tmp_path: Path, catalog: Catalog, key_file: Path
) -> None:
    key_file.chmod(mode)
    told = refused(tmp_path, catalog, f'url = "http://h2"\napi_key_file = "{key_file}"')
    assert f"mode {mode:04o}" in told.message
    assert told.hint == f"chmod 600 {key_file}"


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o640])
def test_a_key_of_its_owner_and_of_the_services_group_is_taken(
    mode: int, tmp_path: Path, catalog: Catalog, key_file: Path
) -> None:
    key_file.chmod(mode)
    assert found(tmp_path, catalog, f'url = "http://h2"\napi_key_file = "{key_file}"')[0].api_key == SENTINEL


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is not one key on one line"),
        (f"{SENTINEL}\n{SENTINEL}", "is not one key on one line"),
        (f"{SENTINEL} x", "is not one key on one line"),
        (f"{SENTINEL}\x00", "is not one key on one line"),
        (f"{SENTINEL}ä", "is not one key on one line"),
        (SENTINEL * 50, "is not one key on one line"),
        (SENTINEL * 500, "larger than 4 KiB"),
        (key_of("web", SENTINEL).line, "has hashes of keys, and not a key"),
    ],
)
def test_a_file_that_has_no_key_is_refused_and_not_repeated(
    content: str, said: str, tmp_path: Path, catalog: Catalog, key_file: Path
) -> None:
    key_file.write_text(content)
    assert said in refused(tmp_path, catalog, f'url = "http://h2"\napi_key_file = "{key_file}"').message


@pytest.mark.parametrize(
    "content", ["", "no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_certificates_that_are_none_are_refused_and_never_replaced_by_the_systems(
    content: str, tmp_path: Path, catalog: Catalog
) -> None:
    file = tmp_path / "ca.pem"
    file.write_text(content)
    told = refused(tmp_path, catalog, f'url = "https://h2"\nca_file = "{file}"')
    assert "gateway.hosts[0].ca_file" in told.message


def test_over_tls_names_are_checked_by_the_systems_certificates_or_by_those_that_are_named_alone() -> None:
    import ssl

    (system,) = accesses((HostOptions(url="https://h2"),))
    (own,) = accesses((HostOptions(url="https://h2", ca_file=CERTIFICATE),))
    for each in (system.tls(), own.tls()):
        assert each is not None
        assert each.check_hostname
        assert each.verify_mode == ssl.CERT_REQUIRED
    context = own.tls()
    assert context is not None
    assert len(context.get_ca_certs()) == 1
