"""FAKE uv: says what uv says, and makes just enough that an environment looks finished."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path

#: Stands in for uv: "venv" makes a folder with a python, "pip compile" a lock of the requirements that are exact, and
#: all say what uv says. $FAKE_UV directs it.
FAKE_UV = """#!{python}
import json, os, pathlib, sys, time
here = pathlib.Path({log!r})
with here.open("a") as log:
    log.write(json.dumps([sys.argv[1:], dict(os.environ), os.getpid()]) + "\\n")
mode = os.environ.get("FAKE_UV", "")
if sys.argv[1] == "venv":
    (pathlib.Path(sys.argv[-1]) / "bin").mkdir(parents=True)
    (pathlib.Path(sys.argv[-1]) / "bin" / "python").symlink_to(sys.executable)
    sys.exit(0)
if mode == "network":
    sys.exit("error: Failed to fetch: `https://index/simple/mlx/`\\n  Caused by: dns error")
if mode == "wheels":
    sys.exit("  x No solution found when resolving dependencies:\\n  Because mlx==0.32.4 has no wheels with a matching "
             "platform tag (e.g., `linux`) and you require mlx==0.32.4")
if mode == "version":
    sys.exit("error: No solution found when resolving dependencies\\n  cause: Because there is no version of "
             "mlx-lm==0.32.2 and you require mlx-lm==0.32.2")
if mode == "pytorch" and "--torch-backend" in sys.argv:
    sys.exit("error: Failed to fetch: `https://download.pytorch.org/whl/cpu/torch/`")
if mode == "cached" and "--offline" not in sys.argv:
    sys.exit("error: Request failed after 3 retries\\n  cause: Failed to fetch: `https://index/simple/mlx/`")
if sys.argv[2] == "compile":
    wanted = pathlib.Path(sys.argv[sys.argv.index("--output-file") + 2]).read_text().split("\\n")
    lock = "".join(each.strip() + " --hash=sha256:00\\n" for each in wanted if "==" in each)
    pathlib.Path(sys.argv[sys.argv.index("--output-file") + 1]).write_text("--default-index https://index\\n" + lock)
    print("Resolved 38 packages in 3s", file=sys.stderr)
    sys.exit(0)
if mode == "hang":
    time.sleep(3600)
if mode == "missing":
    # Of what is asked for, these are not in the cache; as uv does, the first of them is named.
    wanted = pathlib.Path(sys.argv[sys.argv.index("--requirements") + 1]).read_text()
    for name in ("one==1", "three==3"):
        if name in wanted:
            sys.exit("error: Failed to download `" + name + "`\\n  cause: Network connectivity is disabled, but the "
                     "requested data wasn't found in the cache: https://files/x.whl")
if mode == "disk":
    sys.exit("error: failed to write: No space left on device (os error 28)")
for line in ("Resolved 38 packages in 3s", "\\x1b[2mDownloading mlx (120.3MiB)", "Prepared 38 packages in 1s",
             "Installed 38 packages in 1ms", "Bytecode compiled 9 files in 1s"):
    print(line, file=sys.stderr)
"""


class Uv:
    def __init__(self, folder: Path) -> None:
        self.program = folder / "uv"
        self.log = folder / "uv.log"
        self.program.write_text(FAKE_UV.format(python=sys.executable, log=str(self.log)))
        self.program.chmod(self.program.stat().st_mode | stat.S_IXUSR)

    def environ(self, mode: str = "", **more: str) -> dict[str, str]:
        return {"UV": str(self.program), "PATH": os.defpath, "FAKE_UV": mode, **more}

    def calls(self) -> list[tuple[list[str], dict[str, str], int]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []
