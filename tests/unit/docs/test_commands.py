"""Every command that the README and the guides show is one that there is; those that only look are run here.

What starts something is run by ``tests/integration/test_docs.py``.
"""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from autolaunch.cli.app import LAUNCH, autolaunch
from autolaunch.daemon.deployment import Deployment
from autolaunch.daemon.gateway.options import GatewayOptions, HostOptions
from selector.catalog import Catalog
from selector.errors import UsageError
from selector.values import Value
from tests import documented
from tests.documented import Block, Misspelt, Shown

#: What stands in blocks that are only read, beside autolaunch itself.
READ = {
    ("systemctl", "enable", "--now", "autolaunch"): "the unit is started so in tests/systemd",
    ("systemctl", "start", "autolaunch"): "the unit is started so in tests/systemd",
    ("systemctl", "status", "autolaunch"): "tests/systemd reads it",
    ("systemctl", "reload", "autolaunch"): "the unit is reloaded so in tests/systemd",
    ("systemctl", "restart", "autolaunch"): "the unit is restarted so in tests/systemd",
    ("systemctl", "edit", "autolaunch"): "systemd's own, for a drop-in",
    ("journalctl", "-u", "autolaunch", "-f"): "systemd's own",
    ("sysctl", "iogpu.wired_limit_mb=253952"): "what advise prints for that Mac, which a test of this page holds",
    ("kubectl", "apply", "-f", "glm.yaml"): "Kubernetes' own, on a file that the guide has written",
    ("sbatch", "glm.sbatch"): "Slurm's own, on a file that the guide has written",
    ("ray", "start", "--head"): "tests/integration/cluster starts a cluster so",
    ("ray", "start", "--address=10.0.0.1:6379"): "tests/integration/cluster starts a cluster so",
    ("pip", "install", "glm-autolaunch[ray]"): "what the error says that is told without Ray; pyproject.toml has it",
    ("pip", "install", "uv"): "where uv comes from",
    ("uv", "tool", "install", "."): "uv's own; tests/packaging installs the wheel",
    ("python3", "-m", "venv", "/opt/autolaunch"): "Python's own",
    ("/opt/autolaunch/bin/pip", "install", ".", "uv"): "tests/packaging installs the wheel",
    ("/opt/autolaunch/bin/pip", "install", "--upgrade", "."): "tests/packaging installs the wheel",
    ("ln", "-s", "/opt/autolaunch/bin/autolaunch", "/usr/local/bin/autolaunch"): "the system's own",
}
#: Programs around autolaunch in commands that are run, or that only pass on what it prints.
BESIDE = frozenset(
    {"bash", "cat", "curl", "echo", "grep", "jq", "ls", "mkdir", "python", "rm", "sed", "sh", "tail", "touch"}
)
#: Commands whose answer depends on nothing that was done before.
LOOKS = frozenset({"plan", "advise", "hardware"})

PAGES = documented.pages()
SHOWN = [each for page in PAGES for block in documented.blocks(page) for each in documented.shown(block)]

#: What guides call models that they add themselves.
ADDED = {name for each in SHOWN for name in re.findall(r"models add .* --name (\w+)", each.typed)}


def names(page: Path) -> str:
    return str(page.relative_to(documented.ROOT))


def where(shown: Shown) -> str:
    return shown.where


def test_there_are_guides_and_commands_in_them() -> None:
    guides = {names(each.block.page) for each in SHOWN}
    assert {names(page) for page in (documented.DOCS / "guides").glob("*.md")} <= guides
    assert len(SHOWN) > 50


@pytest.mark.parametrize("shown", SHOWN, ids=where)
def test_a_command_that_is_shown_is_one_that_there_is(shown: Shown, catalog: Catalog) -> None:
    held(shown, catalog)


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_a_command_in_a_sentence_is_one_that_there_is(page: Path, catalog: Catalog) -> None:
    for each in documented.in_words(page):
        held(each, catalog)


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_an_option_in_a_sentence_is_one_that_there_is(page: Path) -> None:
    assert documented.options_in_words(page) - known_options() == set()


def test_the_examples_of_every_help_are_commands_that_there_are(catalog: Catalog) -> None:
    block = Block(page=documented.README, line=0, language="help", text="")
    for command in commands():
        for line in getattr(command, "examples", "").splitlines():
            typed = line.strip().split("  ")[0].split(" -> ")[0]
            if "FILE" not in typed and typed:
                held(Shown(block=block, typed=typed), catalog)


def held(shown: Shown, catalog: Catalog) -> None:
    """Every program in it is known, and autolaunch's own arguments are ones that it takes."""
    for words in documented.simple_commands(shown.typed):
        if words[0] in {"autolaunch", "AUTOLAUNCH"}:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(click.Path, "convert", lambda _, value, *__: Path(value))  # no file is there yet
                documented.parsed(
                    words[1:],
                    catalog,
                    whole=shown.block.language != "words",
                    right=UsageError.exit_code not in shown.block.exit_codes and ADDED.isdisjoint(words),
                )
        elif words[0].startswith("scripts/"):
            assert (documented.ROOT / words[0]).exists(), shown.where
        elif shown.block.reason is not None or shown.block.page == documented.README:
            assert words in READ or words[0] in BESIDE, f"{shown.where}: nothing says why {words} is right"
        else:
            assert words[0] in BESIDE, f"{shown.where}: nothing is known of {words[0]}"


def commands() -> list[click.Command]:
    root = click.Context(autolaunch)
    found: list[click.Command] = []
    left = [
        command for name in (*autolaunch.list_commands(root), LAUNCH) if (command := autolaunch.get_command(root, name))
    ]
    while left:
        command = left.pop()
        found.append(command)
        if isinstance(command, click.Group):
            inside = click.Context(command)
            left += [one for name in command.list_commands(inside) if (one := command.get_command(inside, name))]
    return found


def known_options() -> set[str]:
    return {
        option
        for command in (autolaunch, *commands())
        for parameter in command.get_params(click.Context(command))
        for option in (*parameter.opts, *parameter.secondary_opts)
    }


def test_the_reference_of_the_commands_is_their_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(documented.ROOT / "scripts"))
    pages = importlib.import_module("docs_pages")
    told = dict(pages.helps())
    assert len(told) > 25
    for typed, text in told.items():
        words = typed.replace("MODEL", "glm-tiny").split()[1:]
        assert CliRunner(env={"COLUMNS": "80"}).invoke(autolaunch, [*words, "--help"]).output == text + "\n"


# --- run here ---------------------------------------------------------------------------------------


def only_looks(shown: Shown) -> bool:
    """One autolaunch, of a command that starts nothing; of a machine that has a name, where it is about one."""
    programs = documented.simple_commands(shown.typed)
    if len(programs) != 1 or programs[0][:1] != ("autolaunch",) or shown.block.reason is not None or ">" in shown.typed:
        return False
    words = programs[0][1:]
    return bool(words) and words[0] in LOOKS and (words[0] not in {"plan", "advise"} or "--hardware" in words)


LOOKING = [each for each in SHOWN if only_looks(each) and "./" not in each.typed]


def test_plans_and_advice_are_among_what_is_run() -> None:
    found = {documented.simple_commands(each.typed)[0][1] for each in LOOKING}
    assert found == LOOKS


@pytest.mark.parametrize("shown", LOOKING, ids=where)
def test_what_is_shown_of_an_output_is_what_is_printed(shown: Shown) -> None:
    (words,) = documented.simple_commands(shown.typed)
    result = CliRunner(env={"COLUMNS": "80"}).invoke(autolaunch, words[1:])
    assert result.exit_code in shown.block.exit_codes, result.output
    assert documented.missing(shown.output, result.output) == []


# --- blocks that are no commands --------------------------------------------------------------------

BLOCKS = [block for page in PAGES for block in documented.blocks(page)]


FLEETS = [each for each in BLOCKS if each.told == "file fleet.toml"]
CONFIGURATIONS = [each for each in BLOCKS if each.language == "toml" and each not in FLEETS]


@pytest.mark.parametrize("block", FLEETS, ids=lambda block: block.where)
def test_a_fleet_can_be_planned(block: Block, tmp_path: Path) -> None:
    (tmp_path / "fleet.toml").write_text(block.text)
    result = CliRunner(env={"COLUMNS": "80"}).invoke(autolaunch, ["plan", "--fleet", str(tmp_path / "fleet.toml")])
    assert result.exit_code == 0, result.exception or result.output
    assert max(map(len, result.output.splitlines())) <= 80


@pytest.mark.parametrize("block", CONFIGURATIONS, ids=lambda block: block.where)
def test_a_configuration_is_right(block: Block, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("")
    path = tmp_path / "autolaunch.toml"
    host_key = tmp_path / "h2"
    host_key.touch(mode=0o600)
    host_key.write_text("the-key-of-another-host")
    text = re.sub(r"/etc/autolaunch/hosts/\w+\.key", str(host_key), block.text)
    path.write_text(text.replace("/etc/autolaunch/keys", str(keys)))
    runner = CliRunner()
    made = runner.invoke(autolaunch, ["keys", "add", "web", "--file", str(keys)])
    assert made.exit_code == 0, made.output
    result = runner.invoke(autolaunch, ["serve", "--config", str(path), "--check"])
    assert result.exit_code == 0, result.exception or result.output
    assert "is right" in result.output


@pytest.mark.parametrize(
    ("heading", "kind"),
    [("[[deployments]]", Deployment), ("[gateway]", GatewayOptions), ("[[gateway.hosts]]", HostOptions)],
)
def test_every_key_of_the_configuration_is_in_its_reference(heading: str, kind: type[Value]) -> None:
    text = (documented.DOCS / "reference/configuration.md").read_text(encoding="utf-8")
    section = text.partition(f"## `{heading}`")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    told = {key for row in rows for key in re.findall(r"`(\w+)`", row)}
    assert told == set(kind.__struct_fields__) - {"replica"}  # counted by itself, and refused in a file


@pytest.mark.parametrize("block", [each for each in BLOCKS if each.language == "python"], ids=lambda block: block.where)
def test_a_piece_of_python_is_python(block: Block) -> None:
    ast.parse(block.text)


def test_no_command_hides_in_a_block_of_another_kind() -> None:
    others = [block for block in BLOCKS if block.language in {"text", "yaml"}]
    lines = [line for block in others for line in block.text.splitlines()]
    assert [line for line in lines if line.lstrip().startswith(("$ ", "autolaunch ", "sudo "))] == []


# --- that these tests can fail ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "typed",
    [
        "autolaunch plan glm-4.6 --hardwear 8xh100",
        "autolaunch plan glm-4.6 --objective fast",
        "autolaunch plan glm-4.6 --hardware 8xh1000",
        "autolaunch plan glm-4.66",
        "autolaunch service instal",
        "sudo autolaunch service install --modle glm-4.6 && echo done",
        "autolaunch glm-tiny --rehears",
    ],
)
def test_a_misspelling_is_noticed(typed: str, catalog: Catalog) -> None:
    block = Block(page=documented.DOCS / "index.md", line=1, language="console", text="")
    with pytest.raises((Misspelt, UsageError)):
        held(Shown(block=block, typed=typed), catalog)


@pytest.mark.parametrize(
    "text",
    [
        "```sh\nautolaunch ps\n```\n",
        "```\nautolaunch ps\n```\n",
        "```console\nautolaunch ps\n```\n",
        "```console\n$ autolaunch ps\n",
        "<!-- test: skipped -->\n```console\n$ autolaunch ps\n```\n",
        "<!-- test: read: too slow -->\n```console\n$ autolaunch ps\n```\n",
        "<!-- test: exits 3 -->\nA sentence.\n",
    ],
)
def test_what_nothing_understands_is_no_block(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documented, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(Misspelt):
        for block in documented.blocks(page):
            documented.shown(block)


def test_an_output_is_held_line_by_line_and_in_order() -> None:
    printed = "first\nsecond 12 s\nthird\n"
    assert documented.missing(("first", "…", "third"), printed) == []
    assert documented.missing(("first", "second … s"), printed) == []
    assert documented.missing(("second … ms",), printed) != []
    assert documented.missing(("third", "first"), printed) != []
