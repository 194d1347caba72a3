"""Values: read from several threads at once."""

from __future__ import annotations

import subprocess
import sys

READ_AT_ONCE = """
import sys, threading
import msgspec
from selector.values import Value, readable

sys.setswitchinterval(1e-6)
fields = ": int | None = None\\n    ".join(f"field_{n}" for n in range(40))
for place in range(60):
    made = {"Value": Value}
    exec(f"class Below(Value, frozen=True, kw_only=True):\\n    {fields}: int | None = None", made)
    kind = msgspec.defstruct("Above", [(f"one_{n}", made["Below"] | None, None) for n in range(8)])
    start = threading.Barrier(4)

    def read():
        start.wait()
        msgspec.json.decode(b'{"one_7": {"field_39": 7}}', type=readable(kind))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
"""


def test_a_type_that_several_threads_read_first_at_once_does_not_end_the_process() -> None:
    ended = subprocess.run([sys.executable, "-c", READ_AT_ONCE], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
