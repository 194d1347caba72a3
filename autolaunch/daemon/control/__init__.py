"""How a running daemon is steered: HTTP over a UNIX socket."""
