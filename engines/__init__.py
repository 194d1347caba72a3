"""How each engine is installed, started, watched and understood."""
