"""A checkpoint ends here complete and verified, or in a clear error with nothing counted as present.

The hub is a real HTTP server on loopback (``tests/fakes/hub.py``), its client the real one.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

import autolaunch
from autolaunch.hub_cache import cache_directory, weights_here
from autolaunch.hubs import kept
from autolaunch.hubs.obtaining import Obtained, Wanted, obtain
from autolaunch.hubs.speed import Transfer
from autolaunch.hubs.wire import Patience
from autolaunch.weights import local_checkpoint
from selector.catalog import Catalog
from selector.errors import (
    DamagedDownload,
    DownloadError,
    Gated,
    HubBusy,
    HubRefuses,
    HubUnreachable,
    NoHubClient,
    NoRoomOnDisk,
    NotHere,
    NotOnHub,
    TokenRefused,
)
from tests.fakes.hub import COMMIT, TOKEN, Content, Fault, Hub, checkpoint, serving
from tests.fakes.plans import candidate

pytestmark = pytest.mark.integration

#: A model whose checkpoint has this name, so that what a plan counts can be asked.
REPO = "zai-org/GLM-4.6-FP8"
GLM = Catalog().model("glm-4.6")
SHORT = Patience(first_tries=3, tries=4, first_seconds=0.02, most_seconds=0.05, most_asked_seconds=5.0)
MIB = 2**20


@pytest.fixture(scope="module")
def files() -> dict[str, Content]:
    return checkpoint(shards=4, shard_bytes=4 * MIB)


@pytest.fixture
def hub(files: dict[str, Content], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(Hub(files={REPO: dict(files)})) as hub:
        for name, value in hub.environment(tmp_path).items():
            monkeypatch.setenv(name, value)
        yield hub
    shutil.rmtree(tmp_path, ignore_errors=True)


def fetched(tmp_path: Path, revision: str | None = None, *, offline: bool = False) -> Obtained:
    return obtain(Wanted(huggingface=REPO, revision=revision), home=tmp_path / "home", offline=offline, patience=SHORT)


def counted(revision: str | None = None) -> bool:
    """Whether a plan takes the weights for present."""
    home = cache_directory(os.environ).parents[1] / "home"
    return bool(weights_here(GLM, cache_directory(os.environ), revision, home=home))


def assert_right(obtained: Obtained, files: dict[str, Content]) -> None:
    """Byte for byte what the hub has."""
    for file in obtained.listing.files:
        with (obtained.folder / file.path).open("rb") as here:
            for piece in files[file.path].pieces(0):
                assert here.read(len(piece)) == piece
            assert not here.read(1)


def test_exactly_the_files_of_the_checkpoint_arrive_at_the_commit_of_the_branch(
    hub: Hub, tmp_path: Path, files: dict[str, Content]
) -> None:
    got = fetched(tmp_path)
    shards = {f"model-{number:05d}-of-00004.safetensors" for number in range(1, 5)}
    beside = {"model.safetensors.index.json", "config.json", "generation_config.json", "tokenizer.json"}
    beside |= {"tokenizer_config.json", "chat_template.jinja"}
    assert {path.name for path in got.folder.iterdir()} == shards | beside
    assert got.listing.revision == COMMIT
    assert_right(got, files)
    assert counted()
    assert all(f"/resolve/{COMMIT}/" in asked for asked in hub.asked if "/resolve/" in asked)


def test_what_is_here_and_verified_is_neither_fetched_nor_read_again(hub: Hub, tmp_path: Path) -> None:
    fetched(tmp_path)
    sent = hub.sent_bytes.total()
    again = fetched(tmp_path)
    assert again.fetched_bytes == 0
    assert hub.sent_bytes.total() == sent
    asked = len(hub.asked)
    assert fetched(tmp_path, COMMIT).folder == fetched(tmp_path, offline=True).folder == again.folder
    assert len(hub.asked) == asked  # a commit is known, and offline nobody is asked


def test_a_cache_that_another_tool_filled_is_verified_and_used_offline(
    hub: Hub, tmp_path: Path, files: dict[str, Content]
) -> None:
    code = "import sys; from huggingface_hub import snapshot_download as d; d(sys.argv[1], allow_patterns=sys.argv[2:])"
    patterns = ("model*", "*config.json", "tokenizer.json")
    subprocess.run((sys.executable, "-P", "-c", code, REPO, *patterns), check=True, capture_output=True, timeout=50)
    sent = hub.sent_bytes.total()
    assert counted()
    got = fetched(tmp_path, offline=True)
    assert_right(got, files)
    assert hub.sent_bytes.total() == sent
    # And online only what that tool left out.
    assert fetched(tmp_path).fetched_bytes == files["chat_template.jinja"].size_bytes


def test_a_file_that_changed_is_hashed_again_and_fetched_again(
    hub: Hub, tmp_path: Path, files: dict[str, Content]
) -> None:
    shard = fetched(tmp_path).folder / "model-00002-of-00004.safetensors"
    with shard.open("r+b") as file:
        file.seek(3 * MIB)
        file.write(b"not what was published")
    with pytest.raises(NotHere, match="model-00002-of-00004"):
        fetched(tmp_path, offline=True)
    assert not counted()
    got = fetched(tmp_path)
    assert got.fetched_bytes == files[shard.name].size_bytes
    assert_right(got, files)
    assert counted()


def test_a_shard_that_was_cut_short_counts_as_nothing(hub: Hub, tmp_path: Path, files: dict[str, Content]) -> None:
    shard = fetched(tmp_path).folder / "model-00002-of-00004.safetensors"
    os.truncate(shard, MIB)
    assert not counted()
    assert_right(fetched(tmp_path), files)
    assert counted()


@pytest.mark.parametrize(
    ("faults", "retry_after"),
    [
        ({"cut": 3}, "0"),
        ({"damaged": 1}, "0"),
        ({"busy": 2}, "0"),
        ({"many requests": 2}, "1"),
        ({"down": 1}, "0"),
        ({"cut": 2, "ignores ranges": None}, "0"),
    ],
)
def test_what_passes_is_borne_and_the_checkpoint_is_whole(
    hub: Hub, tmp_path: Path, files: dict[str, Content], faults: dict[Fault, int | None], retry_after: str
) -> None:
    hub.faults, hub.retry_after = dict(faults), retry_after
    assert_right(fetched(tmp_path), files)
    assert all(left in (0, None) for left in hub.faults.values())
    assert counted()


@pytest.mark.parametrize(
    ("fault", "error", "said"),
    [
        ("busy", HubBusy, "too much to do"),
        ("many requests", HubBusy, "HTTP 429"),
        ("down", HubUnreachable, "HTTP 500"),
        ("redirects", HubUnreachable, "in circles"),
        ("expired", TokenRefused, "expired"),
        ("gated", Gated, "does not let this account"),
        ("damaged", DamagedDownload, "came damaged twice"),
    ],
)
def test_what_does_not_pass_is_a_clear_error_and_nothing_is_counted(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault, error: type[DownloadError], said: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.faults = {fault: None}
    with pytest.raises(error, match=said) as caught:
        fetched(tmp_path)
    assert not counted()
    assert not counted(COMMIT)
    assert TOKEN not in repr(caught.value) + str(caught.value.hint)
    assert "signature" not in repr(caught.value)
    # And it goes on from there when that is over.
    hub.faults = {}
    fetched(tmp_path)
    assert counted()


def test_a_server_that_asks_to_wait_for_a_day_is_not_waited_for(hub: Hub, tmp_path: Path) -> None:
    hub.faults, hub.retry_after = {"many requests": None}, "86400"
    with pytest.raises(HubBusy, match="asks to wait 86400 s"):
        fetched(tmp_path)


def test_a_private_repository_needs_its_token(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.token = TOKEN
    with pytest.raises(TokenRefused) as caught:
        fetched(tmp_path)
    assert caught.value.hint is not None
    assert "HF_TOKEN" in caught.value.hint
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    fetched(tmp_path)
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size < MIB]
    assert all(TOKEN.encode() not in path.read_bytes() for path in written)


def test_what_is_not_there_is_said(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(NotOnHub, match="at v9"):
        fetched(tmp_path, "v9")
    with pytest.raises(NotOnHub, match="has no org/none"):
        obtain(Wanted(huggingface="org/none"), home=tmp_path / "home", patience=SHORT)
    del hub.files[REPO]["model-00003-of-00004.safetensors"]
    with pytest.raises(HubRefuses, match=r"names model-00003-of-00004\.safetensors, which it does not have"):
        fetched(tmp_path)
    assert not counted()


def test_a_hub_that_is_away_leaves_what_is_here_in_use(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubUnreachable, match="could not be fetched") as caught:
        fetched(tmp_path)
    assert "HF_ENDPOINT" in str(caught.value.hint)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    here = fetched(tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    heard: list[str] = []
    again = obtain(
        Wanted(huggingface=REPO),
        home=tmp_path / "home",
        patience=SHORT,
        on_progress=lambda message, _fraction, _transfer: heard.append(message),
    )
    assert again.folder == here.folder
    assert heard[-1] == f"Hugging Face does not answer: taking {REPO} as it is here"


def test_room_is_counted_before_the_first_byte_and_what_is_here_is_taken_off(hub: Hub, tmp_path: Path) -> None:
    vast = 2**50 - 1
    hub.files[REPO]["model-00003-of-00004.safetensors"].size_bytes = vast
    try:
        with pytest.raises(NoRoomOnDisk, match=r"needs 112\d\.\d TB more in .*free"):
            fetched(tmp_path)
    finally:
        hub.files[REPO]["model-00003-of-00004.safetensors"].size_bytes = hub.files[REPO][
            "model-00002-of-00004.safetensors"
        ].size_bytes
    assert not any("safetensors/" in asked or "/store/" in asked for asked in hub.asked)
    assert not counted()


# --- interrupted ----------------------------------------------------------------------------------------

PULL = """
import sys
from pathlib import Path
from autolaunch.hubs.obtaining import Wanted, obtain
obtain(Wanted(huggingface=sys.argv[1]), home=Path(sys.argv[2]))
"""


def pulling(tmp_path: Path) -> subprocess.Popen[bytes]:
    argv = (sys.executable, "-c", PULL, REPO, str(tmp_path / "home"))
    return subprocess.Popen(argv, stderr=subprocess.PIPE, cwd=Path(__file__).parents[2])


@pytest.mark.timeout(180)
def test_a_kill_at_any_moment_costs_no_more_than_the_last_chunk_of_each_file(hub: Hub, tmp_path: Path) -> None:
    hub.files[REPO] = big = checkpoint(shards=6, shard_bytes=32 * MIB, seed=7)
    hub.faults, hub.bytes_per_second = {"slow": None}, 6e6
    chance = random.Random(46)  # noqa: S311 - moments, not secrets
    kills = 0
    while kills < 10:
        with pulling(tmp_path) as process:
            deadline, before = time.monotonic() + 30, hub.sent_bytes.total()
            while hub.sent_bytes.total() == before and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.01)  # until the first byte comes
            time.sleep(chance.uniform(0.0, 0.45))  # the moment is the point
            family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            process.kill()
            process.wait(10)
            assert not psutil.wait_procs(family, timeout=15)[1]
        kills += 1
        assert not counted()
    hub.faults = {}
    got = fetched(tmp_path)
    assert_right(got, big)
    assert counted()
    needed = got.listing.size_bytes
    # Of each file that was under way when it was killed: what was in the sockets, and the chunk that was not written.
    assert hub.sent_bytes.total() <= needed + 10 * 6 * 5 * MIB
    assert not list(cache_directory(os.environ).rglob("*.incomplete"))


def test_two_at_once_fetch_everything_once(hub: Hub, tmp_path: Path, files: dict[str, Content]) -> None:
    hub.faults, hub.bytes_per_second = {"slow": None}, 20e6
    with pulling(tmp_path) as one, pulling(tmp_path) as other:
        assert (one.wait(50), other.wait(50)) == (0, 0)
    got = fetched(tmp_path)
    assert_right(got, files)
    assert all(hub.sent_bytes[each.path] == each.size_bytes for each in got.listing.files if each.size_bytes > MIB)


def test_a_download_that_was_cancelled_ends_within_a_second_and_goes_on_from_there(
    hub: Hub, tmp_path: Path, files: dict[str, Content]
) -> None:
    hub.faults, hub.bytes_per_second = {"slow": None}, 2e6
    cancelled = threading.Event()
    seen: list[Transfer] = []

    def hear(_message: str, _fraction: float | None, transfer: Transfer | None) -> None:
        if transfer is not None and transfer.done_bytes > MIB:
            seen.append(transfer)
            cancelled.set()

    with pytest.raises(HubUnreachable, match="was cancelled"):
        obtain(Wanted(huggingface=REPO), home=tmp_path / "home", on_progress=hear, cancelled=cancelled)
    assert not counted()
    before, hub.faults = hub.sent_bytes.total(), {}
    got = fetched(tmp_path)
    assert_right(got, files)
    assert hub.sent_bytes.total() - before < got.listing.size_bytes - seen[0].done_bytes + 4 * MIB
    assert not [each for each in kept.every(tmp_path / "home") if not each.whole]


# --- the disk, the other hub, and what a launch makes of it ---------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of ten megabytes."""
    place = tmp_path / "small"
    place.mkdir()
    mount = shutil.which("mount")
    argv = (mount or "mount", "-t", "tmpfs", "-o", "size=10m", "tmpfs", str(place))
    if mount is None or subprocess.run(argv, check=False, capture_output=True).returncode != 0:
        pytest.skip("a tmpfs of ten megabytes cannot be mounted here: it takes root and CAP_SYS_ADMIN")
    try:
        yield place
    finally:
        subprocess.run((shutil.which("umount") or "umount", "-l", str(place)), check=True)


def test_a_disk_that_fills_up_meanwhile_ends_it_and_nothing_is_counted(
    hub: Hub, tmp_path: Path, files: dict[str, Content], small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del hub.files[REPO]["model-00004-of-00004.safetensors"], hub.files[REPO]["model-00003-of-00004.safetensors"]
    index = b'{"weight_map": {"layers.1.0": "%s", "layers.2.0": "%s"}}'
    names = (b"model-00001-of-00004.safetensors", b"model-00002-of-00004.safetensors")
    hub.files[REPO]["model.safetensors.index.json"] = Content(data=index % names)
    monkeypatch.setenv("HF_HUB_CACHE", str(small_disk / "hub"))
    hub.faults, hub.bytes_per_second = {"slow": None}, 2e6

    def fill(_message: str, _fraction: float | None, transfer: Transfer | None) -> None:
        if transfer is not None and transfer.done_bytes > MIB / 2 and not (small_disk / "filling").exists():
            with (small_disk / "filling").open("wb", buffering=0) as file:
                file.write(bytes(shutil.disk_usage(small_disk).free - 2 * MIB))

    with pytest.raises(NoRoomOnDisk, match=r"the disk became full while .* was fetched; \d\.\d MB have still to come"):
        obtain(Wanted(huggingface=REPO), home=tmp_path / "home", on_progress=fill, patience=SHORT)
    assert not weights_here(GLM, small_disk / "hub", home=tmp_path / "home")
    (small_disk / "filling").unlink()
    hub.faults = {}
    assert fetched(tmp_path).fetched_bytes < 8 * MIB  # what had come was kept


def test_room_on_a_small_disk_is_refused_before_the_first_byte(
    hub: Hub, tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(small_disk / "hub"))
    with pytest.raises(NoRoomOnDisk, match=r"needs 17\.\d MB more in .*, 10\.\d MB are free"):
        fetched(tmp_path)
    assert not any("/store/" in asked for asked in hub.asked)


def test_a_file_that_may_not_grow_is_an_error_that_names_the_place(
    hub: Hub, tmp_path: Path, files: dict[str, Content]
) -> None:
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({2 * MIB}, {2 * MIB}))\n{PULL}"
    argv = (sys.executable, "-c", limited, REPO, str(tmp_path / "home"))
    ended = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=50, cwd=Path(__file__).parents[2])
    assert ended.returncode == 1
    assert "cannot be kept" in ended.stderr
    assert "File too large" in ended.stderr
    assert not counted()
    assert_right(fetched(tmp_path), files)


def test_without_the_client_of_modelscope_it_is_said_how_to_get_it(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "none" / "modelscope_hub").mkdir(parents=True)
    (tmp_path / "none" / "modelscope_hub" / "__init__.py").write_text("raise ImportError('not installed')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "none"))
    with pytest.raises(NoHubClient) as caught:
        obtain(Wanted(modelscope="ZhipuAI/GLM-4.6-FP8"), home=tmp_path / "home", patience=SHORT)
    assert "glm-autolaunch[modelscope]" in str(caught.value.hint)


def test_a_hub_that_does_not_answer_is_the_cause_where_the_other_has_no_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "none" / "modelscope_hub").mkdir(parents=True)
    (tmp_path / "none" / "modelscope_hub" / "__init__.py").write_text("raise ImportError('not installed')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "none"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    wanted = Wanted(huggingface="zai-org/GLM-4.6-FP8", modelscope="ZhipuAI/GLM-4.6-FP8")
    with pytest.raises(HubUnreachable) as caught:  # which is tried again
        obtain(wanted, home=tmp_path / "home", patience=SHORT)
    assert "client of ModelScope is not installed" in caught.value.message


def test_the_tool_says_what_it_fetched_and_a_ctrl_c_leaves_what_has_come(hub: Hub, tmp_path: Path) -> None:
    hub.faults, hub.bytes_per_second = {"slow": None}, 1e6
    environment = dict(os.environ) | {"AUTOLAUNCH_HOME": str(tmp_path / "home")}
    argv = (sys.executable, "-m", "autolaunch", "pull", REPO)
    where = Path(__file__).parents[2]
    with subprocess.Popen(argv, env=environment, cwd=where, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        deadline = time.monotonic() + 30
        while hub.sent_bytes.total() < 9 * MIB:  # more than fits into sockets
            assert time.monotonic() < deadline
            time.sleep(0.05)  # until something has come
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    assert not counted()
    before, hub.faults = hub.sent_bytes.total(), {}
    told = subprocess.run(
        (*argv, "--json"), env=environment, cwd=where, check=True, capture_output=True, text=True, timeout=50
    )
    document = json.loads(told.stdout)
    assert (document["schema"], document["repo"], document["revision"]) == (1, REPO, COMMIT)
    assert document["fetched_bytes"] < document["size_bytes"] == sum(each["size_bytes"] for each in document["files"])
    assert hub.sent_bytes.total() - before == document["fetched_bytes"]
    assert counted()


def test_a_launch_takes_what_was_pulled(hub: Hub, tmp_path: Path) -> None:
    pulled = autolaunch.pull(REPO, home=tmp_path / "home")
    sent = hub.sent_bytes.total()
    chosen = candidate("vllm", "glm-4.6")
    stored = msgspec.structs.replace(chosen.checkpoint, repo=REPO, format="fp8")
    taken = local_checkpoint(msgspec.structs.replace(chosen, checkpoint=stored), GLM, home=tmp_path / "home")
    assert taken == pulled.folder
    assert hub.sent_bytes.total() == sent
