"""Decides: from a HardwareReport and a request to a LaunchPlan. Pure, but for ``probe`` and the file readers."""
