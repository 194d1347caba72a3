"""What a person writes, behind an option or in a file: the forms that are taken, without a word on where they stood."""

from __future__ import annotations

import os
import re

from selector.errors import UsageError

#: One part, or two as a hub's id has; nothing that is special to a file system, a shell or an engine.
SERVED_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(?:/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")

#: More tokens than any model takes.
TOKENS_BELOW = 2**30
WORD_CHARACTERS = 300
PORTS = range(1, 65_536)

#: Variables of the environment that hold a token.
SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN", "MODELSCOPE_API_TOKEN")

_LOOPBACK_NAMES = ("localhost", "ip6-localhost")


def served_name(name: str) -> str:
    """``name``, as one that requests can ask for.

    Raises:
        UsageError: it cannot be one.
    """
    if SERVED_NAME.fullmatch(name) is None or ".." in name:
        raise UsageError(
            f"{name[:200]!r} cannot be a served name",
            hint="letters, digits, '.', '_' and '-', as in glm-4.6 or zai-org/GLM-4.6",
        )
    return name


def tokens(text: str) -> int | None:
    """A number of tokens: ``131072``, or ``128k`` in units of 1024. ``None`` where it is none."""
    match = re.fullmatch(r"([0-9]{1,9})(k?)", text.strip().lower())
    found = int(match[1]) * (1024 if match[2] else 1) if match else 0
    return found if 0 < found < TOKENS_BELOW else None


def is_word(text: str) -> bool:
    """Whether a name can go on into a command or a path: one line, not empty, not an option, no novel."""
    return bool(text.strip()) and text.isprintable() and not text.startswith("-") and len(text) <= WORD_CHARACTERS


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine reaches ``host``. A name that would have to be looked up is not one."""
    if host.lower() in _LOOPBACK_NAMES:
        return True
    import ipaddress

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def address(text: str) -> str | None:
    """An IP address in its shortest form; ``None`` where it is none. A zone (``%eth0``) is not taken."""
    import ipaddress

    if "%" in text:
        return None
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None


def without_secrets(text: str) -> str:
    """``text`` of others with the names of this process's tokens where they stood."""
    for name in SECRETS:
        secret = os.environ.get(name)
        if secret:
            text = text.replace(secret, f"<{name}>")
    return text
