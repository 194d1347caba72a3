"""What the files of a service are made of: everything that differs between hosts, as one value."""

from __future__ import annotations

from pathlib import Path

from autolaunch.service.devices import Devices
from selector.errors import UsageError
from selector.values import Value

#: The name of the unit, of the user that the service runs as, and of its folders below /etc, /var/lib, /var/cache.
NAME = "autolaunch"
#: A file that begins so is ours, to write anew and to remove. A reader is told where changes are kept.
MARK = "Written by `autolaunch service install`"
#: What the configuration's example begins with: the version of its form.
CONFIGURATION_SCHEMA = 1
#: So long without a ping, and the daemon's loop hangs.
WATCHDOG_SECONDS = 30
#: A stop of the daemon takes the engines' grace and some seconds: 25 at most. Then it is killed with all it started.
STOP_SECONDS = 60
#: What a daemon whose loop hangs gets to end, before it is killed with all it started.
ABORT_SECONDS = 5


class Setup(Value, frozen=True, kw_only=True):
    """What a service is installed with.

    ``program`` is the beginning of the command, an absolute path first; ``serve`` and its options come after it.
    ``search_path`` are the folders in which the daemon finds programs, uv's among them. ``hub_token_file`` holds the
    hub's token: it is named, never read here. ``home`` is the home of the user whose service it is, ``None`` for one of
    the host's systemd. launchd's has a user as well, and ``run_as`` is their name where it is the host's.
    """

    program: tuple[str, ...]
    configuration: Path
    search_path: tuple[str, ...]
    devices: Devices = Devices()
    hub_token_file: Path | None = None
    home: Path | None = None
    run_as: str | None = None
    watchdog_seconds: int = WATCHDOG_SECONDS


class File(Value, frozen=True, kw_only=True):
    """A file of the service. With ``once`` it is written where there is none, and is the user's from then on."""

    path: Path
    text: str
    once: bool = False


def serve_command(setup: Setup) -> tuple[str, ...]:
    """What is run, token by token."""
    return (*setup.program, "serve", "--config", str(setup.configuration))


def checked(setup: Setup) -> Setup:
    """``setup``, when all of it can stand in a file of lines.

    Raises:
        UsageError: a path that is not absolute, or has line ends or other control characters in it, or that the
            service could not take or see.
    """
    paths = [setup.program[0], str(setup.configuration), *setup.search_path]
    paths += [str(path) for path in (setup.hub_token_file, setup.home) if path is not None]
    for path in (*paths, *setup.program):
        if not path.isprintable():
            raise UsageError(f"{path!r} has characters that cannot stand in the file of a service")
    for path in paths:
        if not path.startswith("/"):
            raise UsageError(f"{path} is no absolute path, and a service has no current folder")
    if "$" in setup.program[0]:
        raise UsageError(f"{setup.program[0]} has a $ in it, which systemd takes in no program's path")
    if setup.home is None and setup.configuration.is_relative_to("/tmp"):  # noqa: S108 (refused, not used)
        raise UsageError(
            f"the service has a /tmp of its own, and does not see {setup.configuration}",
            hint="keep the configuration in /etc/autolaunch",
        )
    return setup


def example_configuration(model: str | None = None, keys_file: Path = Path(f"/etc/{NAME}/keys")) -> str:
    """A configuration to begin with: one deployment, commented out unless ``model`` is wanted now.

    ``keys_file`` is where the keys of clients are to be, when the gateway is opened to others.
    """
    comment = "# " if model is None else ""
    return f"""\
# What autolaunch keeps up on this host. After a change:
#   autolaunch serve --check --config THIS_FILE    says what is wrong with it, key by key
#   systemctl reload autolaunch                    takes it over; one with a mistake is refused, and the old one stays
schema = {CONFIGURATION_SCHEMA}

# Where clients reach every model, by its name. Beyond this machine it takes keys: `autolaunch keys add NAME` makes one.
# [gateway]
# host = "0.0.0.0"           # without it 127.0.0.1: this machine alone
# port = 8000
# keys_file = "{keys_file}"

# A deployment is a model and what is wanted of it. What is left out is decided by a plan, which this prints:
#   autolaunch plan glm-4.6
{comment}[[deployments]]
{comment}model = "{model or "glm-4.6"}"
# name = "glm-4.6"           # what clients call it
# context_tokens = 131072    # kept, or the plan is refused
#
# [deployments.pinned]       # never overridden
# engine = "vllm"
"""


def names_a_model(text: str) -> bool:
    """Whether a configuration has a deployment; one that is no TOML may: the daemon says what is wrong with it."""
    import tomli

    try:
        return bool(tomli.loads(text).get("deployments"))
    except ValueError:
        return True


def configuration_file(setup: Setup, model: str | None = None) -> File:
    """The example of a configuration, for where there is none."""
    return File(
        path=setup.configuration, text=example_configuration(model, setup.configuration.parent / "keys"), once=True
    )
