"""What an engine's own parser takes, as ``scripts/record_flags`` wrote it to ``profiles/flags/PACKAGE-VERSION.json``.

A file is read when options are asked about, never by a plan. Versions that nobody recorded are not judged.
"""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from functools import lru_cache
from importlib import resources
from typing import Literal

import msgspec

from selector.errors import ProfileError, UsageError
from selector.values import Value, readable

#: How a parser reads a name. ``argparse`` takes shortened ones; ``vllm`` is argparse that also takes underscores for
#: dashes, and what stands after a dot as a key of a JSON value; ``click`` and ``llama.cpp`` take whole names, and
#: llama.cpp no ``--name=value``.
Reader = Literal["argparse", "vllm", "click", "llama.cpp"]


class Option(Value, frozen=True, kw_only=True):
    """One option by all its names. ``removed`` is known to the parser only to say what took its place."""

    names: tuple[str, ...]
    takes: Literal["none", "one", "optional", "two", "many"]
    type: Literal["int", "float"] | None = None
    choices: tuple[str, ...] | None = None
    deprecated: bool = False
    removed: bool = False


class Flags(Value, frozen=True, kw_only=True):
    """A recorded parser; ``version`` is the package's."""

    schema: Literal[1] = 1
    package: str
    version: str
    program: str
    reader: Reader
    source: str
    options: tuple[Option, ...]

    def named(self, name: str) -> Option | None:
        """The option of exactly this name."""
        return _by_name(self.package, self.version).get(name)

    def meant(self, name: str) -> tuple[Option, ...]:
        """The options that the parser could take ``name`` for: one is understood, several are ambiguous."""
        spelled = self.spelled(name)
        exact = self.named(spelled)
        if exact is not None or self.reader in ("click", "llama.cpp") or not spelled.startswith("--"):
            return () if exact is None else (exact,)
        return tuple(each for each in self.options if any(one.startswith(spelled) for one in each.names))

    def spelled(self, name: str) -> str:
        """``name`` as this parser looks it up: some replace underscores, vLLM's before the first dot."""
        if self.reader not in ("vllm", "llama.cpp") or not name.startswith("--"):
            return name
        option, dot, keys = name.partition(".")
        return option.replace("_", "-") + dot + keys


#: Environments that run the same program as another one.
_SAME = {"transformers-vision": "transformers"}


@lru_cache(maxsize=8)
def recorded(package: str, version: str) -> Flags | None:
    """The options of an environment's program in a version, or ``None`` where nobody recorded them.

    Raises:
        ProfileError: the file is broken.
    """
    name = f"{_SAME.get(package, package)}-{version}.json"
    file = resources.files("profiles").joinpath("flags", name)
    if not name.replace("-", "").replace(".", "").isalnum() or not file.is_file():
        return None
    try:
        return msgspec.json.decode(file.read_bytes(), type=readable(Flags))
    except msgspec.MsgspecError as error:
        raise ProfileError(f"profiles/flags/{name}: {error}") from error


@lru_cache(maxsize=8)
def _by_name(package: str, version: str) -> dict[str, Option]:
    flags = recorded(package, version)
    return {} if flags is None else {name: option for option in flags.options for name in option.names}


def faults(tokens: tuple[str, ...], flags: Flags, *, exact: bool = False) -> Iterator[str]:
    """What the parser would say against ``tokens``, a sentence each. ``exact`` takes no shortened names.

    Values are held against listed choices and numbers; what an option's value means is not judged.
    """
    position = 0
    while position < len(tokens):
        token, position = tokens[position], position + 1
        if not _is_option(token):
            yield f"{token!r} belongs to no option of {flags.package} {flags.version}"
            continue
        joined = flags.reader != "llama.cpp"
        name, equals, value = token.partition("=") if joined else (token, "", "")
        option, sentence = _understood(name, flags, exact=exact)
        if option is None:
            yield sentence
            continue
        given: tuple[str, ...] = (value,) if equals else ()
        if not equals and option.takes != "none":
            most = {"many": len(tokens), "two": 2}.get(option.takes, 1)
            while position < len(tokens) and len(given) < most and _is_value(tokens[position], flags):
                given, position = (*given, tokens[position]), position + 1
            if flags.reader == "vllm" and any(each.startswith("-") and "." in each for each in given):
                # FlexibleArgumentParser takes every such token for an option with a key, and the next for its value.
                yield f"{name} {given[0]} would be read as two options: write {name}={given[0]}"
                continue
        yield from _against(name, option, given)


def _is_option(token: str) -> bool:
    """As argparse sees it: a dash that is neither alone nor the sign of a number."""
    if len(token) < 2 or not token.startswith("-"):
        return False
    try:
        float(token)
    except ValueError:
        return True
    return False


def _is_value(token: str, flags: Flags) -> bool:
    """llama.cpp takes the next token whatever it is."""
    return flags.reader == "llama.cpp" or not _is_option(token)


def _understood(name: str, flags: Flags, *, exact: bool) -> tuple[Option | None, str]:
    """The option that ``name`` stands for, or a sentence about why there is none."""
    spelled = flags.spelled(name)
    option = flags.named(spelled)
    if option is None and not exact:
        found = flags.meant(name)
        if len(found) > 1:
            names = ", ".join(sorted(one for each in found for one in each.names if one.startswith(spelled))[:4])
            return None, f"{name} could be any of {names} of {flags.package} {flags.version}"
        option = found[0] if found else None
    if option is None and flags.reader == "vllm" and name.startswith("-O"):
        return Option(names=("-O",), takes="optional"), ""  # -O3, -O 3, -O.mode=3
    if option is None and flags.reader == "vllm" and "." in spelled:
        return _dotted(name, spelled, flags, exact=exact)
    if option is None and not exact and not name.startswith("--"):
        option = _attached(name, flags)
    if option is None:
        return None, f"{flags.package} {flags.version} has no option {name}{_nearest(spelled, flags)}"
    if option.removed:
        return None, f"{name} is gone from {flags.package} {flags.version}"
    return option, ""


def _dotted(name: str, spelled: str, flags: Flags, *, exact: bool) -> tuple[Option | None, str]:
    """``--option.key``: a known key where its keys were recorded, any key of an option that takes one value."""
    stem = spelled.partition(".")[0]
    option = flags.named(stem) if exact else next(iter(flags.meant(stem)), None)
    if option is None or option.takes == "none":
        return None, f"{flags.package} {flags.version} has no option {name}{_nearest(spelled, flags)}"
    keys = [one for each in flags.options for one in each.names if one.startswith(f"{option.names[0]}.")]
    if keys and spelled.partition(".")[2].split(".")[0] not in {one.partition(".")[2] for one in keys}:
        return None, f"{option.names[0]} of {flags.package} {flags.version} has no {name.partition('.')[2]}"
    return Option(names=(name,), takes="one"), ""


def _attached(name: str, flags: Flags) -> Option | None:
    """``-n4`` and ``-O3``: a short option whose value stands right behind it."""
    return flags.named(name[:2])


def _nearest(name: str, flags: Flags) -> str:
    known = [one for option in flags.options for one in option.names]
    near = get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def _against(name: str, option: Option, given: tuple[str, ...]) -> Iterator[str]:
    if option.takes == "none" and given:
        yield f"{name} takes no value, and was given {given[0]!r}"
        return
    if len(given) < {"one": 1, "many": 1, "two": 2}.get(option.takes, 0):
        yield f"{name} wants {'two values' if option.takes == 'two' else 'a value'}"
    for value in given:
        if option.choices is not None and value not in option.choices:
            yield f"{name} cannot be {value!r}: it is one of {', '.join(option.choices)}"
        elif option.type is not None and not _is_number(value, option.type):
            yield f"{name} wants a number, and was given {value!r}"


def _is_number(value: str, kind: Literal["int", "float"]) -> bool:
    try:
        int(value) if kind == "int" else float(value)
    except ValueError:
        return False
    return True


def refuse_unknown(extra: tuple[str, ...], package: str, version: str) -> None:
    """Says before anything is fetched what the engine would say after minutes.

    Raises:
        UsageError: the recorded parser of this version does not take ``extra``.
    """
    if not extra:
        return
    if package == "llamacpp":
        _refuse_beside_the_wheel(extra)
        return
    flags = recorded(package, version)
    if flags is None:
        return
    for sentence in faults(extra, flags):
        raise UsageError(sentence, hint=f"{flags.program} --help lists the options of {package} {version}")


def _refuse_beside_the_wheel(extra: tuple[str, ...]) -> None:
    """The wheel of llama.cpp has no command line: what starts it knows llama-server's options by their long names."""
    from engines.shims.llamacpp_server import OPTIONS

    for token in extra:
        if _is_option(token) and token not in OPTIONS:
            near = get_close_matches(token, OPTIONS, n=1, cutoff=0.6)
            raise UsageError(
                f"llama.cpp's wheel takes no option {token}" + (f"; did you mean {near[0]}?" if near else ""),
                hint="it has llama-server's more usual ones by their long names; with a llama-server of yours "
                "(--engine-path) all of them are passed on",
            )
