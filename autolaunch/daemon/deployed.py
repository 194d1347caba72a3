"""Deployments that were added while the daemon runs, kept in a file of its own beside its state.

The user's configuration is never written; what is here is kept up beside it. An entry is what the configuration would
have, and is held to the same rules each time it is read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from autolaunch.daemon import configuration, small_file
from autolaunch.daemon.configuration import Configuration
from autolaunch.daemon.deployment import Deployment
from autolaunch.daemon.wrong_key import WrongKey
from selector.catalog import Catalog
from selector.errors import AutolaunchError, UsageError
from selector.values import Value

#: The largest file that is read, and the most deployments in it.
MAXIMUM_BYTES, MOST = 1 << 20, 64


class _File(Value, frozen=True, kw_only=True):
    """The file, schema 1."""

    schema: Literal[1] = 1
    deployments: tuple[dict[str, Any], ...] = ()


class Entry(NamedTuple):
    """A deployment, and the words that it was asked for in."""

    deployment: Deployment
    given: Mapping[str, object]


class Deployed:
    """The entries of the file at ``path``. What changes it is called by one at a time."""

    def __init__(self, path: Path, known: Catalog) -> None:
        self.path = path
        self._known = known
        self.entries: tuple[Entry, ...] = ()

    def read(self) -> tuple[str, ...]:
        """Takes in what the file has; what is to be said of that. What cannot be read is set aside."""
        try:
            content = small_file.read(self.path, MAXIMUM_BYTES).content
            found = msgspec.json.decode(content, type=_File)
        except small_file.Unreadable as error:
            return () if error.missing else (self._set_aside(error.reason),)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return (self._set_aside(f"is none that autolaunch wrote: {str(error)[:200]}"),)
        said: list[str] = []
        entries: list[Entry] = []
        for given in found.deployments[:MOST]:
            try:
                entries.append(Entry(self._parsed(given), given))
            except UsageError as error:
                said.append(f"a deployment of {self.path} is left out: {error.message}")
        self.entries = tuple(entries)
        return tuple(said)

    def beside(self, wanted: Configuration) -> tuple[Deployment, ...]:
        """Everything that is to be kept up: the configuration's, and those of these whose names it has not."""
        names = {each.name.lower() for each in wanted.deployments}
        mine = (one.deployment for one in self.entries if one.deployment.name.lower() not in names)
        return (*wanted.deployments, *mine)

    def taken(self, wanted: Configuration) -> str | None:
        """A name of these that the configuration has, too."""
        names = {each.name.lower() for each in wanted.deployments}
        return next((one.deployment.name for one in self.entries if one.deployment.name.lower() in names), None)

    def added(self, given: Mapping[str, object], beside: Configuration) -> Entry:
        """What was asked for, as an entry; it is not among these yet.

        Raises:
            UsageError: it cannot be, or its name or its port is taken.
        """
        found = self._parsed(given)
        if len(self.entries) >= MOST:
            raise UsageError(f"{MOST} deployments were added already", hint="the configuration takes more")
        for each in self.beside(beside):
            if each.name.lower() == found.name.lower():
                raise UsageError(f"name: {found.name} is taken by another deployment", hint="give it another name")
            if each.port is not None and each.port == found.port:
                raise UsageError(f"port: {found.port} is that of {each.name}", hint="leave it out")
        if found.port is not None and found.port == beside.gateway.port:
            raise UsageError(f"port: {found.port} is the gateway's", hint="leave it out")
        return Entry(found, given)

    def without(self, name: str) -> tuple[Entry, ...]:
        """These but for ``name``.

        Raises:
            UsageError: it was not added while the daemon ran.
        """
        left = tuple(one for one in self.entries if one.deployment.name != name)
        if len(left) == len(self.entries):
            raise UsageError(
                f"{name} is a deployment of the configuration",
                hint="take it out of that file, then have it read again; or stop it",
            )
        return left

    def write(self, entries: tuple[Entry, ...]) -> None:
        """Makes ``entries`` what the file has, and these.

        Raises:
            UsageError: the file could not be written; all is as before.
        """
        content = msgspec.json.encode(_File(deployments=tuple(dict(one.given) for one in entries)))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            small_file.replace(self.path, content, lambda _: None)
        except OSError as error:
            raise UsageError(f"{self.path} cannot be written: {error.strerror or error}") from error
        self.entries = entries

    def _parsed(self, given: Mapping[str, object]) -> Deployment:
        try:
            return configuration.deployment_of(dict(given), self._known)
        except WrongKey as wrong:
            raise UsageError(f"{wrong.key}: {wrong.reason}" if wrong.key else wrong.reason, hint=wrong.hint) from wrong
        except AutolaunchError as error:
            raise UsageError(error.message, hint=error.hint) from error

    def _set_aside(self, why: str) -> str:
        with contextlib.suppress(OSError):
            self.path.replace(self.path.with_name(f"{self.path.name}.corrupt"))
        return f"{self.path} {why}; what was deployed while the daemon ran has to be deployed again"
