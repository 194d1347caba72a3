"""Who may say what a daemon runs as itself."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from autolaunch.daemon.control.connection import Connection
from autolaunch.daemon.control.listening import Peer
from autolaunch.daemon.control.routes import Refused
from autolaunch.daemon.control.serve import PATHS, refuse_paths
from autolaunch.daemon.deployment import Deployment

if TYPE_CHECKING:
    from aiohttp.web_request import BaseRequest

MEMBER = Peer(os.geteuid() + 1, frozenset({1}))


def asked_by(peer: Peer | None) -> BaseRequest:
    connection = Connection.__new__(Connection)  # nothing of it but who asks is looked at
    connection.peer = peer
    return cast("BaseRequest", SimpleNamespace(protocol=connection))


@pytest.mark.parametrize("key", PATHS)
@pytest.mark.parametrize("peer", [MEMBER, None])
def test_a_member_of_the_group_names_no_program_and_no_file_of_the_host(key: str, peer: Peer | None) -> None:
    with pytest.raises(Refused, match=key) as refused:
        refuse_paths(asked_by(peer), {"model": "glm-tiny", key: "/home/member/engine"})
    assert refused.value.status == 403


@pytest.mark.parametrize("uid", [0, os.geteuid()])
def test_root_and_the_daemons_own_user_may_name_paths(uid: int) -> None:
    refuse_paths(asked_by(Peer(uid, frozenset())), {"model": "glm-tiny", **dict.fromkeys(PATHS, "/x")})


def test_a_member_deploys_what_names_no_path() -> None:
    refuse_paths(asked_by(MEMBER), {"model": "glm-tiny", "engine_path": None})


def test_every_path_of_a_deployment_is_one_of_them() -> None:
    kinds = Deployment.__annotations__
    assert {name for name, kind in kinds.items() if "Path" in str(kind)} == set(PATHS)
