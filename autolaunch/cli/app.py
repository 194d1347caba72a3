"""The commands by name. A command's module is imported when it is asked for: a cold start counts."""

from __future__ import annotations

from importlib import import_module

import click

from autolaunch import __version__
from autolaunch.cli import signals
from autolaunch.cli.errors import show_error
from autolaunch.cli.main import wants_json, wants_lines
from autolaunch.cli.terminal import Unwritable, clean
from selector.errors import AutolaunchError

#: The command that a model's name stands for.
LAUNCH = "launch"
_COMMANDS = {
    "plan": ("autolaunch.cli.plan", "What would run here, and why; nothing is started."),
    "advise": ("autolaunch.cli.advise", "What would make it fit, or serve more; and the smallest machines."),
    "export": ("autolaunch.cli.export", "The plan as units, manifests or scripts that run without autolaunch."),
    "probe": ("autolaunch.cli.probe", "What this machine is."),
    "doctor": ("autolaunch.cli.doctor", "What is wrong on this host, and the commands that mend it."),
    "models": ("autolaunch.cli.known", "The models that are known, and which of their weights lie here."),
    "rm": ("autolaunch.cli.rm", "Free the room that a model's weights take."),
    "pull": ("autolaunch.cli.pull", "Fetch the weights of a model and verify them; nothing is started."),
    "engines": ("autolaunch.cli.engines", "The inference engines: which are here; install, remove."),
    "hardware": ("autolaunch.cli.known", "The machines that --hardware can name."),
    "bench": ("autolaunch.cli.bench", "Measure what is kept up, beside what was foretold; export, import."),
    "serve": ("autolaunch.cli.serve", "The daemon: keeps the models of a configuration up."),
    "service": ("autolaunch.cli.service", "Have systemd or launchd keep the daemon up; install, uninstall, show."),
    "keys": ("autolaunch.cli.keys", "The keys of the gateway's clients: add, list, remove."),
    "ps": ("autolaunch.cli.ps", "What is kept up here."),
    "status": ("autolaunch.cli.status", "The daemon, or everything of one deployment."),
    "wait": ("autolaunch.cli.wait", "Wait until a deployment serves, or say why it will not."),
    "logs": ("autolaunch.cli.logs", "What a deployment's engine prints, and what happens to it."),
    "stop": ("autolaunch.cli.steer", "End deployments, until they are restarted."),
    "restart": ("autolaunch.cli.steer", "End deployments, plan anew and start."),
    "retry": ("autolaunch.cli.steer", "Try again what was given up on."),
    LAUNCH: ("autolaunch.cli.launch", ""),
    "node-check": ("autolaunch.cli.node_check", ""),
}
#: What nobody types.
_UNLISTED = frozenset({LAUNCH, "node-check"})
_GROUP_FLAGS = frozenset({"--help", "-h", "--version"})

EXAMPLES = """\
Examples:
  autolaunch glm-tiny --ask "hello"          prove this machine with a miniature
  autolaunch glm-4.6                         the best that fits; Ctrl-C stops
  autolaunch plan glm-4.6 --hardware 8xh200  what would run there, and why
  autolaunch advise glm-4.6                  what would do more, or make it fit
  autolaunch glm-4.5v --objective latency --context 32k

Every option of a launch: autolaunch glm-4.6 --help
"""


class Autolaunch(click.Group):
    """A group whose default command is a launch: ``autolaunch MODEL``, ``autolaunch --port 80 MODEL``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in _COMMANDS and args[0] not in _GROUP_FLAGS:
            args = [LAUNCH, *args]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click passes it)
        return [name for name in _COMMANDS if name not in _UNLISTED]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 (click passes it)
        place = _COMMANDS.get(cmd_name)
        if place is None:
            return None
        with signals.deferred():  # as the import of this very module
            command: click.Command = getattr(import_module(place[0]), cmd_name.replace("-", "_"))
        return command

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 (click passes it)
        formatter.write("Usage: autolaunch MODEL [OPTIONS] [-- ENGINE OPTIONS]\n")
        formatter.write("       autolaunch COMMAND [OPTIONS]\n")

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # Not asked of the commands themselves: help would import every module.
        with formatter.section("Commands"):
            formatter.write_dl([(name, _COMMANDS[name][1]) for name in self.list_commands(ctx)])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 (click passes it)
        formatter.write(f"\n{EXAMPLES}")


@click.group(
    cls=Autolaunch,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=False,
    invoke_without_command=True,
)
@click.version_option(
    version=__version__, prog_name="autolaunch", message="%(prog)s %(version)s", help="Show the version."
)
@click.pass_context
def autolaunch(ctx: click.Context) -> None:
    """Get GLM-4.6 or GLM-4.5V up on whatever machine you have.

    autolaunch MODEL looks at the machine, decides which checkpoint, quantization, engine and parallel layout
    serve the model best on it, prepares the engine and the weights, starts it, proves that it answers, and
    prints its address.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def run(arguments: list[str]) -> int:
    """Run one command line and give its exit code. Errors of ours and of click are shown here."""
    try:
        return _shown(arguments)
    except Unwritable as error:  # result or error: on stdout nothing more is tried
        show_error("output", error.format_message(), None, error.exit_code, as_json=False)
        return error.exit_code


def _shown(arguments: list[str]) -> int:
    as_json = wants_json(arguments)
    try:
        with autolaunch.make_context("autolaunch", list(arguments)) as ctx:
            autolaunch.invoke(ctx)
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.UsageError as error:
        show_error("usage", _sentence(error), _where_help_is(error), 2, as_json=as_json)
        return 2
    except AutolaunchError as error:
        lines = wants_lines(arguments)
        show_error(error.code, error.message, error.hint, error.exit_code, as_json=as_json, in_lines=lines)
        return error.exit_code
    return 0


def _sentence(error: click.UsageError) -> str:
    """Click's message in our manner: it follows a colon and has no full stop."""
    told = error.message if isinstance(error, click.NoSuchOption) else error.format_message()
    message = clean(" ".join(told.split())).rstrip(".")  # click lists choices a line each
    return message[:1].lower() + message[1:]


def _where_help_is(error: click.UsageError) -> str:
    if isinstance(error, click.NoSuchOption) and error.possibilities:
        return f"did you mean {' or '.join(sorted(error.possibilities))}?"
    if error.ctx is None or error.ctx.parent is None:
        return "autolaunch --help tells more"
    name = "autolaunch MODEL" if error.ctx.command.name == LAUNCH else error.ctx.command_path
    return f"{name} --help tells every option"
