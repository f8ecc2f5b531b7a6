"""Tasks as data: what comes along is sound, and a comparison counts what changed."""

from __future__ import annotations

from collections import Counter

import pytest

from edgemoe.quality.tasks import BUNDLED, TaskScore, read_tasks


def test_the_bundled_tasks_are_sound() -> None:
    tasks = read_tasks(BUNDLED)
    assert len(tasks) == len({task.name for task in tasks}) == len({task.prompt for task in tasks}) == 80
    assert Counter(task.name.rpartition("-")[0] for task in tasks) == {"fact": 24, "sense": 24, "last-word": 32}
    for task in tasks:
        assert len(set(task.choices)) == 4 and len(task.right) == 1
        assert not task.prompt.endswith(" ") and all(choice.startswith(" ") for choice in task.choices)
    # The place of the right choice says nothing.
    assert max(Counter(task.right[0] for task in tasks).values()) < 30


def test_the_last_words_were_in_the_passage() -> None:
    for task in read_tasks(BUNDLED):
        if task.name.startswith("last-word"):
            found = [choice.strip().split()[0].lower() in task.prompt.lower() for choice in task.choices]
            assert all(found), (task.prompt, task.choices)


def score(right: list[bool]) -> TaskScore:
    answers = tuple((str(i), 0, known) for i, known in enumerate(right))
    return TaskScore("m", len(right), sum(right), len(right), sum(right), answers)


def test_a_comparison_counts_what_changed() -> None:
    one, other = score([True, True, False, False, True]), score([True, False, True, True, True])
    assert one.changes(other) == (2, 1) and other.changes(one) == (1, 2) and one.changes(one) == (0, 0)
    assert score([True] * 3 + [False]).share == 0.75
    assert score([True] * 3 + [False]).share_error == pytest.approx((0.75 * 0.25 / 4) ** 0.5)
