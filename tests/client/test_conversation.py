"""Refining a search step by step; institutions are real, the model is perfect."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from client.searcher.conversation import Conversation, rocchio
from client.searcher.query import Query
from client.searcher.results import Result
from client.searcher.searcher import Searcher
from protocol.errors import UsageError
from protocol.insecure_twin import InsecureTwin
from protocol.params import Preset
from protocol.scheme import SecretKey
from tests.client.perfect import PerfectEncoder

Row = NDArray[np.float32]


class Counted(InsecureTwin):
    """Counts the questions that are asked: each has a key of its own."""

    def __init__(self) -> None:
        self.questions = 0

    def keygen(self, preset: Preset) -> SecretKey:
        self.questions += 1
        return super().keygen(preset)


@pytest.fixture
def scheme() -> Counted:
    return Counted()


@pytest.fixture
def conversation(served: list, scheme: Counted) -> Conversation:
    with Searcher(PerfectEncoder(served), [one.connect() for one in served], scheme) as searcher:
        yield Conversation(searcher, 6)


def directions() -> st.SearchStrategy[Row]:
    rows = arrays(np.float64, 6, elements=st.floats(-1, 1))
    return rows.filter(lambda row: np.linalg.norm(row) > 0.1).map(
        lambda row: (row / np.linalg.norm(row)).astype(np.float32)
    )


@given(directions(), st.lists(directions(), max_size=4), st.lists(directions(), max_size=4))
def test_rocchio_moves_towards_the_good_and_away_from_the_bad(
    question: Row, good: list[Row], bad: list[Row]
) -> None:
    mean = question.astype(np.float64)
    mean += 0.75 * np.mean(good, axis=0) if good else 0
    mean -= 0.25 * np.mean(bad, axis=0) if bad else 0
    length = np.linalg.norm(mean)
    if length < 1e-3:
        return
    moved = rocchio(question, good, bad)
    assert moved.dtype == np.float32 and abs(np.linalg.norm(moved) - 1) < 1e-5
    assert np.allclose(moved, mean / length, atol=1e-4)


@given(directions(), directions())
def test_one_mark_moves_by_its_own_side(question: Row, marked: Row) -> None:
    before = float(question @ marked)
    if abs(before) < 0.99:
        assert rocchio(question, [marked], []) @ marked > before
        assert rocchio(question, [], [marked]) @ marked < before


def test_what_is_good_comes_nearer_and_what_is_bad_goes(conversation: Conversation) -> None:
    found = conversation.search("museum 9")
    good, bad = found[2], found[1]
    again = conversation.refine([good], [bad])
    score = {one.key: one.score for one in again}
    assert score[good.key] > good.score
    assert score.get(bad.key, -1.0) < score[good.key]
    assert conversation.steps[-1].good == (good,) and conversation.steps[-1].bad == (bad,)
    assert str(again.query) == "museum 9"


def test_more_like_looks_for_that_picture_alone(conversation: Conversation) -> None:
    found = conversation.search("harbour 30")
    museum = next(one for one in found if one.institution != "harbour")
    more = conversation.more_like(museum)
    # A thumbnail is a JPEG, so its colour, by which this encoder knows it, is off by one or two.
    assert more[0].institution == museum.institution
    assert abs(more[0].position - museum.position) <= 2 and more[0].score > 0.99


def test_without_turns_away_and_adds_up(conversation: Conversation) -> None:
    first = conversation.search(Query("museum 9", without=("clinic 1",)))
    second = conversation.without("museum 9")
    assert str(second.query) == "museum 9, not clinic 1, not museum 9"
    nine = {one.key: one.score for one in second}.get(("museum", 9), -1.0)
    assert nine < first[0].score
    with pytest.raises(UsageError, match="1 to 2000 characters"):
        conversation.without(" ")


def test_undo_goes_back_and_asks_nobody(conversation: Conversation, scheme: Counted) -> None:
    first = conversation.search("museum 9")
    conversation.refine([first[1]])
    third = conversation.search("clinic 3")
    assert scheme.questions == 9
    conversation.undo()
    assert conversation.results is not third
    assert conversation.undo() is first
    assert scheme.questions == 9
    with pytest.raises(UsageError, match="no step to go back to"):
        conversation.undo()
    assert conversation.results is first


def test_nothing_can_be_refined_before_the_first_question(conversation: Conversation) -> None:
    one = Result("clinic", 1, 0.5, b"", "a caption")
    for step in (
        lambda: conversation.results,
        lambda: conversation.refine([one]),
        lambda: conversation.without("snow"),
        conversation.undo,
    ):
        with pytest.raises(UsageError, match=r"nothing was searched|no step"):
            step()


def test_marks_are_needed_and_must_be_of_something(
    conversation: Conversation, scheme: Counted
) -> None:
    conversation.search("museum 9")
    asked = scheme.questions
    with pytest.raises(UsageError, match="no result was marked"):
        conversation.refine()
    with pytest.raises(UsageError, match="neither a thumbnail nor a caption"):
        conversation.refine([Result("clinic", 1, 0.5, b"", "")])
    with pytest.raises(UsageError, match="clinic #1"):
        conversation.more_like(Result("clinic", 1, 0.5, b"", ""))
    assert scheme.questions == asked and len(conversation.steps) == 1


def test_a_caption_will_do_where_there_is_no_picture(conversation: Conversation) -> None:
    conversation.search("museum 9")
    more = conversation.more_like(Result("clinic", 7, 0.5, b"", "clinic 7"))
    assert more[0].key == ("clinic", 7)


def test_a_step_that_nobody_answers_is_taken_back(conversation: Conversation) -> None:
    first = conversation.search("museum 9")
    conversation.also["institutions"] = ("nobody",)
    with pytest.raises(UsageError, match="nobody cannot be asked"):
        conversation.search("museum 8")
    assert conversation.results is first
