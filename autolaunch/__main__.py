"""Where the command starts, and ``python -m autolaunch``: quiet under Ctrl-C before anything is imported."""

import signal


def main() -> None:
    """Run the command line. Until its own handlers stand there is nothing to clean up: Ctrl-C just ends it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from autolaunch.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
