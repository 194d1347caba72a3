"""The daemon's configuration: a TOML file of deployments, read strictly and in one go.

A fault is one sentence with the file and the path of the key, so that a reload which fails can keep what it had, and
so that what is wrong is found before anything is stopped or started.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec

from autolaunch.daemon import small_file
from autolaunch.daemon.deployment import Deployment
from autolaunch.daemon.gateway.checked import checked
from autolaunch.daemon.gateway.options import GatewayOptions
from autolaunch.daemon.nodes_wanted import checked_nodes
from autolaunch.daemon.wrong_key import WrongKey, at
from autolaunch.given import PORTS, TOKENS_BELOW, is_loopback, is_word, served_name, tokens
from selector.catalog import Catalog, shown
from selector.errors import ConfigurationError, UsageError
from selector.facts import ModelFacts
from selector.request import Pins
from selector.values import Value
from selector.wishes import checked_figures, pins_on_checkpoints, workload_of

_FIRST = "autolaunch service install --model MODEL writes a first one; autolaunch serve --config FILE takes any other"
_NO_PORT = "leave it out: clients reach every model at the gateway's (gateway.port), and engines take free ones"
#: The largest file that is read.
MAXIMUM_BYTES = 1 << 20
SYSTEM_PATH = Path("/etc/autolaunch/autolaunch.toml")

#: Figures of a deployment that may be written as ``"128k"``.
_TOKENS = ("context_tokens", "input_tokens", "output_tokens")
_FIGURES = ("context_tokens", "concurrency", "input_tokens", "output_tokens")
_WORDS = ("repo", "quantization", "revision", "engine_version")


class Configuration(Value, frozen=True, kw_only=True):
    """What is to be kept up, and where clients reach it.

    Names are unique among the deployments, and so are the ports that are given. There are none only where the gateway
    has other hosts.
    """

    schema: Literal[1] = 1
    gateway: GatewayOptions = GatewayOptions()
    deployments: tuple[Deployment, ...]


def default_path() -> Path:
    """The system's file for root, and for others where they have none of their own; else the user's."""
    if os.geteuid() == 0:
        return SYSTEM_PATH
    folder = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    if not folder.is_absolute():  # a relative path there is none, says XDG
        try:
            folder = Path.home() / ".config"
        except RuntimeError:  # a user without a home
            return SYSTEM_PATH
    own = folder / "autolaunch" / "autolaunch.toml"
    # Not by the paths' own exists, which raises where a folder may not be looked into.
    return SYSTEM_PATH if not os.access(own, os.F_OK) and os.access(SYSTEM_PATH, os.F_OK) else own


def keys_file_of(path: Path) -> Path | None:
    """The file of keys that a configuration names, whatever else in it may be wrong; ``None``: none is, or no file.

    Raises:
        ConfigurationError: it cannot be read, or what it names is no file's path.
    """
    with _told_of(path):
        try:
            content = small_file.read(path, MAXIMUM_BYTES).content
        except small_file.Unreadable as error:
            if error.missing:
                return None
            raise WrongKey("", error.reason) from error
        return _keys_file(_parsed(content))


def read(path: Path, known: Catalog) -> Configuration:
    """The configuration in a file, with everything checked that can be without a look at the machine.

    Raises:
        ConfigurationError: the file cannot be read, or a key is wrong; the message holds the file and the key's path.
        ProfileError: a profile of a model that is named is wrong.
    """
    with _told_of(path):
        return _configuration(_parsed(_content(path)), known)


@contextmanager
def _told_of(path: Path) -> Iterator[None]:
    """Tells a fault by the file and its key."""
    try:
        yield
    except WrongKey as wrong:
        place = f"{path}: {wrong.key}" if wrong.key else str(path)
        raise ConfigurationError(f"{place}: {wrong.reason}", hint=wrong.hint) from wrong


# --- the file ---------------------------------------------------------------------------------------


def _content(path: Path) -> bytes:
    try:
        return small_file.read(path, MAXIMUM_BYTES).content
    except small_file.Unreadable as error:
        raise WrongKey("", error.reason, _FIRST if error.missing else None) from error


def _parsed(content: bytes) -> dict[str, object]:
    import tomli

    try:
        return tomli.loads(content.decode())
    except UnicodeDecodeError as error:
        raise WrongKey("", f"not UTF-8 (byte {error.start})") from error
    except tomli.TOMLDecodeError as error:
        raise WrongKey("", f"not TOML: {error}") from error
    except RecursionError as error:
        raise WrongKey("", "nested too deeply") from error
    except ValueError as error:  # a number of more digits than Python reads
        raise WrongKey("", f"not TOML: {error}") from error


# --- what it says -----------------------------------------------------------------------------------


def _configuration(document: dict[str, object], known: Catalog) -> Configuration:
    if document.get("schema", 1) != 1:
        raise WrongKey("schema", f"is {shown(str(document['schema']))}, and this release reads 1")
    _keys_file(document)
    _host_keys(document)
    entries = document.get("deployments", [])
    if not isinstance(entries, list):
        raise WrongKey("deployments", "is no list of tables", "each deployment begins with a line [[deployments]]")
    for index, entry in enumerate(entries):
        if isinstance(entry, dict):
            _fill_in(f"deployments[{index}]", entry, known)
    try:
        found = msgspec.convert({**document, "deployments": entries}, Configuration, dec_hook=_path)
    except msgspec.ValidationError as error:
        from selector.mismatch import explain

        raise WrongKey("", explain(error, Configuration)) from error
    if not found.deployments and not found.gateway.hosts:
        raise WrongKey(
            "deployments", "there is none to keep up", 'a line [[deployments]], and below it model = "glm-4.6"'
        )
    gateway = checked(found.gateway)
    for index, each in enumerate(found.deployments):
        _check(f"deployments[{index}]", each, known)
        if each.port == gateway.port:
            raise WrongKey(f"deployments[{index}].port", f"{each.port} is the gateway's", _NO_PORT)
    _check_unique(found.deployments)
    deployments = tuple(_of_lock(f"deployments[{index}]", each, known) for index, each in enumerate(found.deployments))
    return msgspec.structs.replace(found, gateway=gateway, deployments=deployments)


def _of_lock(key: str, each: Deployment, known: Catalog) -> Deployment:
    """A deployment with all that its lock has, where it has one."""
    if each.lock is None:
        return each
    from autolaunch.replaying import deployment_of  # most have none

    with at(f"{key}.lock"):
        return deployment_of(each, each.lock, known)


def deployment_of(entry: dict[str, object], known: Catalog) -> Deployment:
    """One deployment, as an entry of the file would have it; ``entry`` is changed.

    Raises:
        WrongKey: a key of it is wrong.
        ProfileError: a profile of a model that is named is wrong.
    """
    _fill_in("deployment", entry, known)
    try:
        found = msgspec.convert(entry, Deployment, dec_hook=_path)
    except msgspec.ValidationError as error:
        from selector.mismatch import explain

        raise WrongKey("", explain(error, Deployment)) from error
    _check("deployment", found, known)
    return found


def _keys_file(document: dict[str, object]) -> Path | None:
    """The file of keys that is named. What else stands in its place is not repeated: it may be a key."""
    table = document.get("gateway")
    named = table.get("keys_file") if isinstance(table, dict) else None
    if named is None:
        return None
    if not isinstance(named, str) or "\0" in named or not Path(named).is_absolute():
        raise WrongKey(
            "gateway.keys_file",
            "is no absolute path of a file",
            "autolaunch keys add NAME makes a key and its file; a key itself never stands here",
        )
    return Path(named)


def _host_keys(document: dict[str, object]) -> None:
    """That files are named where other hosts' keys are: what else stands there is not repeated either."""
    table = document.get("gateway")
    hosts = table.get("hosts") if isinstance(table, dict) else None
    for index, host in enumerate(hosts if isinstance(hosts, list) else ()):
        named = host.get("api_key_file") if isinstance(host, dict) else None
        if named is not None and not (isinstance(named, str) and "\0" not in named and Path(named).is_absolute()):
            raise WrongKey(
                f"gateway.hosts[{index}].api_key_file",
                "is no absolute path of a file",
                "a file with the key alone, mode 0600; a key itself never stands here",
            )


def _fill_in(key: str, entry: dict[str, object], known: Catalog) -> None:
    """What may be left out or written otherwise: the name, and numbers of tokens."""
    lock = entry.get("lock")
    if isinstance(lock, str) and Path(lock).is_absolute() and "model" not in entry:
        from autolaunch.locked import read_lock  # most have none

        with at(f"{key}.lock"):
            entry["model"] = read_lock(Path(lock)).model
    model = entry.get("model")
    if isinstance(model, str):
        with at(f"{key}.model"):
            entry.setdefault("name", known.find_model(model).model.id)
    entry.setdefault("name", "")  # what is missing is the model
    for name in _TOKENS:
        text = entry.get(name)
        if isinstance(text, str):
            entry[name] = tokens(text)
            if entry[name] is None:
                raise WrongKey(f"{key}.{name}", f"{shown(text)} is not a number of tokens such as 32768 or 32k")


def _path(kind: type, value: object) -> Path:
    if kind is not Path or not isinstance(value, str):
        raise ValueError(f"expected a path, got {shown(str(value))}")
    path = Path(value)
    if "\0" in value or not path.is_absolute():
        raise ValueError(f"{shown(value)} is no absolute path")
    return path


def _check(key: str, each: Deployment, known: Catalog) -> None:
    with at(f"{key}.name"):
        served_name(each.name)
    if not is_loopback(each.host):
        raise WrongKey(
            f"{key}.host",
            f"{shown(each.host)} would open an engine to the network",
            "engines listen on loopback, as 127.0.0.1; the gateway is what others reach",
        )
    if each.port is not None and each.port not in PORTS:
        raise WrongKey(f"{key}.port", f"{each.port} is no port from 1 to 65535")
    if each.port is not None and (each.pinned.data_parallel or 1) > 1:
        raise WrongKey(f"{key}.port", "is one, and pinned.data_parallel asks for several engines", "leave it out")
    if each.replica is not None:
        raise WrongKey(f"{key}.replica", "is counted by itself", "pinned.data_parallel says how many there are")
    if each.nodes is not None:
        checked_nodes(key, each)
    if each.idle_seconds is not None and not (each.idle_seconds > 0 and math.isfinite(each.idle_seconds)):
        raise WrongKey(f"{key}.idle_seconds", f"{each.idle_seconds:g} is no time above 0", "leave it out for never")
    _check_figures(key, each)
    for name in _WORDS:
        text = getattr(each.pinned, name)
        if text is not None and not is_word(text):
            raise WrongKey(f"{key}.pinned.{name}", f"{shown(text)} is no name")
    with at(f"{key}.model"):
        match = known.find_model(each.model)
    _check_weights(key, each, match.model, match.repo)
    if each.engine_options:
        _check_options(f"{key}.engine_options", each, known)


def _check_options(key: str, each: Deployment, known: Catalog) -> None:
    """That some engine may be given these options; which of them it knows is seen when one has been chosen."""
    from engines.options import checked_extra

    engines = known.engine_names() if each.pinned.engine is None else (each.pinned.engine,)
    refused: UsageError | None = None
    for engine in engines:
        try:
            checked_extra(each.engine_options, engine=engine)
        except UsageError as error:
            refused = error
        else:
            return
    if refused is not None:
        raise WrongKey(key, refused.message, "what autolaunch sets itself has a key of its own, such as port")


def _check_weights(key: str, each: Deployment, model: ModelFacts, repo: str | None) -> None:
    """That the pins on the weights agree with each other, with the model and with files that are here."""
    pins = each.pinned
    if repo is not None and pins.repo is not None and pins.repo.lower() not in (repo.lower(), each.model.lower()):
        raise WrongKey(f"{key}.pinned.repo", f"is {pins.repo}, and model names another checkpoint")
    with at(f"{key}.pinned"):
        pins_on_checkpoints(model, pins if repo is None else msgspec.structs.replace(pins, repo=repo), each.model)
    with at(key):
        workload_of(each.workload, each.input_tokens, each.output_tokens, each.context_tokens, model)
    for name in ("revision", "hub"):
        if each.model_path is not None and getattr(pins, name) is not None:
            raise WrongKey(f"{key}.pinned.{name}", "says what to fetch, and model_path takes files that are here")


def _check_figures(key: str, each: Deployment) -> None:
    """Figures in range, by the planner's own check; the key is found by asking it for each alone."""
    for name in _FIGURES:
        if (getattr(each, name) or 0) >= TOKENS_BELOW:
            raise WrongKey(f"{key}.{name}", f"is {getattr(each, name)}, more than anything takes")
    reason = _refused(each)
    if reason is None:
        return
    bare = Deployment(name=each.name, model=each.model)
    for name in _FIGURES:
        if _refused(msgspec.structs.replace(bare, **{name: getattr(each, name)})) is not None:
            raise WrongKey(f"{key}.{name}", reason.message, reason.hint)
    for name in Pins.__struct_fields__:
        alone = Pins(**{name: getattr(each.pinned, name)})
        if name == "engine_version":  # a version is of an engine
            alone = msgspec.structs.replace(alone, engine=each.pinned.engine)
        if _refused(msgspec.structs.replace(bare, pinned=alone)) is not None:
            raise WrongKey(f"{key}.pinned.{name}", reason.message, reason.hint)
    raise WrongKey(f"{key}.pinned", reason.message, reason.hint)


def _refused(each: Deployment) -> UsageError | None:
    try:
        checked_figures(
            objective=each.objective,
            workload=each.workload,
            context_tokens=each.context_tokens,
            concurrency=each.concurrency,
            input_tokens=each.input_tokens,
            output_tokens=each.output_tokens,
            pins=each.pinned,
        )
    except UsageError as error:
        return error
    return None


def _check_unique(deployments: tuple[Deployment, ...]) -> None:
    keys: dict[str, Callable[[Deployment], object]] = {
        "name": lambda each: each.name.lower(),
        "port": lambda each: each.port,
    }
    for name, of in keys.items():
        seen: dict[object, int] = {}
        for index, each in enumerate(deployments):
            if of(each) is not None and (first := seen.setdefault(of(each), index)) != index:
                raise WrongKey(
                    f"deployments[{index}].{name}", f"{getattr(each, name)} is taken by deployments[{first}]"
                )
