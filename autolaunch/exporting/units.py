"""Units for systemd 252 and later: one that prepares, one for each replica. Their user is made by systemd."""

from __future__ import annotations

from pathlib import PurePosixPath

from autolaunch.exporting import steps
from autolaunch.exporting.compose import ASKS_PYTHON
from autolaunch.exporting.header import header
from autolaunch.exporting.values import File
from autolaunch.exporting.words import start_script, unit_command
from autolaunch.exporting.work import Work, gguf_patterns, started
from autolaunch.unit_files import FOR_ANYBODY, FOR_THE_HOST, protect_home, unit_word

#: The longest name of a user.
_USER_LENGTH = 31
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: An engine that was told to end gets so long: requests under way are finished by some.
STOP_SECONDS = 60


def systemd(work: Work) -> tuple[File, ...]:
    """``NAME-prepare.service`` and ``NAME.service``, or ``NAME-1.service`` and so on."""
    state = PurePosixPath("/var/lib") / _base(work)
    names = [_unit_name(work, number) for number in range(1, work.replicas + 1)]
    preparing = f"{_base(work)}-prepare.service"
    every = " ".join((preparing, *names))
    how = (
        f"  cp {every} /etc/systemd/system/",
        *((f"  install -m 600 KEY {work.options.api_key_file}    the clients' key",) if work.keyed else ()),
        "  systemctl daemon-reload",
        f"  systemctl start {preparing}    fetches all there is to fetch; journalctl -fu shows it",
        f"  systemctl enable --now {' '.join(names)}",
    )
    told = [f"All that it makes is in {state}. uv has to be in /usr/local/bin: {steps.WHERE_UV_IS}"]
    if not steps.makes_environment(work):
        told.append(f"So has llama-server {work.candidate.engine.version}: {steps.WHERE_LLAMACPP_IS}")
    if work.options.model_path is not None:
        told.append(f"{work.options.model_path} and what is in it has to be readable by everybody.")
    text = header(work, "Units for systemd that serve", how, told)
    files = [File(name=preparing, text=text + _prepare(work, state))]
    for number, name in enumerate(names, 1):
        which = "" if work.replicas == 1 else f", replica {number} of {work.replicas}"
        pointer = f"# {work.name}{which}. What it is and how it is run stands in {preparing}.\n"
        files.append(File(name=name, text=pointer + _serve(work, state, preparing, number)))
    return tuple(files)


def _unit_name(work: Work, number: int) -> str:
    return f"{_base(work)}.service" if work.replicas == 1 else f"{_base(work)}-{number}.service"


def _base(work: Work) -> str:
    """Names units, user and folders: never those of somebody else, whatever the model is called."""
    return f"llm-{work.slug}"


def _places(work: Work, state: PurePosixPath) -> tuple[PurePosixPath, PurePosixPath, PurePosixPath]:
    """The environment, the folder of models, the checkpoint in it."""
    models = state / "weights" / work.candidate.checkpoint.repo.replace("/", "--")
    return state / steps.environment_name(work), models, models / work.name


def _common(work: Work) -> str:
    read = () if work.options.model_path is None else (PurePosixPath(work.options.model_path),)
    return f"""\
DynamicUser=yes
User={_base(work)[:_USER_LENGTH].rstrip("-")}
StateDirectory={_base(work)}
StateDirectoryMode=0750
CacheDirectory={_base(work)}
UMask=0027
{FOR_THE_HOST}{protect_home(read)}{FOR_ANYBODY}"""


def _prepare(work: Work, state: PurePosixPath) -> str:
    engine, _, weights = _places(work, state)
    cache = f"/var/cache/{_base(work)}"
    # What is whole is not made again: a start without a network goes through.
    unless_there = ("/bin/sh", "-c", '[ -e "$0" ] || exec "$@"')
    commands = [(*unless_there, f"{engine}/.whole", *argv) for argv in steps.environment(work, str(engine))]
    if commands:
        commands.append(("/bin/touch", f"{engine}/.whole"))
    if work.options.model_path is None:
        whole = f"{weights}/{steps.marker(work)}"
        fetch = steps.weights(work, str(weights))
        commands.append(("/bin/mkdir", "-p", str(weights)))
        commands.append((*unless_there, whole, *fetch))
        commands.append(("/bin/touch", whole))
    else:
        commands.append(("/bin/mkdir", "-p", str(weights.parent)))
        commands.append(("/bin/ln", "-sfn", work.options.model_path, str(weights)))
    run = "\n".join(f"ExecStart={unit_command(argv)}" for argv in commands)
    return f"""
[Unit]
Description={work.name}: environment and weights
Wants=network-online.target
After=network-online.target

[Service]
Type=oneshot
RemainAfterExit=yes
{run}
# Hundreds of gigabytes may have to come; what has come is kept when it is started again.
TimeoutStartSec=infinity
Environment=PATH={_PATH}
Environment=HOME={cache}
# uv links files from its cache into environments, which it can within one folder of the two.
Environment=UV_CACHE_DIR={state}/uv-cache UV_PYTHON_INSTALL_DIR={state}/python
{_common(work)}"""


def _serve(work: Work, state: PurePosixPath, preparing: str, number: int) -> str:
    engine, models, weights = _places(work, state)
    port = work.options.port + number - 1
    each = started(work, number, weights=weights, host=work.host, port=port)
    # By PATH: before anything was prepared there is no program that systemd-analyze verify could find.
    argv: tuple[str, ...] = ("/usr/bin/env", *each.argv)
    if work.keyed or work.is_gguf:
        script = start_script(
            folder=str(weights),
            patterns=gguf_patterns(work) if work.is_gguf else (),
            key_variable=work.behaviour.key_variable if work.keyed else None,
            key_file='"$CREDENTIALS_DIRECTORY/api-key"',
        )
        argv = ("/bin/sh", "-c", script, "sh", *each.argv)
    key = ""
    if work.keyed:
        file = work.options.api_key_file or ""
        key = f"# systemd reads the file and hands it to the engine alone.\nLoadCredential=api-key:{_plain(file)}\n"
    path = f"{engine}/bin:{_PATH}" if steps.makes_environment(work) else _PATH
    variables = {**each.environment, "PATH": path, "HOME": f"/var/cache/{_base(work)}"}
    environment = "".join(f"Environment={unit_word(f'{name}={value}')}\n" for name, value in sorted(variables.items()))
    groups = "SupplementaryGroups=render video\n" if work.kind == "amd" else ""
    return f"""
[Unit]
Description={work.name}: replica {number}, port {port}
Requires={preparing}
After={preparing} network-online.target nvidia-persistenced.service
# Five failures in half an hour, and it stays down until somebody has looked.
StartLimitIntervalSec=1800
StartLimitBurst=5

[Service]
Type=exec
WorkingDirectory={models}
ExecStart={unit_command(argv)}
# Started means that it answers: units that come after it find it loaded.
ExecStartPost={unit_command(_asks(work, engine, port))}
TimeoutStartSec={work.start_seconds}
Restart=on-failure
RestartSec=10
# Told to end, some engines say so in their exit code.
SuccessExitStatus=143
TimeoutStopSec={STOP_SECONDS}
KillMode=mixed
OOMPolicy=stop
LimitNOFILE=1048576
LimitMEMLOCK=infinity
LimitCORE=0
TasksMax=infinity
{environment}{key}{groups}{_common(work)}
[Install]
WantedBy=multi-user.target
"""


def _plain(path: str) -> str:
    """A path where systemd takes the rest of the line as it is."""
    return path.replace("%", "%%")


def _asks(work: Work, engine: PurePosixPath, port: int) -> tuple[str, ...]:
    """Waits until the engine answers: by the Python that is there, or by curl."""
    asks: tuple[str, ...] = ("curl", "-fsS", "-o", "/dev/null", "--max-time", "5")
    if steps.makes_environment(work):
        asks = (f"{engine}/bin/python", "-c", ASKS_PYTHON)
    # systemd would wait for this to the end of the time, whatever had become of the engine.
    script = 'until "$@" 2>/dev/null; do kill -0 "$MAINPID" || exit 1; sleep 2; done'
    return ("/bin/sh", "-c", script, "sh", *asks, _health(work, port))


def _health(work: Work, port: int) -> str:
    # 0.0.0.0 is no address to ask; :: is asked as the loopback as well.
    host = "127.0.0.1" if work.host in ("0.0.0.0", "::") else work.host  # noqa: S104 - compared, not bound
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/health"
