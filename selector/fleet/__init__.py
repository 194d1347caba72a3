"""Which deployments go on which hosts: a plan for many hosts of mixed hardware and many models.

``FleetRequest → kinds of host → options of the planner → Problem → packed (heuristic or exact) → seats → FleetPlan``

One module an arrow: :mod:`~selector.fleet.kinds`, :mod:`~selector.fleet.options`, :mod:`~selector.fleet.problem`,
:mod:`~selector.fleet.heuristic` and :mod:`~selector.fleet.exact`, :mod:`~selector.fleet.seats`,
:mod:`~selector.fleet.plan`. Nothing is started and no host is asked: it is a plan on paper.
"""
