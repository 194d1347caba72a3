"""SGLang's server with a key that stands in no command line and in no log.

    python -P sglang_server.py [OPTIONS OF sglang.launch_server]

Run by its path, with the interpreter of the engine's environment: it imports the engine and nothing of autolaunch, and
nothing imports it. SGLang 0.5.23 takes an API key as ``--api-key``, which every user of the host can read in the list
of processes, and prints all its settings, the key among them, when it starts. Here the key comes in
``AUTOLAUNCH_ENGINE_KEY``, is taken out of the environment before anything else runs, and is hidden in what is printed.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

KEY_VARIABLE = "AUTOLAUNCH_ENGINE_KEY"
#: Settings that are secrets; they are read in SGLang's ``fields/serving.py``.
SECRETS = ("api_key", "admin_api_key", "ssl_keyfile_password")


def without_secrets(tell: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
    """What SGLang tells of its settings, less the secrets' values."""

    def told(server_args: Any) -> dict[str, Any]:
        settings = tell(server_args)
        return {name: "***" if value and name in SECRETS else value for name, value in settings.items()}

    return told


def main() -> None:
    key = os.environ.pop(KEY_VARIABLE, None)
    # By name: type checkers and import rules of the tool's own environment do not have them.
    importlib.import_module("sglang.srt.plugins").load_plugins()
    server_args = importlib.import_module("sglang.srt.server_args").prepare_server_args(sys.argv[1:])
    if key is not None:
        server_args.api_key = key
    engine: Any = importlib.import_module("sglang.srt.entrypoints.engine")
    engine._server_args_for_logging = without_secrets(engine._server_args_for_logging)  # noqa: SLF001 (it has no switch)
    try:
        importlib.import_module("sglang.launch_server").run_server(server_args)
    finally:
        importlib.import_module("sglang.srt.utils").kill_process_tree(os.getpid(), include_parent=False)


if __name__ == "__main__":
    main()
