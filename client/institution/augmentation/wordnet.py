"""WordNet's database as Princeton and Debian ship it: the manual pages wndb(5WN), cntlist(5WN).

Of a word's senses only the most frequent one counts: the first in its index, in the part of
speech in which WordNet's authors met it most often.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from client.institution.augmentation.lines import broken, read_lines

HINT = "give a folder of WordNet 3 as installed: data.noun, index.noun and so on, cntlist.rev"
#: As the first digit of a sense key has them; 5 is an adjective too, a satellite of others.
PARTS = {"1": "noun", "2": "verb", "3": "adj", "4": "adv", "5": "adj"}

_OFFSET = r"(\d{8})"
_SYNSET = re.compile(_OFFSET + r" \d\d [nvasr] ([0-9a-f]{2}) (.*)")
_ENTRY = re.compile(r"(\S+) [nvar] \d+ (\d{1,3}) (.*)")
_COUNT = re.compile(r"([^% ]+)%([1-5]):\S+ (\d{1,9}) (\d{1,9})")
#: Neither names nor Latin: both have capitals, or points and digits.
_PLAIN = re.compile(r"[a-z]+(?:[ '-][a-z]+)*")

Group = tuple[str, ...]


def read_wordnet(folder: Path) -> Iterator[tuple[Group, Group]]:
    """Each single word that has synonyms in its most frequent sense, and these.

    Raises DataError, naming file and line, for what is missing, too large or broken.
    """
    counts = _counts(folder / "cntlist.rev")
    best: dict[str, tuple[int, Group]] = {}
    for part in dict.fromkeys(PARTS.values()):
        synsets = _synsets(folder / f"data.{part}")
        for word, words in _first_senses(folder / f"index.{part}", synsets):
            count = counts.get((word, part), 0)
            if word not in best or count > best[word][0]:
                best[word] = count, words
    for word, (_, words) in best.items():
        if len(words) > 1 or word not in words:
            yield (word,), words


def _counts(path: Path) -> dict[tuple[str, str], int]:
    """How often each word was met in its first sense, by part of speech."""
    counts: dict[tuple[str, str], int] = {}
    for number, line in read_lines(path, HINT):
        match = _COUNT.fullmatch(line)
        if match is None:
            raise broken(path, number, f"sense key, number and count, got {line!r:.60}", HINT)
        word, part, sense, count = match.groups()
        if int(sense) == 1:
            counts[word, PARTS[part]] = int(count)
    return counts


def _synsets(path: Path) -> dict[str, Group]:
    """The plain words of each set of synonyms, by its offset."""
    synsets: dict[str, Group] = {}
    for number, line in _entries(path):
        match = _SYNSET.fullmatch(line)
        fields = match[3].split(" ", 2 * int(match[2], 16)) if match else []
        if match is None or len(fields) <= 2 * int(match[2], 16):
            raise broken(path, number, f"a synset with all its words, got {line!r:.60}", HINT)
        # Adjectives may carry a mark of their place: "galore(ip)".
        words = (word.partition("(")[0].replace("_", " ") for word in fields[:-1:2])
        synsets[match[1]] = tuple(word for word in words if _PLAIN.fullmatch(word))
    return synsets


def _first_senses(path: Path, synsets: dict[str, Group]) -> Iterator[tuple[str, Group]]:
    """Single words and the synset that their index names first."""
    for number, line in _entries(path):
        match = _ENTRY.fullmatch(line)
        # The pointers' symbols, two counts, then the offsets.
        rest = match[3].split()[int(match[2]) + 2 :] if match else []
        if match is None or not rest or rest[0] not in synsets:
            raise broken(path, number, f"a word with offsets of synsets, got {line!r:.60}", HINT)
        if "_" not in match[1]:
            yield match[1], synsets[rest[0]]


def _entries(path: Path) -> Iterator[tuple[int, str]]:
    """The lines after the licence, which starts each of its own with two spaces."""
    return ((number, line) for number, line in read_lines(path, HINT) if line[:2] != "  ")
