"""What a lossy update left unsent, kept by the institution from one round to the next.

It is private to the institution: it says what its data asked for and the coordinator has not yet
seen. It lies in the institution's own folder ``state`` where there is one. Else it lies in
Flower's ``Context.state``, which is memory: a restart of the SuperNode, and a run that is resumed
under a new Flower run, lose it. What that costs is the changes that it held: they have to be
learned again; nothing becomes wrong.

It is filed under the run and the round *after* which it is left. Round r takes the latest from
before r, also when r was computed once already and then the coordinator was killed: so a resumed
run repeats to the bit. The coordinator saves every round before it asks for the next, so
institutions are at most one round ahead of it, and the last two are all that is ever needed.
"""

import re
from pathlib import Path

from flwr.app import ConfigRecord, RecordDict

from protocol.errors import MalformedMessage, StorageError
from protocol.files import writing
from protocol.model.tensor_file import read_tensors, write_tensors
from protocol.model.update import Arrays, pack, unpack

_RUN = re.compile(r"[0-9a-f]{32}")
_KEY = re.compile(r"residual-([0-9a-f]{32})-(\d{5})")
_SUFFIX = ".safetensors"
_HINT = "remove the file: what was not sent yet is lost, and nothing else"


def run_of(config: ConfigRecord) -> str:
    """The run that a message belongs to. Raises MalformedMessage unless it is 32 hex digits."""
    run = config.get("run")
    if not isinstance(run, str) or not _RUN.fullmatch(run):
        raise MalformedMessage(f"run: expected 32 hexadecimal digits, got {run!r:.40}")
    return run


class Residuals:
    """The residuals of one institution and one run at a time, in ``folder``, else in ``state``.

    The folder is the institution's own, shared with no other. Numbers of rounds are 1 to 10,000.
    """

    def __init__(self, state: RecordDict, folder: Path | None, run: str) -> None:
        self._state = state
        self._folder = folder
        self._run = run

    def load(self, number: int, like: Arrays) -> Arrays | None:
        """What was left before round ``number``, of the shapes of ``like``; None if nothing was.

        Raises StorageError for a damaged file, MalformedMessage when the model changed meanwhile.
        """
        key = self._before(number)
        if key is None:
            return None
        if self._folder is None:
            return unpack(self._state.array_records[key], like)
        return dict(read_tensors(self._folder / f"{key}{_SUFFIX}", like, _HINT))

    def save(self, number: int, residual: Arrays) -> None:
        """Keeps what round ``number`` left, and forgets all but it and the one before.

        An empty residual is not kept. Raises StorageError.
        """
        if not residual:
            return
        key = f"residual-{self._run}-{number:05}"
        wanted = {key, self._before(number)}
        if self._folder is None:
            self._state[key] = pack(residual)
        else:
            write_tensors(self._folder / f"{key}{_SUFFIX}", residual)
        if self._folder is None:
            for old in self._keys() - wanted:
                del self._state[old]
            return
        with writing(self._folder):
            for path in self._folder.iterdir():
                # A name that begins with a dot is what a kill in the middle of a write left.
                kept = path.name.removesuffix(_SUFFIX) in wanted
                if path.name.lstrip(".").startswith("residual-") and not kept:
                    path.unlink(missing_ok=True)

    def _before(self, number: int) -> str | None:
        found = [match for key in self._keys() if (match := _KEY.fullmatch(key))]
        own = [match[0] for match in found if match[1] == self._run and int(match[2]) < number]
        return max(own, default=None)

    def _keys(self) -> set[str]:
        if self._folder is None:
            return {key for key in self._state.array_records if _KEY.fullmatch(key)}
        try:
            names = [path.name for path in self._folder.iterdir()]
        except FileNotFoundError:
            return set()
        except OSError as error:
            raise StorageError(f"{self._folder} cannot be read: {error.strerror}") from error
        keys = {name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX)}
        return {key for key in keys if _KEY.fullmatch(key)}
