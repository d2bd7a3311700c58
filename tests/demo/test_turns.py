"""Whose turn it is, by hand."""

from demo.turns import Turns


def filled(*items: str) -> Turns[str]:
    turns: Turns[str] = Turns()
    for item in items:
        turns.add(item[0], item)
    return turns


def drained(turns: Turns[str]) -> list[str]:
    order = []
    while (item := turns.next()) is not None:
        order.append(item)
        turns.served()
    return order


def test_sessions_take_turns() -> None:
    assert drained(filled("a1", "a2", "a3", "b1", "c1", "c2")) == ["a1", "b1", "c1", "a2", "c2", "a3"]


def test_who_was_just_served_stands_behind_who_came_meanwhile() -> None:
    turns = filled("a1", "a2")
    assert turns.next() == "a1"
    turns.add("b", "b1")
    turns.served()
    assert drained(turns) == ["b1", "a2"]


def test_ahead_is_how_many_come_before() -> None:
    turns = filled("a1", "a2", "a3", "b1", "c1", "c2")
    wanted = ["a1", "b1", "c1", "a2", "c2", "a3"]
    assert [turns.ahead(item[0], item) for item in wanted] == [0, 1, 2, 3, 4, 5]
    assert turns.next() == "a1"
    assert [turns.ahead(item[0], item) for item in wanted[1:]] == [1, 2, 3, 4, 5]


def test_removed_items_leave_no_gap_and_no_empty_turn() -> None:
    turns = filled("a1", "b1", "b2", "c1")
    assert turns.remove("a", "a1")
    assert not turns.remove("a", "a1")
    assert not turns.remove("c", "b1")
    assert turns.remove("b", "b1")
    assert len(turns) == 2
    assert drained(turns) == ["b2", "c1"]
    assert turns.next() is None
