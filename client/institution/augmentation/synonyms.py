"""Words that may stand for each other in a caption.

They come from the list that ships with this package, from a file in the same format, or from a
WordNet database. The format is Solr's (Solr Reference Guide, "Synonym Graph Filter"): a line of
words with commas between them, each of which may stand for each other; or ``these, words =>
become, one of these``. A line that starts with ``#`` is a comment; a backslash makes a comma plain.
"""

import re
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import Self

from client.institution.augmentation.lines import broken, read_lines
from client.institution.augmentation.wordnet import read_wordnet

#: Markdown by name, for a Flower bundle takes no other plain text; Solr's format by content.
SHIPPED = "synonyms.md"
WORD_LETTERS = 100
HINT = "a line looks like: sofa, couch, settee"
#: Nouns whose plural does not follow the three rules below, or may not; they are left alone.
_IRREGULAR = re.compile(
    r".*(m[ae]n|child|children|people|person|foot|tooth|goose|mouse|sheep|deer|fish|craft|f|fe|o)"
)

Group = tuple[str, ...]


class Synonyms:
    """What may stand for a word: built once, then only read, so threads may share it."""

    def __init__(self, groups: Iterable[tuple[Group, Group]]) -> None:
        """``groups``: words, and what may stand for each of them (itself is passed over)."""
        self._groups: dict[str, list[Group]] = {}
        for words, others in groups:
            for word in words:
                self._groups.setdefault(word.lower(), []).append(others)

    @classmethod
    def shipped(cls) -> Self:
        """The list that comes with this package: some everyday, medical and shop words."""
        with resources.as_file(resources.files(__package__) / SHIPPED) as path:
            return cls.read(path)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads a file in Solr's format, or a folder with WordNet's database.

        Raises DataError, naming file and line, for what is missing, too large or broken.
        """
        return cls(read_wordnet(path) if path.is_dir() else _read_solr(path))

    def of(self, word: str) -> tuple[str, ...]:
        """What may stand for ``word``, in whatever case that is written; often nothing.

        The regular plural of a word in the list has its synonyms' regular plurals; "man" and
        "children" must be in the list themselves. So must other forms: "building" is not
        "constructing" with another ending.
        """
        word = word.lower()
        if word in self._groups:
            return self._others(word)
        for singular in (word[:-1], word[:-2], word[:-3] + "y"):
            if singular in self._groups and plural(singular) == word:
                found = dict.fromkeys(map(plural, self._others(singular)))
                return tuple(one for one in found if one is not None and one != word)
        return ()

    def _others(self, word: str) -> tuple[str, ...]:
        found = dict.fromkeys(other for group in self._groups[word] for other in group)
        return tuple(other for other in found if other.lower() != word)


def plural(noun: str) -> str | None:
    """The regular plural of one lower-case English word; None where it may be irregular."""
    if not re.fullmatch(r"[a-z]{3,}", noun) or _IRREGULAR.fullmatch(noun):
        return None
    if re.search(r"[^aeiou]y$", noun):
        return noun[:-1] + "ies"
    if re.search(r"(ss|us|x|sh|tch|nch|[ou]rch|[eo]ach)$", noun):
        return noun + "es"
    return None if re.search(r"(s|z|ch)$", noun) else noun + "s"


def _read_solr(path: Path) -> Iterator[tuple[Group, Group]]:
    for number, line in read_lines(path, HINT):
        said = "" if line.startswith("#") else line.strip()
        sides = [_words(side) for side in re.split(r"(?<!\\)=>", said)] if said else []
        if len(sides) > 2 or not all(map(_are_words, sides)):
            raise broken(
                path, number, f"words of 1 to {WORD_LETTERS} letters, got {said!r:.60}", HINT
            )
        if sides:
            yield sides[0], sides[-1]


def _words(side: str) -> Group:
    return tuple(re.sub(r"\\(.)", r"\1", word).strip() for word in re.split(r"(?<!\\),", side))


def _are_words(words: Group) -> bool:
    """Whether these can stand in a caption and on a terminal."""
    return all(0 < len(word) <= WORD_LETTERS and word.isprintable() for word in words)
