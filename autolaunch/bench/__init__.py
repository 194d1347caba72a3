"""How fast an endpoint is, measured by guidellm, beside what was foretold."""
