"""Whatever a path or a name holds, it is one word or one scalar of the artefact, and it is that word again when read.

Read back by PyYAML, by ``shlex`` and, for units, by the rules of systemd.syntax(7) written down here.
``tests/integration/test_exports.py`` has bash itself read such values.
"""

from __future__ import annotations

import re
import shlex
from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st

from autolaunch.exporting import Artefact, ExportOptions, Target, export
from autolaunch.exporting.yaml_text import documents
from autolaunch.unit_files import unit_word
from selector.catalog import Catalog
from tests.fakes.exported import planned

KNOWN = Catalog()
#: Printable, with what means something to a shell, to YAML, to units and to Kubernetes more often than not.
_SIGNS = st.sampled_from([*" '\"$`%#:{}[]()&*!|>?@~\\;<,", "$(HOME)", "${HOME}", "$$", "%n", " #", ": ", "- ", "\\x41"])
_LETTERS = st.characters(categories=["L", "N", "P", "S"], exclude_characters="/")
PATHS = (
    st.lists(_SIGNS | _LETTERS, min_size=1, max_size=12)
    .map(lambda parts: "/srv/" + "".join(parts))
    .filter(lambda path: path.isprintable() and not path.endswith((" ", "\\")) and ".." not in path)
)
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,40}(/[A-Za-z0-9][A-Za-z0-9._-]{0,40})?", fullmatch=True).filter(
    lambda name: ".." not in name
)


def exported(to: Target, name: str, path: str, *, key: str | None = None) -> Artefact:
    options = ExportOptions(served_name=name, model_path=path, api_key_file=key)
    return export(planned("replicas"), to, options=options, catalog=KNOWN)


@given(NAMES, PATHS)
def test_a_manifest_of_kubernetes_gives_them_back(name: str, path: str) -> None:
    service, deployment = yaml.safe_load_all(exported("kubernetes", name, path).files[0].text)
    pod = deployment["spec"]["template"]["spec"]
    assert pod["volumes"][0]["hostPath"]["path"] == path
    argv = [expanded(each) for each in pod["containers"][0]["command"]]
    assert argv[argv.index("--served-model-name") + 1] == name
    assert argv[2] == pod["containers"][0]["volumeMounts"][0]["mountPath"]
    for label in (service["metadata"]["name"], deployment["metadata"]["name"]):
        assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", label)


def expanded(text: str) -> str:
    """As the kubelet reads a word of a command, where no variable is known by the names in it."""
    return re.sub(r"\$(\$|\([^)]*\))", lambda found: "$" if found[1] == "$" else found[0], text)


@given(NAMES, PATHS, PATHS)
def test_a_compose_file_gives_them_back(name: str, path: str, key: str) -> None:
    document = yaml.safe_load(exported("compose", name, path, key=key).files[0].text)
    first, second = document["services"].values()
    for service in (first, second):
        assert interpolated(service["volumes"][0]["source"]) == path
        argv = [interpolated(each) for each in (*service["entrypoint"], *service["command"])]
        assert argv[argv.index("--served-model-name") + 1] == name
    assert interpolated(document["secrets"]["api-key"]["file"]) == key


def interpolated(text: str) -> str:
    """As Compose reads text: two ``$`` are one, and what one would begin is not there to be filled in."""
    assert re.sub(r"\$\$", "", text).count("$") == 0
    return text.replace("$$", "$")


@given(NAMES, PATHS, PATHS)
def test_a_script_gives_them_back(name: str, path: str, key: str) -> None:
    for to in ("shell", "slurm"):
        text = exported(to, name, path, key=key).files[0].text
        linked = next(line for line in text.splitlines() if line.startswith("  ln -sfn"))
        assert shlex.split(linked) == ["ln", "-sfn", path, "$weights"]
        command = re.search(r"^ *set -- (.*?[^\\])\n", text, re.DOTALL | re.MULTILINE)
        assert command is not None
        argv = shlex.split(command[1].replace("\\\n", ""))
        assert argv[:3] == ["vllm", "serve", "$weights"]
        assert argv[argv.index("--served-model-name") + 1] == name
        assert f"key_file={shlex.quote(key)}" in text


@given(NAMES, PATHS, PATHS)
def test_units_give_them_back(name: str, path: str, key: str) -> None:
    prepare, *serve = exported("systemd", name, path, key=key).files
    links = [command for command in commands(prepare.text) if command[0] == "/bin/ln"]
    assert [link[2] for link in links] == [path]
    for unit in serve:
        (argv,) = [command for command in commands(unit.text) if "--served-model-name" in command]
        assert argv[argv.index("--served-model-name") + 1] == name
        (credential,) = [line for line in unit.text.splitlines() if line.startswith("LoadCredential=")]
        assert credential.replace("%%", "%") == f"LoadCredential=api-key:{key}"


def commands(unit: str) -> list[list[str]]:
    lines = unit.replace("\\\n", " ").splitlines()
    return [unit_words(line.partition("=")[2]) for line in lines if line.startswith("ExecStart=")]


def unit_words(text: str) -> list[str]:
    """The words of a command of a unit, by systemd.syntax(7): quotes, escapes, then ``%%`` and ``$$``."""
    found, word, quoted, place = [], None, False, 0
    while place < len(text):
        each = text[place]
        place += 1
        if each == "\\":
            taken = text[place]
            place += 1
            if taken == "x":
                taken, place = chr(int(text[place : place + 2], 16)), place + 2
            word = (word or "") + taken
        elif each == '"':
            quoted, word = not quoted, word or ""
        elif each == " " and not quoted:
            found += [] if word is None else [word]
            word = None
        else:
            word = (word or "") + each
    found += [] if word is None else [word]
    assert not quoted
    for each in found:
        assert re.sub(r"%%|\$\$", "", each).count("%") == 0
    return [each.replace("%%", "%").replace("$$", "$") for each in found]


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1), min_size=1))
def test_words_of_a_unit_are_words_again(given_words: list[str]) -> None:
    line = " ".join(unit_word(each, command=True) for each in given_words)
    assert "\n" not in line
    assert unit_words(line) == given_words


_SCALARS = (
    st.text(st.characters(exclude_categories=["Cs", "Cc", "Cn", "Co"])) | st.integers() | st.booleans() | st.none()
)
_NODES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text("abc: -'\"#", min_size=1), inner)
)


@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), _NODES, min_size=1))
def test_a_document_is_what_was_written(node: dict[str, Any]) -> None:
    assert yaml.safe_load(documents(node)) == node


@given(
    st.sampled_from(
        ["1e3", "0x1f", "1_000", "12:30:00", "on", "No", "y", "~", "null", "1.10", "=", ".5", "0o7", "-", "NaN"]
    )
)
def test_what_another_reader_takes_for_a_number_stands_in_quotes(text: str) -> None:
    assert documents({"a": text}) == f'---\na: "{text}"\n'
