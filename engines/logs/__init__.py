"""What an engine prints, understood: how far a load is, what it measured, why it failed.

The patterns are data (``profiles/logs``), read when the first line is looked at and never for a plan.
"""

from engines.logs.cause import Cause, Diagnosis, classify
from engines.logs.reader import Figures, LoadProgress, LogReader

__all__ = ["Cause", "Diagnosis", "Figures", "LoadProgress", "LogReader", "classify"]
