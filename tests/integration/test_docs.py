"""The documentation: its pages are built without a warning, and what its guides show is what happens.

Each guide is a session at a terminal of its own, in an empty home and an empty folder: its blocks are run from the
first to the last, with the engines that other tests share. Only what is this host's is not as it is shown: port 8000,
the keys in /etc, and root.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

from engines.environments.store import without_secrets
from tests import documented
from tests.documented import Block

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

ROOT = documented.ROOT
GUIDES = [page for page in documented.pages() if page != documented.README]
#: What a command may take; a start of a miniature takes seconds, the making of its engine's environment a minute.
COMMAND_SECONDS = 240.0


# --- sessions ---------------------------------------------------------------------------------------


class Session:
    """A person at a terminal, who types what a guide shows."""

    def __init__(self, folder: Path, engines_home: Path, port: int) -> None:
        self.folder = folder / "folder"
        self._port = port
        home = folder / "home"
        data = home / ".local/share/autolaunch"
        for each in (self.folder, data, folder / "bin"):
            each.mkdir(parents=True)
        (engines_home / "engines").mkdir(parents=True, exist_ok=True)
        (data / "engines").symlink_to(engines_home / "engines")
        for name, argv in {"autolaunch": "-m autolaunch", "python": ""}.items():
            program = folder / "bin" / name
            program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {argv} "$@"\n')
            program.chmod(0o755)
        self._environ = without_secrets(os.environ) | {
            "HOME": str(home),
            "PATH": os.pathsep.join([str(folder / "bin"), os.environ["PATH"]]),
            "PYTHONPATH": str(ROOT),
            "AUTOLAUNCH_SHARED": str(folder / "shared"),
            "COLUMNS": "80",
        }
        for name in ("AUTOLAUNCH_HOME", "AUTOLAUNCH_SOCKET", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR"):
            self._environ.pop(name, None)
        self._running: list[tuple[subprocess.Popen[bytes], Path]] = []

    def take(self, block: Block) -> None:
        """Does what a block of a guide says."""
        if block.language == "end":
            self.end()
        elif block.reason is not None or block.language not in {"console", "python", "toml"}:
            return
        elif block.language == "toml":
            if block.told.startswith("file "):
                (self.folder / block.told.removeprefix("file ")).write_text(self._here(block.text))
        elif block.language == "python":
            script = self.folder / "script.py"
            script.write_text(self._here(block.text))
            self._run(block, "python script.py", ())
        elif block.told == "goes on":
            self._begin(block)
        else:
            for shown in documented.shown(block):
                self._run(block, shown.typed, shown.output)

    def end(self) -> None:
        """Ctrl-C in every terminal where something goes on."""
        while self._running:
            process, log = self._running.pop()
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            code = process.wait(60)
            assert code in {0, 130}, log.read_text()

    def kill(self) -> None:
        """Whatever came of the session, nothing of it stays."""
        for process, _ in self._running:
            if process.poll() is None:
                process.terminate()
                process.wait(60)

    def _run(self, block: Block, typed: str, output: tuple[str, ...]) -> None:
        done = subprocess.run(
            ("/bin/bash", "-c", self._here(typed)),
            cwd=self.folder,
            env=self._environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,  # as a terminal shows both
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        assert done.returncode in block.exit_codes, f"{block.where}: {typed}\n{done.stdout}"
        missing = documented.missing(tuple(map(self._here, output)), done.stdout)
        assert missing == [], f"{block.where}: {typed}\n{done.stdout}"

    def _begin(self, block: Block) -> None:
        (shown,) = documented.shown(block)
        (words,) = documented.simple_commands(self._here(shown.typed))
        log = self.folder.parent / f"log-{len(list(self.folder.parent.glob('log-*')))}"
        with log.open("wb") as file:
            process = subprocess.Popen(
                words, cwd=self.folder, env=self._environ, stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )
        self._running.append((process, log))
        deadline = time.monotonic() + COMMAND_SECONDS
        expected = tuple(map(self._here, shown.output))
        while documented.missing(expected, log.read_text(errors="replace")):
            assert process.poll() is None, f"{block.where}: it ended\n{log.read_text()}"
            assert time.monotonic() < deadline, f"{block.where}: it did not print this\n{log.read_text()}"
            time.sleep(0.1)  # nothing tells of a line in a file

    def _here(self, text: str) -> str:
        """What is typed, with a port and a file of keys of this session's own, and without root."""
        text = text.removeprefix("sudo ")
        text = re.sub(r"\b8000\b", str(self._port), text).replace("/etc/autolaunch/keys", str(self.folder / "keys"))
        if re.match(r"autolaunch (?:glm-tiny|--lock)(?!.*--port)", text):
            return text.replace("autolaunch", f"autolaunch --port {self._port}", 1)
        return text


@pytest.fixture
def session(tmp_path: Path, engines_home: Path) -> Iterator[Session]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    made = Session(tmp_path, engines_home, port)
    yield made
    made.kill()


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_guide_shows_is_what_happens(page: Path, session: Session) -> None:
    for block in documented.blocks(page):
        session.take(block)
    session.end()


def test_a_guide_that_shows_what_does_not_happen_is_noticed(session: Session) -> None:
    page = documented.DOCS / "index.md"
    for text in ("$ autolaunch plan glm-tiny --objektive latency\n", "$ autolaunch ps\nglm-4.6 ready\n"):
        with pytest.raises(AssertionError, match=r"docs/index\.md:1: "):
            session.take(Block(page=page, line=1, language="console", text=text))


# --- pieces of Python -------------------------------------------------------------------------------


def test_every_piece_of_python_is_strictly_typed(tmp_path: Path) -> None:
    pieces = [block for page in documented.pages() for block in documented.blocks(page) if block.language == "python"]
    assert len(pieces) >= 4
    for number, block in enumerate(pieces):
        (tmp_path / f"piece_{number}.py").write_text(f"# {block.where}\n{block.text}")
    done = subprocess.run(
        (
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--no-incremental",
            "--config-file=",
            *sorted(tmp_path.glob("piece_*.py")),
        ),
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


# --- the site ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The site as ``scripts/docs`` builds it, and what that had to say."""
    if shutil.which("uv") is None:
        pytest.fail("uv is not on PATH")
    site = tmp_path_factory.mktemp("site")
    return site, build(ROOT, site)


def build(project: Path, site: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        (str(project / "scripts/docs"), "--to", str(site)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


class Page(HTMLParser):
    """What a page loads, where its links lead, and the places in it that links may lead to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value for name, value in attrs if value}
        self.places |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag == "link" and "href" in found:
            self.loads.append(found["href"])
        elif "src" in found:
            self.loads.append(found["src"])


@pytest.fixture(scope="module")
def site(built: tuple[Path, subprocess.CompletedProcess[str]]) -> dict[Path, Page]:
    return {path: Page(path.read_text(encoding="utf-8")) for path in sorted(built[0].rglob("*.html"))}


def test_the_pages_are_built_without_a_warning(built: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    _, done = built
    said = [line for line in done.stderr.splitlines() if re.match(r"INFO +-  (Cleaning|Building|Documentation)", line)]
    assert (done.returncode, done.stdout, done.stderr.splitlines()) == (0, "", said)


@pytest.mark.parametrize("wrong", ["[nowhere](nowhere.md)", "[nowhere](plan.md#nowhere)", "::: autolaunch.nothing"])
def test_a_page_with_a_mistake_is_not_built(
    wrong: str, built: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    assert built[1].returncode == 0  # and the environment is there
    for path in ROOT.iterdir():
        if path.name != "docs":
            (tmp_path / path.name).symlink_to(path)
    shutil.copytree(documented.DOCS, tmp_path / "docs")
    with (tmp_path / "docs/guides/faults.md").open("a") as page:
        page.write(f"\n{wrong}\n")
    assert build(tmp_path, tmp_path / "site").returncode == 1


def test_every_link_within_the_pages_leads_somewhere(site: dict[Path, Page]) -> None:
    lost = []
    for path, page in site.items():
        for link in page.links:
            target, place = urldefrag(link)
            if urlsplit(target).scheme or path.name == "404.html":
                continue
            file = (path.parent / unquote(target)).resolve() if target else path
            if not file.is_file() or (place and file.suffix == ".html" and unquote(place) not in site[file].places):
                lost.append(f"{path.name}: {link}")
    assert lost == []


def test_the_pages_load_nothing_from_elsewhere(site: dict[Path, Page]) -> None:
    assert {load for page in site.values() for load in page.loads if urlsplit(load).scheme not in {"", "data"}} == set()
    folder = next(iter(site)).parent
    styles = [path.read_text(encoding="utf-8") for path in folder.rglob("*.css")]
    assert styles
    assert [
        found for text in styles for found in re.findall(r"(?:@import|url\()\s*['\"]?(?:https?:)?//[^)]*", text)
    ] == []


def test_every_name_of_the_api_and_every_command_has_its_place(
    site: dict[Path, Page], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    pages = importlib.import_module("docs_pages")
    places = {place for page in site.values() for place in page.places}
    named, values = pages.api()
    assert len(named) >= 6
    assert len(values) > 20
    assert (named | values) - places == set()
    assert {"autolaunch-plan", "autolaunch-model", "autolaunch-service-install"} <= places
