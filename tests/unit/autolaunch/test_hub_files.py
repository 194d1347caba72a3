"""Which files of a repository are fetched, and what a listing may say."""

from __future__ import annotations

import pytest

from autolaunch.hubs.listing import HubFile, NotAListing, needed, sound

SHA = "ab" * 32


def files(*paths: str) -> tuple[HubFile, ...]:
    return tuple(HubFile(path=path, size_bytes=1, sha256=SHA) for path in paths)


def paths(found: tuple[HubFile, ...]) -> set[str]:
    return {each.path for each in found}


def test_of_safetensors_come_the_shards_of_the_index_and_what_is_read_beside_them() -> None:
    beside = {"config.json", "tokenizer.json", "tokenizer.model", "merges.txt", "chat_template.jinja"}
    beside |= {"model.safetensors.index.json", "additional_chat_templates/tools.jinja"}
    code = {"modeling_glm.py", "pytorch_model.bin", "x.pth", "x.pkl", "optimizer.pt", "lib/x.so"}
    other = {"README.md", ".gitattributes", "consolidated.safetensors", "original/config.json", "assets/a.png"}
    shards = frozenset({"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"})
    found = needed(files(*beside, *code, *other, *shards), None, shards)
    assert paths(found) == beside | shards


def test_without_an_index_all_safetensors_come() -> None:
    assert paths(needed(files("config.json", "model.safetensors", "a.bin"))) == {"config.json", "model.safetensors"}


def test_of_gguf_comes_one_quantization_and_none_that_only_begins_alike() -> None:
    mine = {f"Q4_K/GLM-Q4_K-0000{number}-of-00002.gguf" for number in (1, 2)}
    others = ("Q4_K_M/GLM-Q4_K_M.gguf", "Q4_K/GLM-Q4_K_S.gguf", "Q4_K/GLM-Q4_K-imatrix.gguf", "config.json")
    assert paths(needed(files(*mine, *others), "Q4_K/GLM-Q4_K")) == mine
    assert paths(needed(files("glm-Q8_0.gguf"), "glm-Q8_0")) == {"glm-Q8_0.gguf"}


@pytest.mark.parametrize(
    ("listed", "prefix", "shards", "said"),
    [
        (("config.json",), None, None, "holds no weights"),
        (("config.json",), "Q4", None, r"has no file Q4\*\.gguf"),
        (("a.safetensors",), None, frozenset({"b.safetensors", "c.safetensors"}), "b.safetensors and 1 more"),
    ],
)
def test_a_repository_that_lacks_weights_is_refused(
    listed: tuple[str, ...], prefix: str | None, shards: frozenset[str] | None, said: str
) -> None:
    with pytest.raises(NotAListing, match=said):
        needed(files(*listed), prefix, shards)


@pytest.mark.parametrize(
    "path",
    ["", "/etc/passwd", "../x", "a/../../x", "a//b", ".", "a/.", "a\\b", "a\0b", "a\nb", "\x1b[2J", "x" * 600, "a/"],
)
def test_a_name_that_leads_elsewhere_is_refused(path: str) -> None:
    with pytest.raises(NotAListing, match="lists a file"):
        sound((HubFile(path=path, size_bytes=1),))


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (HubFile(path="a", size_bytes=-1), "-1 bytes long"),
        (HubFile(path="a", size_bytes=2**60), "bytes long"),
        (HubFile(path="a", size_bytes=1, sha256="../../x"), "hash"),
        (HubFile(path="a", size_bytes=1, git_sha1=SHA), "hash"),
    ],
)
def test_sizes_and_hashes_have_to_be_some(file: HubFile, said: str) -> None:
    with pytest.raises(NotAListing, match=said):
        sound((file,))


def test_a_listing_is_bounded_and_names_nothing_twice() -> None:
    with pytest.raises(NotAListing, match="more than 20000"):
        sound(HubFile(path=f"{number}", size_bytes=1) for number in range(30_000))
    with pytest.raises(NotAListing, match="twice"):
        sound(files("a", "a"))
