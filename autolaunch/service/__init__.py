"""The files with which systemd or launchd keeps the daemon, and what puts them there."""
