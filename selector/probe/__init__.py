"""Asks the machine what it is."""
