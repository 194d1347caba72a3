"""Machines that are joined by Ray: asked, and worked on, through a process of its own; Ray is never imported here."""

from __future__ import annotations

from autolaunch.cluster.members import Member
from autolaunch.cluster.merging import merged
from autolaunch.cluster.probing import probe_cluster
from autolaunch.cluster.ray_cluster import Cluster, End, Output, Ran

__all__ = ["Cluster", "End", "Member", "Output", "Ran", "merged", "probe_cluster"]
