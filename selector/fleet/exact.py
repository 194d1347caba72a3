"""The best packing there is, by HiGHS (Huangfu and Hall, "Parallelizing the dual revised simplex method", 2018).

A mixed-integer program over kinds of host, not over hosts. Whole numbers: how many hosts of a kind are cut into pieces
in each way (``8 = 4 + 4``, ``8 = 4 + 2 + 2``, …), and how many replicas take each option; of a size there are no more
replicas than pieces. The terms of the objective are solved one after the other, each held at its best before the next.

HiGHS comes with the extra ``fleet``; nothing else needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from selector.fleet.problem import Figures, Filling, Option, Packing, Problem, faults, figures

if TYPE_CHECKING:
    from highspy import Highs

#: Ways of cutting all kinds of host beyond which no exact solution is tried.
MAXIMUM_WAYS = 5_000
#: The share by which a solution may be short of the best: of floating-point numbers, none can be nearer.
TOLERANCE = 1e-6


class NoSolver(Exception):
    """HiGHS is not installed."""


class Unsolved(Exception):
    """No proven solution: too many ways of cutting hosts, or not within the nodes that were allowed."""


class Solved(NamedTuple):
    """The packing, and the best that each term of the objective could be, in the problem's units."""

    packing: Packing
    bounds: Figures


def installed() -> bool:
    """Whether HiGHS is here."""
    from importlib.util import find_spec

    return find_spec("highspy") is not None


def solved(problem: Problem, *, most_nodes: int | None = None) -> Solved:
    """The best packing.

    Args:
        most_nodes: of the search tree, for each term; ``None`` is as many as it takes. (Not a time: the same problem
            has the same answer on every machine.)

    Raises:
        NoSolver: the extra ``fleet`` is not installed.
        Unsolved: as it says.
    """
    try:
        import highspy
    except ImportError as error:
        raise NoSolver from error
    solver = highspy.Highs()  # type: ignore[no-untyped-call]  # it says that it is typed, and this is not
    program = _Program(problem, solver, most_nodes)
    lacking = program.least(program.lack({place: each.minimum for place, each in enumerate(problem.demands)}))
    wanted = devices = 0
    if problem.objective == "replicas":
        wanted = program.least(
            program.lack({place: problem.wanted(place) or 0 for place in range(len(problem.demands))})
        )
        devices = program.least(program.devices())
    output = program.most(program.output())
    packing = program.packing()
    found = faults(problem, packing)
    if found:
        raise Unsolved(f"the solver's answer cannot be: {found[0]}")
    return Solved(packing, Figures(lacking, wanted, devices, max(output, figures(problem, packing).output)))


class _Program:
    """The program in HiGHS. Columns: ways of cutting, then options, then one a deployment for each kind of lack."""

    def __init__(self, problem: Problem, solver: Highs, most_nodes: int | None) -> None:
        self._problem, self._solver = problem, solver
        solver.setOptionValue("output_flag", False)
        # With its presolve HiGHS 1.15.1 calls a packing of 36 devices the best where one of 32 is (a test has it).
        solver.setOptionValue("presolve", "off")
        solver.setOptionValue("threads", 1)
        solver.setOptionValue("random_seed", 0)
        solver.setOptionValue("mip_rel_gap", TOLERANCE / 10)
        solver.setOptionValue("mip_abs_gap", 1e-7)
        if most_nodes is not None:
            solver.setOptionValue("mip_max_nodes", most_nodes)
        self._columns = 0
        sizes = [
            sorted({each.slots for each in problem.options if each.bin == place and each.hosts == 1}, reverse=True)
            for place in range(len(problem.bins))
        ]
        found: list[tuple[int, tuple[int, ...]]] = []
        for place, each in enumerate(problem.bins):
            found += [(place, cut) for cut in cuts(each.slots, sizes[place], MAXIMUM_WAYS + 1 - len(found))]
        if len(found) > MAXIMUM_WAYS:
            raise Unsolved(f"more than {MAXIMUM_WAYS:,} ways of cutting hosts")
        self._cuts = [(place, cut, self._column(problem.bins[place].hosts)) for place, cut in found]
        self._options = [self._column(self._most(option)) for option in problem.options]
        for place, each in enumerate(problem.bins):
            row = {column: 1.0 for owner, _, column in self._cuts if owner == place}
            row |= {
                self._options[number]: float(option.hosts)
                for number, option in enumerate(problem.options)
                if option.bin == place and option.hosts > 1
            }
            self._row(row, most=each.hosts)
            for size in sizes[place]:
                pieces = {
                    column: -float(cut.count(size))
                    for owner, cut, column in self._cuts
                    if owner == place
                    if size in cut
                }
                takers = {
                    self._options[number]: 1.0
                    for number, option in enumerate(problem.options)
                    if option.bin == place and option.hosts == 1 and option.slots == size
                }
                self._row(pieces | takers, most=0)
        self._replicas = [
            {self._options[number]: 1.0 for number, each in enumerate(problem.options) if each.deployment == place}
            for place in range(len(problem.demands))
        ]
        for place, replicas in enumerate(self._replicas):
            if (most := problem.wanted(place)) is not None:
                self._row(replicas, most=most)

    # --- terms

    def lack(self, floors: dict[int, int]) -> dict[int, float]:
        """The weighted replicas that deployments are short of their floors."""
        term = {}
        for place, floor in floors.items():
            column = self._column(floor)
            self._row({column: 1.0, **self._replicas[place]}, least=floor)
            term[column] = float(self._problem.demands[place].weight)
        return term

    def devices(self) -> dict[int, float]:
        return {
            column: float(self._problem.devices(option))
            for column, option in zip(self._options, self._problem.options, strict=True)
        }

    def output(self) -> dict[int, float]:
        return {
            column: float(self._problem.value(option))
            for column, option in zip(self._options, self._problem.options, strict=True)
        }

    def least(self, term: dict[int, float]) -> int:
        """The least that a term can be; it is held there from now on."""
        found = round(self._solve(term, 1.0)[0])
        self._row(term, most=found + 0.5)
        return found

    def most(self, term: dict[int, float]) -> int:
        """The most that a term can be, as far as the solver's tolerance goes."""
        scale = max(term.values(), default=1.0) or 1.0
        _, bound = self._solve({column: -each / scale for column, each in term.items()}, scale)
        return -round(bound)

    # --- the solver

    def _solve(self, term: dict[int, float], scale: float) -> tuple[float, float]:
        """The least of a term, and the bound that is proven for it."""
        import highspy

        solver = self._solver
        solver.changeColsCost(
            self._columns, list(range(self._columns)), [term.get(each, 0.0) for each in range(self._columns)]
        )
        solver.run()
        if solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            raise Unsolved(f"the solver ended with: {solver.modelStatusToString(solver.getModelStatus())}")
        info = solver.getInfo()
        return info.objective_function_value * scale, info.mip_dual_bound * scale

    def _column(self, most: float) -> int:
        import highspy

        self._solver.addVar(0.0, float(most))
        self._solver.changeColIntegrality(self._columns, highspy.HighsVarType.kInteger)
        self._columns += 1
        return self._columns - 1

    def _row(self, row: dict[int, float], *, least: float | None = None, most: float | None = None) -> None:
        import highspy

        low = -highspy.kHighsInf if least is None else float(least)
        high = highspy.kHighsInf if most is None else float(most)
        self._solver.addRow(low, high, len(row), list(row), list(row.values()))

    def _most(self, option: Option) -> int:
        """How many replicas of an option there can be at most."""
        each = self._problem.bins[option.bin]
        room = each.hosts // option.hosts * (1 if option.hosts > 1 else each.slots // option.slots)
        most = self._problem.wanted(option.deployment)
        return room if most is None else min(room, most)

    # --- the answer

    def packing(self) -> Packing:
        """What the solver found, host by host."""
        values = self._solver.getSolution().col_value
        waiting: dict[tuple[int, int], list[int]] = {}
        units: dict[tuple[int, Filling], int] = {}
        for number, option in enumerate(self._problem.options):
            times = round(values[self._options[number]])
            if option.hosts > 1 and times:
                units[option.bin, (number,)] = times
            elif times:
                waiting.setdefault((option.bin, option.slots), []).extend([number] * times)
        for place, cut, column in self._cuts:
            for _ in range(round(values[column])):
                left = (waiting.get((place, size)) for size in cut)
                filling = tuple(sorted(each.pop() for each in left if each))
                if filling:
                    units[place, filling] = units.get((place, filling), 0) + 1
        return Packing(dict(sorted(units.items())))


def cuts(slots: int, sizes: list[int], most: int) -> list[tuple[int, ...]]:
    """The ways of cutting a host into pieces of these sizes, largest first, that leave no room for another piece."""
    found: list[tuple[int, ...]] = []

    def cut(made: tuple[int, ...], room: int, first: int) -> None:
        if len(found) >= most:
            return
        if not any(size <= room for size in sizes):
            if made:
                found.append(made)
            return
        for place in range(first, len(sizes)):
            if sizes[place] <= room:
                cut((*made, sizes[place]), room - sizes[place], place)

    cut((), slots, 0)
    return found
