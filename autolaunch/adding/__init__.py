"""A model's profile from a repository's own words: config.json, the index, and the headers of the weights."""
