"""Easy data augmentation of captions (EDA, Wei & Zou 2019, arXiv:1901.11196, section 2).

Random insertion, EDA's fourth operation, is left out: it says what a picture may not show.
"""

from collections.abc import Callable
from unicodedata import category

import torch

from client.institution.augmentation.names import named
from client.institution.augmentation.synonyms import Synonyms

#: The part of a caption's words that changes; one word at least (section 2).
ALPHA = 0.1
#: Words that hold a sentence together, or say where things are: they get no synonym.
_STOP_WORDS = """
a an the this that these those and or but nor so if as than then there here not no yes
i me my mine we us our ours you your yours he him his she her hers it its they them their
who whom whose which what when where why how all any both each few more most other some such
am is are was were be been being have has had having do does did doing done can could may
might must shall should will would of at by for with about against between into through
during before after above below to from up down in out on off over under again once while
near behind beside along across around inside outside onto upon toward towards left right
top bottom front back one two three four five six seven eight nine ten
"""
_STOPS = frozenset(_STOP_WORDS.split())


class TextAugmentation:
    """The operations that a training setting names, one after the other."""

    def __init__(self, names: str, synonyms: Synonyms) -> None:
        """``names`` as in TrainingSettings.text_augmentation: "synonym,delete", or "none".

        Raises UsageError for an unknown name.
        """
        known: dict[str, Callable[[list[str], torch.Generator], list[str]]] = {
            "synonym": self._replace,
            "delete": delete,
            "swap": swap,
        }
        self._operations = named("text-augmentation", names, known)
        self._synonyms = synonyms

    def __call__(self, text: str, generator: torch.Generator) -> str:
        """The caption, changed; it keeps one word at least. Words are what white space parts."""
        words = text.split()
        if not self._operations or not words:
            return text
        for operation in self._operations:
            words = operation(words, generator)
        return " ".join(words)

    def _replace(self, words: list[str], generator: torch.Generator) -> list[str]:
        """Puts synonyms in the place of words, inside their punctuation and with their case."""
        options = {
            place: found for place, word in enumerate(words) if (found := self._options(word))
        }
        changed, places = words.copy(), list(options)
        order = torch.randperm(len(places), generator=generator).tolist()
        for place in (places[index] for index in order[: _amount(words)]):
            changed[place] = options[place][_below(len(options[place]), generator)]
        return changed

    def _options(self, word: str) -> list[str]:
        core = word.strip("".join(sign for sign in set(word) if category(sign)[0] in "PS"))
        if not core or core.lower() in _STOPS:
            return []
        found = self._synonyms.of(core)
        if core[0].isupper():
            found = tuple(one[0].upper() + one[1:] for one in found)
        return [word.replace(core, one, 1) for one in found]


def delete(words: list[str], generator: torch.Generator) -> list[str]:
    """Leaves out each word with probability ALPHA; if that were all, one stays."""
    draws = torch.rand(len(words), generator=generator).tolist()
    luckiest = max(draws)
    return [
        word for word, draw in zip(words, draws, strict=True) if draw >= ALPHA or draw == luckiest
    ]


def swap(words: list[str], generator: torch.Generator) -> list[str]:
    """Exchanges two words, ALPHA times their number, once at least."""
    changed = words.copy()
    for _ in range(_amount(words) if len(words) > 1 else 0):
        one = _below(len(words), generator)
        other = (one + 1 + _below(len(words) - 1, generator)) % len(words)
        changed[one], changed[other] = changed[other], changed[one]
    return changed


def _amount(words: list[str]) -> int:
    return max(1, int(ALPHA * len(words)))


def _below(limit: int, generator: torch.Generator) -> int:
    return int(torch.randint(limit, (), generator=generator))
