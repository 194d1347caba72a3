"""What keeps an engine: its process tree, its health. The supervisor and the gateway come on top."""
