"""Laws of where a request goes where several hosts have its model, whatever state they are in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from autolaunch.daemon.gateway.routing import STICKY_SLACK, Endpoint, Model, Place, Standing, Traffic


class Member:
    """A replica of this host, or another host, as it is drawn."""

    def __init__(self, number: int, *, far: bool, up: bool, degraded: bool, load: tuple[int, int, int]) -> None:
        self.name = "glm"
        self.context_tokens = None
        self.far = far
        self.traffic = Traffic()
        self.traffic.under_way, self.traffic.of_others = load[:2]
        self.traffic.engines = load[2]
        self._endpoint = Endpoint(
            run=1,
            engine=None if far else "vllm",
            host=f"h{number}" if far else "127.0.0.1",
            port=8000 + (0 if far else number),
            served_name="glm",
            degraded=degraded,
        )
        self.up = up

    def endpoint(self) -> Endpoint | None:
        return self._endpoint if self.up else None

    @property
    def place(self) -> Place:
        return self._endpoint.place

    @property
    def degraded(self) -> bool:
        return self._endpoint.degraded

    def standing(self) -> Standing:
        return Standing(condition="serving" if self.up else "unreachable", message="is so")

    def wake(self) -> None:
        pass


LOADS = st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(1, 8))
DRAWN = st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans(), LOADS), max_size=8)
CONVERSATIONS = st.none() | st.binary(min_size=1, max_size=8)


def pool(drawn: list[tuple[bool, bool, bool, tuple[int, int, int]]]) -> tuple[Model, list[Member]]:
    members = [
        Member(number, far=far, up=up, degraded=degraded, load=load if far else (load[0], 0, 1))
        for number, (far, up, degraded, load) in enumerate(drawn)
    ]
    model = Model("glm")
    model.replicas = tuple(each for each in members if not each.far)
    model.hosts = tuple(each for each in members if each.far)
    return model, members


@given(DRAWN, CONVERSATIONS, st.data())
def test_a_request_never_goes_to_who_is_down_or_failed_it_while_another_is_there(
    drawn: list[tuple[bool, bool, bool, tuple[int, int, int]]], conversation: bytes | None, data: st.DataObject
) -> None:
    model, members = pool(drawn)
    failed = frozenset(each.place for each in members if data.draw(st.booleans()))
    found = model.pick(conversation, failed)
    there = [each for each in members if each.up and each.place not in failed]
    assert (found is None) == (not there)
    if found is not None:
        assert found[0] in there
        assert found[1].place == found[0].place
        assert not found[1].degraded or all(each.degraded for each in there)


@given(DRAWN, CONVERSATIONS)
def test_it_goes_to_the_least_load_and_a_conversation_to_no_much_greater_one(
    drawn: list[tuple[bool, bool, bool, tuple[int, int, int]]], conversation: bytes | None
) -> None:
    model, members = pool(drawn)
    found = model.pick(conversation)
    there = [each for each in members if each.up]
    there = [each for each in there if not each.degraded] or there
    if found is not None and len(there) > 1:
        least = min(each.traffic.load for each in there)
        assert found[0].traffic.load <= least + (0 if conversation is None else STICKY_SLACK)


@given(DRAWN, CONVERSATIONS)
def test_what_was_passed_on_stays_on_this_host(
    drawn: list[tuple[bool, bool, bool, tuple[int, int, int]]], conversation: bytes | None
) -> None:
    model, members = pool(drawn)
    found = model.pick(conversation, here=True)
    assert (found is not None) == any(each.up and not each.far for each in members)
    assert found is None or found[0] in model.replicas


@given(DRAWN, st.binary(min_size=1, max_size=8), st.integers(0, 7))
def test_when_a_host_goes_only_its_own_conversations_move(
    drawn: list[tuple[bool, bool, bool, tuple[int, int, int]]], conversation: bytes, index: int
) -> None:
    model, members = pool([(far, up, False, (0, 0, load[2])) for far, up, _, load in drawn])
    before = model.pick(conversation)
    if before is None or index >= len(members) or not members[index].far:
        return
    members[index].up = False
    after = model.pick(conversation)
    if before[0] is not members[index]:
        assert after == before
