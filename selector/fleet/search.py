"""A packing that is being made, and the search over its neighbours.

A neighbour is one host emptied and filled again (which is exact for that host), one replica moved, two hosts, and a few
that are drawn, some with an option put in first. Hosts of one kind with one filling are looked at once, so a pass costs
as much for a thousand hosts as for the kinds of host and filling there are. Draws come from a fixed seed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations

from selector.fleet.filling import Filler
from selector.fleet.problem import Filling, Packing

#: Tries of one search; a try empties and fills a few hosts.
_PAIRS = 600
_DRAWS = 250
#: Hosts that are filled for a try, over all starts: a few seconds of work.
_FILLED = 80_000
_WIDEST = 5
_SEED = 86

#: A kind of host and what it carries.
Unit = tuple[int, Filling]


class Effort:
    """How many hosts may still be filled for a try."""

    def __init__(self, hosts: int = _FILLED) -> None:
        self.left = hosts


class Fleet:
    """A packing that is being made. Every host is in a unit; those that carry nothing are in an empty one."""

    def __init__(self, filler: Filler, guides: tuple[Filler, ...], effort: Effort) -> None:
        self._filler, self._guides, self._problem = filler, (filler, *guides), filler.problem
        self._effort = effort
        self.units: dict[Unit, int] = {
            (place, ()): each.hosts for place, each in enumerate(filler.problem.bins) if each.hosts
        }
        self.counts = [0] * len(filler.problem.demands)
        self.worth = 0

    def packing(self) -> Packing:
        return Packing(dict(sorted((unit, times) for unit, times in self.units.items() if unit[1])))

    # --- starts

    def filled(self, order: list[int], *, guided: bool = False) -> Fleet:
        """Empty hosts filled, kind by kind."""
        for place in order:
            while free := self.units.get((place, ()), 0):
                worth, made = self._fill([place] * free, (self._guides[-1 if guided else 0],) * free)
                if not any(filling for _, filling in made):
                    break
                self._replace([(place, ())] * free, made, worth)
        return self

    def taken(self, packing: Packing) -> Fleet:
        """Empty hosts filled as in a packing."""
        for (place, filling), times in packing.units.items():
            for _ in range(times):
                wide = self._wide(filling)
                self._replace([(place, ())] * wide, [(place, filling)], self._filler.gain(filling, self.counts) or 0)
        return self

    def rounded(self, shares: tuple[dict[Filling, float], ...]) -> Fleet:
        """Of empty hosts, as many as the shares say and no deployment forbids."""
        for place, found in enumerate(shares):
            hosts = self._problem.bins[place].hosts
            for filling, share in sorted(found.items(), key=lambda each: (-each[1], each[0])):
                wide = self._problem.options[filling[0]].hosts if filling else 1
                for _ in range(int(hosts * share) // wide if filling else 0):
                    worth = self._filler.gain(filling, self.counts)
                    if worth is None or worth <= 0 or self.units.get((place, ()), 0) < wide:
                        break
                    self._replace([(place, ())] * wide, [(place, filling)], worth)
        return self

    # --- the search

    def bettered(self, enough: int, *, rounds: int = 0) -> None:
        """Neighbours are tried, the small changes first, until none is better, or it is worth ``enough``."""
        chance = random.Random(_SEED)  # noqa: S311  # not for secrets: the same draws every time
        while self.worth < enough and self._effort.left > 0:
            while self.worth < enough and (sum(self._tried([unit]) for unit in self._alive()) or self._moved()):
                pass
            if self._pairs(chance, enough):
                continue
            for _ in range(rounds):
                if self.worth >= enough or self._effort.left <= 0:
                    return
                if self._drawn(chance) or self._forced(chance, range(len(self._problem.options))):
                    break
            else:
                return

    def wandered(self, chance: random.Random, enough: int) -> None:
        """Draws, better or as good, some of them for the sake of what is lacking."""
        lacking = [
            number
            for number, option in enumerate(self._problem.options)
            if self._filler.bonuses(option.deployment, self.counts[option.deployment], 1) > (0,)
        ]
        before = self.worth
        while self.worth < enough and self._effort.left > 0 and self.worth == before:
            if chance.random() < 0.5:
                self._drawn(chance, 10)
            else:
                self._forced(chance, lacking, 10)

    def _alive(self) -> list[Unit]:
        return sorted(unit for unit, times in self.units.items() if times)

    def _moved(self) -> bool:
        """Whether one replica given up makes room for more in the free slots of another host; it is done then."""
        found = False
        for unit in self._alive():
            for number in sorted(set(unit[1])):
                if self.units.get(unit, 0):
                    found = self._given_up(unit, number) or found
        return found

    def _given_up(self, unit: Unit, number: int) -> bool:
        place, filling = unit
        self._count_on((number,), self.counts, -1)
        lost = self._filler.gain((number,), self.counts) or 0
        best: tuple[int, Unit, Filling] | None = None
        for other, times in sorted(self.units.items()):
            used = sum(self._problem.options[each].slots for each in other[1])
            if used >= self._problem.bins[other[0]].slots or (other == unit and times < 2):
                continue
            worth, more = self._filler.best(other[0], self.counts, used)
            if worth > (lost if best is None else best[0]):
                best = (worth, other, more)
        self._count_on((number,), self.counts)
        if best is None:
            return False
        left = list(filling)
        left.remove(number)
        # The hosts that a replica spanned are free, one by one.
        freed = [(place, tuple(left))] * (1 if left else self._wide(filling))
        worth, other, more = best
        for each in (unit, other):
            self._count_on(each[1], self.counts, -1)
            self._drop(each)
        for each in (*freed, (other[0], tuple(sorted((*other[1], *more))))):
            self._add(each)
        self.worth += worth - lost
        return True

    def _pairs(self, chance: random.Random, enough: int) -> bool:
        alive = self._alive()
        pairs = [*combinations(alive, 2), *((each, each) for each in alive)]
        if len(pairs) > _PAIRS:
            pairs = chance.sample(pairs, _PAIRS)
        found = False
        for pair in pairs:
            if self.worth >= enough:
                break
            found = self._tried(list(pair)) or found
        return found

    def _drawn(self, chance: random.Random, draws: int = _DRAWS) -> bool:
        """A few hosts, of any kinds or of one."""
        found = False
        for _ in range(draws):
            alive = self._alive()
            if chance.random() < 0.3:
                kind = chance.choice(alive)[0]
                alive = [unit for unit in alive if unit[0] == kind]
            found = self._tried([chance.choice(alive) for _ in range(chance.randint(2, _WIDEST))], chance) or found
        return found

    def _forced(self, chance: random.Random, options: Sequence[int], draws: int = _DRAWS) -> bool:
        """An option that is put in first, whatever else: on hosts of its kind, and perhaps in others' stead."""
        found = False
        for _ in range(draws if options else 0):
            number = chance.choice(options)
            option = self._problem.options[number]
            alive = self._alive()
            own = [unit for unit in alive if unit[0] == option.bin]
            units: list[Unit] = []
            while own and sum(self._wide(filling) for _, filling in units) < option.hosts:
                units.append(chance.choice(own))
            alike = [unit for unit in alive if any(self._deployment(each) == option.deployment for each in unit[1])]
            units += [
                chance.choice(alike if alike and chance.random() < 0.5 else alive)
                for _ in range(chance.randint(0, _WIDEST - 1))
            ]
            found = self._tried(units, chance, number) or found
        return found

    def _tried(self, units: list[Unit], chance: random.Random | None = None, forced: int | None = None) -> bool:
        """Whether the hosts of some units, emptied and filled again, carry more; they do then."""
        needed: dict[Unit, int] = {}
        for unit in units:
            needed[unit] = needed.get(unit, 0) + 1
        if not units or self._effort.left <= 0:
            return False
        if any(self.units.get(unit, 0) < times for unit, times in needed.items()):
            return False
        before = list(self.counts)
        given = 0
        for _, filling in units:
            self._count_on(filling, self.counts, -1)
            given += self._filler.gain(filling, self.counts) or 0
        places = [place for place, filling in units for _ in range(self._wide(filling))]
        mixed = len(set(places)) > 1
        if mixed and chance is not None:
            chance.shuffle(places)
        orders = (places, places[::-1]) if mixed and chance is None else (places,)
        tries = [self._fill(order, (by,) * len(order), forced) for order in orders for by in self._guides]
        if chance is not None:
            tries.append(self._fill(places, [chance.choice(self._guides) for _ in places], forced))
        best = max(tries, key=lambda each: each[0])
        if best[0] < given or (best[0] == given and chance is None):
            self.counts = before
            return False
        for unit in units:
            self._drop(unit)
        for unit in best[1]:
            self._add(unit)
        self.worth += best[0] - given
        return best[0] > given

    # --- hosts

    def _fill(self, places: list[int], by: Sequence[Filler], forced: int | None = None) -> tuple[int, list[Unit]]:
        """Hosts of these kinds, all empty, filled in order, ``forced`` before all: their worth then, and how."""
        self._effort.left -= len(places)
        counts = list(self.counts)
        left: dict[int, int] = {}
        for place in places:
            left[place] = left.get(place, 0) + 1
        made: list[Unit] = []
        total = 0
        if forced is not None:
            option = self._problem.options[forced]
            gain = self._filler.gain((forced,), counts) if left.get(option.bin, 0) >= option.hosts else None
            if gain is None:
                return -1, []
            counts[option.deployment] += 1
            beside = by[0].best(option.bin, counts, option.slots)[1] if option.hosts == 1 else ()
            total = gain + (self._filler.gain(beside, counts) or 0)
            made.append((option.bin, tuple(sorted((forced, *beside)))))
            self._count_on(beside, counts)
            left[option.bin] -= option.hosts
        for place, guide in zip(places, by, strict=True):
            if not left[place]:
                continue
            filling, wide = self._best(place, left[place], counts, guide)
            left[place] -= wide
            total += self._filler.gain(filling, counts) or 0
            made.append((place, filling))
            self._count_on(filling, counts)
        return total, made

    def _best(self, place: int, hosts: int, counts: list[int], by: Filler) -> tuple[Filling, int]:
        """What the next host, or the next few that one replica spans, carry best."""
        worth, best = by.best(place, counts)
        over = 1
        for number in by.spanning[place]:
            wide = self._problem.options[number].hosts
            gain = by.gain((number,), counts) if wide <= hosts else None
            if gain is None or gain <= 0 or gain * over <= worth * wide:
                continue
            if gain > self._alone(place, wide, counts, by):
                worth, best, over = gain, (number,), wide
        return best, over

    def _alone(self, place: int, hosts: int, counts: list[int], by: Filler) -> int:
        """What hosts of a kind are worth, each filled for itself."""
        counts = list(counts)
        total = 0
        for _ in range(hosts):
            worth, filling = by.best(place, counts)
            total += worth
            self._count_on(filling, counts)
        return total

    def _count_on(self, filling: Filling, counts: list[int], more: int = 1) -> None:
        for number in filling:
            counts[self._problem.options[number].deployment] += more

    def _deployment(self, number: int) -> int:
        return self._problem.options[number].deployment

    def _wide(self, filling: Filling) -> int:
        return self._problem.options[filling[0]].hosts if filling else 1

    def _replace(self, old: list[Unit], new: list[Unit], worth: int) -> None:
        for unit in old:
            self._drop(unit)
        for unit in new:
            self._add(unit)
        self.worth += worth

    def _add(self, unit: Unit) -> None:
        self.units[unit] = self.units.get(unit, 0) + 1
        self._count_on(unit[1], self.counts)

    def _drop(self, unit: Unit) -> None:
        self.units[unit] -= 1
        if not self.units[unit]:
            del self.units[unit]
