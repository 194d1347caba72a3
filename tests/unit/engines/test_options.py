"""Options behind the -- are passed on, but for those that are ours or run a checkpoint's code, however shortened."""

from __future__ import annotations

import pytest

from engines.options import checked_extra
from selector.errors import UsageError

OWNED = frozenset({"--host", "--port", "-c"})


@pytest.mark.parametrize(
    "token",
    ["--trust-remote-code", "--trust_remote_code", "--trust", "--trust-rem", "--trust_rem", "--tr", "--trust=true"],
)
def test_no_spelling_lets_a_checkpoints_code_run(token: str) -> None:
    with pytest.raises(UsageError, match="code from the checkpoint"):
        checked_extra((token,), owned=OWNED, engine="mlx")


@pytest.mark.parametrize("token", ["--host", "--hos", "--ho=0.0.0.0", "--port=1", "-c"])
def test_no_spelling_reaches_an_option_of_ours(token: str) -> None:
    with pytest.raises(UsageError, match="belongs to autolaunch"):
        checked_extra((token,), owned=OWNED, engine="mlx")


def test_other_options_and_their_values_pass_as_they_are() -> None:
    extra = ("--log-level", "DEBUG", "--temp", "-1", "-", "trust", "--hosts-file=x")
    assert checked_extra(extra, owned=OWNED, engine="mlx") == extra
