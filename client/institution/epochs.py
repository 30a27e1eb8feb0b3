"""The epochs of an index as folders: numbered, one of them current, each kept while it is read.

A reader holds a shared lock on its epoch's manifest. Whoever changed the index, or closed the
last reader, deletes every other epoch whose manifest it can lock alone, and the rows of items that
no epoch holds any more. No clock is asked.
"""

import fcntl
import os
import shutil
from pathlib import Path

from client.institution.database import Database
from client.institution.items import ItemTable
from client.institution.manifest import MANIFEST, Manifest
from client.institution.packed import REBUILD
from protocol.errors import StorageError
from protocol.files import check_file, open_exclusively, sync_folder, write_atomically

LOCK = "building.lock"
SMALL_BYTES = 1 << 16
_CURRENT = "current"
_GONE = "gone-"


def current_epoch(root: Path) -> int:
    """Return the number of the epoch to serve; raises OSError, ValueError or BlindsightError."""
    path = root / _CURRENT
    check_file(path, SMALL_BYTES, REBUILD)
    return int(path.read_text())


def next_epoch(root: Path) -> int:
    """Return a number that no epoch in ``root`` has or had while another was there."""
    return 1 + max((int(one.name[6:]) for one in root.glob("epoch-[0-9]*")), default=0)


def epoch_folder(root: Path, epoch: int) -> Path:
    """Return where an epoch lies."""
    return root / f"epoch-{epoch:06d}"


def open_current(root: Path) -> tuple[Path, int]:
    """Return the current epoch's folder, and its manifest as a descriptor with a shared lock.

    Closing the descriptor lets the epoch go. Raises what :func:`current_epoch` does.
    """
    while True:
        epoch = current_epoch(root)
        folder = epoch_folder(root, epoch)
        try:
            check_file(folder / MANIFEST, SMALL_BYTES, REBUILD)
            file = os.open(folder / MANIFEST, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(file, fcntl.LOCK_SH)
                if os.path.samestat(os.fstat(file), (folder / MANIFEST).stat()):
                    return folder, file
            except BaseException:
                os.close(file)
                raise
            os.close(file)
        except FileNotFoundError:
            # Deleted between the two looks, because another one is current by now; or lost.
            if current_epoch(root) == epoch:
                raise


def make_current(root: Path, building: Path, epoch: int) -> None:
    """Give a whole epoch its name, then serve it: a crash between the two leaves the old one."""
    building.rename(epoch_folder(root, epoch))
    sync_folder(root)
    write_atomically(root / _CURRENT, str(epoch))


def delete_unread(root: Path) -> None:
    """Delete all epochs but the current one that nobody reads; the caller holds the lock."""
    current = epoch_folder(root, current_epoch(root))
    for left in root.glob(f"{_GONE}*"):
        shutil.rmtree(left)
    for folder in root.glob("epoch-[0-9]*"):
        if folder != current and _rename_if_unread(folder):
            sync_folder(root)
            shutil.rmtree(root / f"{_GONE}{folder.name}")
    _delete_unread_items(root)
    # Of a process that was killed while it switched: only who holds the lock writes that file.
    for left in root.glob(f".{_CURRENT}.*"):
        left.unlink()


def delete_unread_if_free(root: Path) -> None:
    """The same for a reader; whoever is changing the index, or may, does it otherwise."""
    try:
        with open_exclusively(root / LOCK):
            delete_unread(root)
    except (OSError, ValueError, StorageError):
        return


def _delete_unread_items(root: Path) -> None:
    """Delete tables that no epoch reads, and rows of others that are from before the oldest."""
    oldest: dict[int, int] = {}
    for folder in sorted(root.glob("epoch-[0-9]*"), reverse=True):
        manifest = Manifest.from_json((folder / MANIFEST).read_text())
        oldest[manifest.items_since] = manifest.epoch
    database = Database(root)
    for since in database.builds():
        if since in oldest:
            ItemTable(database, since, oldest[since]).forget()
        else:
            database.drop(since)


def _rename_if_unread(folder: Path) -> bool:
    """Take the name away in one step: no reader finds half an epoch."""
    try:
        file = os.open(folder / MANIFEST, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        file = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        folder.rename(folder.with_name(_GONE + folder.name))
    except BlockingIOError:
        return False
    finally:
        os.close(file)
    return True
