"""The files for systemd 252 and later: the unit and its drop-ins, the user, the folders. Text in, text out."""

from __future__ import annotations

from pathlib import Path

from autolaunch.service.setup import ABORT_SECONDS, MARK, NAME, STOP_SECONDS, File, Setup, serve_command
from autolaunch.unit_files import FOR_ANYBODY, FOR_THE_HOST, protect_home, unit_word

SYSTEM = Path("/etc/systemd/system")
UNIT = f"{NAME}.service"
UNIT_PATH = SYSTEM / UNIT
DEVICES_PATH = SYSTEM / f"{UNIT}.d/devices.conf"
TOKEN_PATH = SYSTEM / f"{UNIT}.d/hub-token.conf"
SYSUSERS_PATH = Path(f"/etc/sysusers.d/{NAME}.conf")
TMPFILES_PATH = Path(f"/etc/tmpfiles.d/{NAME}.conf")
#: Where the daemon keeps what it makes, and what it can fetch again.
STATE, CACHE = Path(f"/var/lib/{NAME}"), Path(f"/var/cache/{NAME}")
#: The name under which the daemon finds the hub's token in ``$CREDENTIALS_DIRECTORY``.
TOKEN_CREDENTIAL = "hf-token"  # noqa: S105 - the name of one, not one


def _mark(why: str) -> str:
    return f"# {MARK}, which writes it anew: {why}\n"


def system_files(setup: Setup) -> tuple[File, ...]:
    """The files of a service of the host. ``setup.hub_token_file`` adds a drop-in."""
    files = [
        File(path=UNIT_PATH, text=_system_unit(setup)),
        File(path=DEVICES_PATH, text=_devices(setup)),
        File(path=SYSUSERS_PATH, text=_sysusers(setup)),
        File(path=TMPFILES_PATH, text=_tmpfiles()),
    ]
    if setup.hub_token_file is not None:
        files.append(File(path=TOKEN_PATH, text=_token(setup.hub_token_file)))
    return tuple(files)


def user_files(setup: Setup) -> tuple[File, ...]:
    """The files of a user's own service: the user's devices, folders and home are the service's."""
    folder = user_folder(setup.home or Path("/"))
    files = [File(path=folder / UNIT, text=_user_unit(setup))]
    if setup.hub_token_file is not None:
        files.append(File(path=folder / f"{UNIT}.d/{TOKEN_PATH.name}", text=_token(setup.hub_token_file)))
    return tuple(files)


def user_folder(home: Path) -> Path:
    """Where a user's units lie. (``XDG_CONFIG_HOME`` moves it only if the user's manager was started with it.)"""
    return home / ".config/systemd/user"


def _unit(setup: Setup, *, head: str, service: str, wanted_by: str) -> str:
    command = " ".join(unit_word(word, command=True) for word in serve_command(setup))
    return f"""\
{_mark(f"changes of your own go into a drop-in (systemctl edit {NAME})")}
[Unit]
Description=autolaunch: keeps language models served
{head}\
# Tried again for ever: what must not be tried for ever, an engine that keeps failing, is the daemon's to know.
StartLimitIntervalSec=0

[Service]
# Ready when the daemon answers and knows what it has. Loading a model takes minutes, and is in the status.
Type=notify
NotifyAccess=main
ExecStart={command}
ExecReload=/bin/kill -HUP $MAINPID
Restart=on-failure
RestartSec=5
# A configuration that is wrong does not get right by trying again.
RestartPreventExitStatus=78
# Stopped before its loop turned: that is no failure.
SuccessExitStatus=143
TimeoutStartSec=120
# The daemon stops its engines, each with its grace; what is left after this is killed with it.
TimeoutStopSec={STOP_SECONDS}
KillMode=mixed
WatchdogSec={setup.watchdog_seconds}
# A loop that hangs has no more to do in order.
TimeoutAbortSec={ABORT_SECONDS}
# An engine that took too much memory is the daemon's to start again, smaller.
OOMPolicy=continue
LimitNOFILE=1048576
LimitMEMLOCK=infinity
# An engine's would be as large as its model.
LimitCORE=0
TasksMax=infinity
RuntimeDirectory={NAME}
RuntimeDirectoryMode=0750
Environment={unit_word(f"PATH={':'.join(setup.search_path)}")}
{service}
{FOR_ANYBODY}
[Install]
WantedBy={wanted_by}
"""


def _system_unit(setup: Setup) -> str:
    read = (Path(setup.program[0]), setup.configuration)
    return _unit(
        setup,
        head="""\
Wants=network-online.target
After=network-online.target nvidia-persistenced.service
""",
        service=f"""\
User={NAME}
Group={NAME}
UMask=0027
StateDirectory={NAME}
StateDirectoryMode=0750
CacheDirectory={NAME}
CacheDirectoryMode=0750
Environment=AUTOLAUNCH_HOME={STATE}
Environment=HF_HOME={CACHE}/huggingface
Environment=XDG_CACHE_HOME={CACHE}
# uv links files from its cache into environments, which it can within one folder of the two.
Environment=UV_CACHE_DIR={STATE}/uv-cache

{FOR_THE_HOST}{protect_home(read)}""",
        wanted_by="multi-user.target",
    )


def _user_unit(setup: Setup) -> str:
    return _unit(
        setup,
        head="",
        service="""\

# What needs a view of the file system of its own is left to a service of the host.\
""",
        wanted_by="default.target",
    )


def _devices(setup: Setup) -> str:
    nodes = "".join(f"DeviceAllow={node} rw\n" for node in setup.devices.nodes)
    told = "" if nodes else "# No GPU was found when this was written.\n"
    return f"""\
{_mark("run it again when devices were added")}
[Service]
DevicePolicy=closed
{told}{nodes}"""


def _token(file: Path) -> str:
    path = str(file).replace("%", "%%")
    return f"""\
{_mark("with the --hub-token-file that it is given")}
# systemd reads the file and hands it to the daemon alone, in a folder that only it can read.
[Service]
LoadCredential={TOKEN_CREDENTIAL}:{path}
"""


def _sysusers(setup: Setup) -> str:
    memberships = "".join(f"m {NAME} {group}\n" for group in setup.devices.groups)
    return f"""\
{_mark("see sysusers.d(5)")}
u {NAME} - "autolaunch" {STATE}
{memberships}"""


def _tmpfiles() -> str:
    return f"""\
{_mark("see tmpfiles.d(5)")}
# Before the first start, so that weights can be put there.
d {STATE} 0750 {NAME} {NAME} -
d {CACHE} 0750 {NAME} {NAME} -
d /etc/{NAME} 0755 root root -
# The keys of clients, where they are older than the group that reads them.
z /etc/{NAME}/keys 0640 root {NAME} -
"""
