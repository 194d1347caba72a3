"""A plan as an artefact that people run without autolaunch: units, manifests, scripts. Text in, text out."""

from __future__ import annotations

from autolaunch.exporting.artefact import export as export
from autolaunch.exporting.values import Artefact as Artefact
from autolaunch.exporting.values import ExportOptions as ExportOptions
from autolaunch.exporting.values import File as File
from autolaunch.exporting.values import Target as Target
