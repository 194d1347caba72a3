"""Weights from where they are published: which files, at which commit, fetched, and held against their hashes.

What may have to be interrupted, and what holds a hub's token, runs in a process of its own (``worker``); the rest asks
it (``obtaining``), remembers what was held to be whole (``kept``) and knows where the hubs' caches have things
(``places``).
"""
