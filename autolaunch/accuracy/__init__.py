"""The plan's figures beside published measurements: what ``scripts/validate`` prints."""
