"""What can be asked for: words, pictures, both, and what it shall not be."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from client.searcher.query import MAX_CHARACTERS, Query, unit
from protocol.errors import DataError, UsageError
from protocol.model.embedder import Embedder
from protocol.model.tower_settings import TowerSettings
from protocol.model.towers import TwoTowers


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    tiny = TowerSettings(dim=16, image_size=32, text_width=16, text_heads=2, buckets=64)
    return Embedder(TwoTowers.initial(tiny, 0))


def png(colour: tuple[int, int, int]) -> bytes:
    made = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(made, "PNG")
    return made.getvalue()


@pytest.mark.parametrize("text", ["", " \n\t", "x" * (MAX_CHARACTERS + 1), "\u3000"])
def test_a_sentence_that_is_none_is_refused(text: str) -> None:
    for make in (lambda: Query(text), lambda: Query("a dog", without=(text,))):
        with pytest.raises(UsageError, match="1 to 2000 characters"):
            make()
    if text:
        with pytest.raises(UsageError, match="1 to 2000 characters"):
            Query(text, png((1, 2, 3)))


@pytest.mark.parametrize(
    "text",
    [
        "a red car in snow",
        "🦊👨‍👩‍👧‍👦",
        "ein großer roter Kreis",
        "雪の中の赤い車",
        "سيارة حمراء",
        "x" * MAX_CHARACTERS,
        "\x00\x1b[2J",
    ],
)
def test_every_language_becomes_a_direction(embedder: Embedder, text: str) -> None:
    vector = Query(text).embed(embedder)
    assert vector.dtype == np.float32 and vector.shape == (16,)
    assert abs(np.linalg.norm(vector) - 1) < 1e-5


@settings(deadline=None, max_examples=50)
@given(st.text(min_size=1, max_size=80))
def test_any_text_is_embedded_or_refused(embedder: Embedder, text: str) -> None:
    if not text.strip():
        with pytest.raises(UsageError):
            Query(text)
        return
    vector = Query(text).embed(embedder)
    assert np.isfinite(vector).all() and abs(np.linalg.norm(vector) - 1) < 1e-5


def test_words_and_a_picture_meet_in_the_middle(embedder: Embedder, tmp_path: Path) -> None:
    picture = png((200, 10, 10))
    (tmp_path / "a.png").write_bytes(picture)
    words, seen = Query("more blue").embed(embedder), Query(image=picture).embed(embedder)
    assert np.allclose(Query(image=tmp_path / "a.png").embed(embedder), seen)
    both = Query("more blue", picture).embed(embedder)
    assert np.allclose(both, unit(words + seen), atol=1e-6)
    assert not np.allclose(both, seen, atol=1e-2)


def test_a_negative_term_turns_away(embedder: Embedder) -> None:
    wanted, unwanted = (Query(one).embed(embedder) for one in ("a dog", "a red ball"))
    vector = Query("a dog", without=("a red ball",)).embed(embedder)
    assert vector @ unwanted < wanted @ unwanted
    assert np.allclose(vector, unit(wanted - 0.5 * unwanted), atol=1e-6)


def test_what_cancels_out_is_refused(embedder: Embedder) -> None:
    with pytest.raises(UsageError, match="cancel out"):
        Query("a dog", without=("a dog", "a dog")).embed(embedder)


@pytest.mark.parametrize(
    "data", [b"", b"no picture", b"GIF89a", b"\xff\xd8\xff\xe0", png((1, 2, 3))[:60], b"<svg/>"]
)
def test_bytes_that_are_no_picture_are_refused(
    embedder: Embedder, data: bytes, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="the picture"):
        Query(image=data).embed(embedder)
    (tmp_path / "named.png").write_bytes(data)
    with pytest.raises(DataError, match=r"named\.png"):
        Query(image=tmp_path / "named.png").embed(embedder)


def test_what_cannot_be_read_is_named(embedder: Embedder, tmp_path: Path) -> None:
    huge = tmp_path / "huge.png"
    with huge.open("wb") as file:
        file.truncate(65 << 20)
    for path, words in (
        (tmp_path / "none.png", "No such file"),
        (tmp_path, "expected a file"),
        (huge, "at most"),
    ):
        with pytest.raises(DataError, match=words):
            Query(image=path).embed(embedder)


def test_it_says_what_is_looked_for() -> None:
    asked = Query("a dog", b"secret bytes", ("snow", "people"))
    assert str(asked) == "a dog, like a picture, not snow, not people"
    assert "secret" not in repr(asked)
