"""Runs a hub's client, then holds that every shard is there as long as it says: a client may take a part for all.

``huggingface_hub`` (2.4) gives back a folder that is there already when the hub does not answer, and calls that done.
An export carries this program as text: it imports nothing of ours.
"""

import json
import pathlib
import re
import subprocess
import sys

PART = re.compile(r"(.*)-\d{5}-of-(\d{5})\.(safetensors|gguf)")


def expected_bytes(path: pathlib.Path) -> int:
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(min(header_bytes, 100_000_000)))
    ends = [each["data_offsets"][1] for name, each in header.items() if name != "__metadata__"]
    return 8 + header_bytes + max(ends, default=0)


def wrong(folder: pathlib.Path, prefix: str) -> "str | None":
    pattern = f"{prefix}*.gguf" if prefix else "*.safetensors"
    found = {str(path.relative_to(folder)) for path in folder.glob(pattern)}
    wanted = set(found)
    for name in found:
        part = PART.fullmatch(name)
        if part:
            count = int(part[2])
            wanted |= {f"{part[1]}-{number:05d}-of-{count:05d}.{part[3]}" for number in range(1, count + 1)}
    index = folder / "model.safetensors.index.json"
    if not prefix and index.is_file():
        wanted |= set(json.loads(index.read_text())["weight_map"].values())
    missing = sorted(wanted - found)
    if missing or not found:
        return f"{missing[0] if missing else pattern} is missing"
    if not prefix and not (folder / "config.json").is_file():
        return "config.json is missing"
    for each in () if prefix else sorted(found):
        if expected_bytes(folder / each) != (folder / each).stat().st_size:
            return f"{each} is not as long as it says"
    return None


def main() -> int:
    folder, prefix, *client = sys.argv[1:]
    status = subprocess.run(client, check=False).returncode
    if status:
        return status
    try:
        found = wrong(pathlib.Path(folder), prefix)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        found = f"it cannot be read: {error}"
    if found is not None:
        sys.stderr.write(f"the weights in {folder} are not whole: {found}\n")
    return 0 if found is None else 75


if __name__ == "__main__":
    sys.exit(main())
