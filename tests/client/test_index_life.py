"""An index that changes: what is in it is what was put in, whatever happens in between."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from client.institution.index import Index
from client.institution.index_writer import IndexWriter, build_index
from client.institution.indexed_folder import IndexedFolder
from client.institution.items import Item
from client.institution.journal import EmbeddingJournal
from client.institution.own_search import own_search
from client.institution.pairs import Pair, write_pairs
from client.institution.placement import place
from protocol.errors import DataError, ReleaseMismatch, StorageError, UsageError
from simulations.cli import app

ROOT = Path(__file__).parents[2]
RELEASE = "0123456789abcdef"
DIM = 8


def unit_vectors(count: int, dim: int = DIM, seed: int = 0) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def built(root: Path, count: int, dim: int = DIM) -> Index:
    pairs = [Pair(f"{i}.png", (f"caption {i}",)) for i in range(count)]
    return build_index(root, RELEASE, unit_vectors(count, dim), pairs)


def content(index: Index) -> dict[str, tuple[str, bytes]]:
    items = index.table.all()
    rows = index.embeddings()
    assert len(items) == len({item.file_name for item in items}) == len(rows)
    return {item.file_name: (item.caption, row.tobytes()) for item, row in zip(items, rows)}  # noqa: B905


# --- changes


@given(st.integers(1, 40), st.data())
def test_every_item_has_one_place(count: int, data: st.DataObject) -> None:
    removed = data.draw(st.sets(st.integers(0, count - 1)))
    added = data.draw(st.integers(0, 20))
    found = place(count, removed, added)
    after = {i: f"old {i}" for i in range(count) if i not in removed}
    for target, source in found.moved.items():
        after[target] = after.pop(source)
    after |= {position: f"new {position}" for position in found.new}
    assert sorted(after) == list(range(found.count)) == list(range(count - len(removed) + added))
    assert len(found.moved) <= max(0, len(removed) - added), "what need not move stays"


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_changes_do_what_they_would_do_to_a_dictionary(seed: int) -> None:
    choose, rows = random.Random(seed), unit_vectors(400, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        model = content(built(root, 30))
        for step in range(3):
            removed = choose.sample(sorted(model), choose.randrange(len(model)))
            names = [f"{step}-{i}.png" for i in range(choose.randrange(1, 20))]
            names += choose.sample(sorted(model), 3)
            put = [Item(name, f"at {step}") for name in names]
            new = {name: rows[choose.randrange(400)] for name in names}
            with IndexWriter(root) as writer:
                index = writer.change(removed, put, new)
            model = {name: one for name, one in model.items() if name not in removed}
            model |= {name: (f"at {step}", new[name].tobytes()) for name in names}
            assert content(index) == model
            index.verify()


def test_adding_packs_only_what_it_touches(tmp_path: Path) -> None:
    count, rows = 20_000, unit_vectors(10, 128, seed=3)
    old = built(tmp_path, count, 128)
    with IndexWriter(tmp_path) as writer:
        put = [Item(f"new-{i}.png", "") for i in range(10)]
        new = writer.change((), put, {one.file_name: row for one, row in zip(put, rows)})  # noqa: B905
    segments = sorted(path.name for path in new.folder.glob("packed-*.bin"))
    packed = [name for name in segments if not (old.folder / name).exists()
              or not (new.folder / name).samefile(old.folder / name)]  # fmt: skip
    assert len(segments) == 40 and packed == segments[-1:]
    kept = [path.samefile(old.folder / path.name) for path in new.folder.glob("embeddings-*.faiss")]
    assert kept.count(False) == 1 and len(kept) == 3
    table = [path.name for path in tmp_path.glob("items-*")]
    assert table == ["items-000001.sqlite"], "rows of a change lie beside those of before"
    new.verify()


def test_what_is_removed_leaves_no_trace(tmp_path: Path) -> None:
    built(tmp_path, 2000).close()
    index = Index(tmp_path)
    gone = [f"{i}.png" for i in (0, 700, 1999)]
    traces = [row for name, (_, row) in content(index).items() if name in gone]
    traces += [b"caption 700"]

    def found() -> int:
        files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
        return sum(trace in file for trace in traces for file in files)

    assert found() == 4
    index.close()
    with IndexWriter(tmp_path) as writer:
        writer.change(gone).verify()
    assert found() == 0


def test_an_old_epoch_stays_until_its_last_reader_closes_it(tmp_path: Path) -> None:
    first, also = built(tmp_path, 30), Index(tmp_path)
    with IndexWriter(tmp_path) as writer:
        writer.change(["3.png"]).close()
    assert first.items([3])[0].file_name == "3.png" and not first.is_current
    assert np.array_equal(first.packed.blocks, also.packed.blocks)
    first.close()
    assert also.folder.exists()
    also.close()
    assert not also.folder.exists()
    Index(tmp_path).verify()


def test_a_second_writer_is_refused_and_readers_are_not(tmp_path: Path) -> None:
    built(tmp_path, 30)
    with IndexWriter(tmp_path) as writer:
        with pytest.raises(StorageError, match="another process is writing"):
            IndexWriter(tmp_path).__enter__()
        Index(tmp_path).verify()
        writer.change(["1.png"])


def test_changes_that_cannot_be_are_refused(tmp_path: Path) -> None:
    built(tmp_path, 3)
    with IndexWriter(tmp_path) as writer:
        with pytest.raises(UsageError, match=r"'9\.png' is not indexed"):
            writer.change(["9.png", "1.png"])
        with pytest.raises(DataError, match="one item at least"):
            writer.change(["0.png", "1.png", "2.png"])
        with pytest.raises(UsageError, match=r"'a\.png' has none"):
            writer.change((), [Item("a.png", "")])
    assert Index(tmp_path).manifest.epoch == 1


# --- damage


@pytest.mark.parametrize("name", ["packed-000001.bin", "search.faiss"])
def test_what_is_damaged_is_made_anew(tmp_path: Path, name: str) -> None:
    items = [Item(f"{i}.png", "") for i in range(3000)]
    with IndexWriter(tmp_path) as writer:
        first = writer.build(RELEASE, unit_vectors(3000, 64), items, factory="IVF8,Flat")
    path = first.folder / name
    before, damaged = content(first), bytearray(path.read_bytes())
    damaged[-9] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(StorageError, match=rf"damaged: {name}") as caught:
        first.verify()
    assert "--repair" in caught.value.hint
    with IndexWriter(tmp_path) as writer:
        second = writer.repair()
        second.verify()
        assert second.manifest.epoch == 2 and content(second) == before
        assert writer.repair().manifest.epoch == 2, "there is nothing to repair"


def test_embeddings_that_are_damaged_are_not_packed(tmp_path: Path) -> None:
    path = built(tmp_path, 30).folder / "embeddings-000000.faiss"
    damaged = bytearray(path.read_bytes())
    damaged[-9] ^= 1
    path.write_bytes(damaged)
    with (
        IndexWriter(tmp_path) as writer,
        pytest.raises(StorageError, match=r"embeddings-000000\.faiss"),
    ):
        writer.repair()


# --- factories


@pytest.mark.parametrize("factory", ["IVF8,Flat", "PCA16,Flat", "PCA16,IVF4,SQ8"])
def test_a_factory_finds_what_the_embeddings_find(tmp_path: Path, factory: str) -> None:
    rows = unit_vectors(2000, 32)
    items = [Item(f"{i}.png", "") for i in range(2000)]
    with IndexWriter(tmp_path) as writer:
        index = writer.build(RELEASE, rows, items, factory=factory)
        found = [five.tolist() for five in index.search(rows[:20], 200)[1]]
        assert sum(i in five for i, five in enumerate(found)) >= 18
        index = writer.change(["7.png"], [Item("new.png", "")], {"new.png": rows[7]})
        index.verify()
        assert index.manifest.factory == factory
        assert index.items([int(index.search(rows[7:8], 1)[1][0, 0])])[0].file_name != "7.png"


def test_a_factory_that_cannot_be_is_refused(tmp_path: Path) -> None:
    items = [Item(f"{i}.png", "") for i in range(30)]
    with IndexWriter(tmp_path) as writer:
        with pytest.raises(UsageError, match="knows no index 'Fast'"):
            writer.build(RELEASE, unit_vectors(30), items, factory="Fast")
        with pytest.raises(DataError, match="30 items are too few to train IVF256,Flat"):
            writer.build(RELEASE, unit_vectors(30), items, factory="IVF256,Flat")


# --- a folder


class MeanColour:
    """An embedder without a model: pictures of one colour are near each other."""

    release_id, precision, dim = RELEASE, "float32", DIM
    fit = (4, None, "bicubic")

    def __init__(self, fails_after: int = 10**9) -> None:
        self.images, self._fails_after = 0, fails_after

    def pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        if self.images >= self._fails_after:
            raise KeyboardInterrupt
        self.images += len(pixels)
        rows = np.zeros((len(pixels), DIM), np.float32)
        rows[:, :3] = pixels.mean((2, 3)) + 1
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def texts(self, texts: list[str]) -> NDArray[np.float32]:
        return np.eye(1, DIM, {"red": 0, "green": 1}[texts[0]], dtype=np.float32)


class Home:
    """A folder of pictures, and its index."""

    def __init__(self, root: Path, count: int) -> None:
        self.data, self.root, self.pairs = root / "data", root / "index", dict[str, Pair]()
        self.folder = IndexedFolder(self.data, self.root)
        self.data.mkdir()
        for i in range(count):
            self.draw(f"{i}.png", (i % 256, i // 256, 40))
        self.write()

    def draw(self, name: str, colour: tuple[int, int, int]) -> None:
        Image.new("RGB", (5, 5), colour).save(self.data / name)
        self.pairs[name] = Pair(name, (f"a picture {name}",))

    def write(self) -> None:
        write_pairs(self.data, self.pairs.values(), None)


def test_update_brings_the_index_in_step(tmp_path: Path) -> None:
    home, embedder = Home(tmp_path, 20), MeanColour()
    assert len(home.folder.build(embedder).added) == 20
    home.draw("new.png", (9, 200, 9))
    home.draw("5.png", (250, 0, 0))
    del home.pairs["6.png"]
    home.pairs["7.png"] = Pair("7.png", ("another sentence",))
    os.utime(home.data / "8.png", (0, 0))
    (home.data / "broken.png").write_bytes(b"no picture")
    home.pairs["broken.png"] = Pair("broken.png", ("said of it",))
    home.write()
    before = embedder.images
    report = home.folder.update(embedder)
    assert (report.added, report.removed) == (("new.png",), ("6.png",))
    assert set(report.changed) == {"5.png", "7.png"}
    assert [skip.where for skip in report.skipped] == ["broken.png"]
    assert embedder.images == before + 2, "what shows the same is not embedded again"
    found = content(report.index)
    assert set(found) == set(home.pairs) - {"broken.png"}
    assert found["7.png"][0] == "another sentence"
    assert np.frombuffer(found["5.png"][1], np.float32)[0] > 0.99
    report.index.verify()
    again = home.folder.update(embedder)
    assert again.index.manifest.epoch == report.index.manifest.epoch, "nothing to do"
    assert embedder.images == before + 2


def test_rights_of_items_come_from_the_metadata(tmp_path: Path) -> None:
    home, embedder = Home(tmp_path, 3), MeanColour()
    home.pairs["1.png"] = Pair("1.png", ("one",), release=frozenset({"caption"}))
    home.write()
    home.folder.build(embedder)
    home.pairs["2.png"] = Pair("2.png", ("a picture 2.png",), release=frozenset())
    home.write()
    report = home.folder.update(embedder)
    assert report.changed == ("2.png",) and embedder.images == 3
    zero, one, two = report.index.items([0, 1, 2])
    assert zero.release is None and zero.may_leave_as("original")
    assert one.may_leave_as("caption") and not one.may_leave_as("thumbnail")
    assert not two.may_leave_as("id")
    (home.data / "metadata.jsonl").write_text(
        '{"file_name": "1.png", "text": "a", "release": "all"}'
    )
    with pytest.raises(DataError, match="line 1: release: expected a list of id, caption"):
        home.folder.update(embedder)


def test_rights_by_command_hold_until_the_command_says_otherwise(tmp_path: Path) -> None:
    home, embedder = Home(tmp_path, 4), MeanColour()
    home.pairs["1.png"] = Pair("1.png", ("one",), release=frozenset({"caption", "id"}))
    home.write()
    home.folder.build(embedder)

    def said(*flags: str) -> dict[str, object]:
        command = ["index", "rights", *flags, "--index", str(home.root), "--json"]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)["data"]  # type: ignore[no-any-return]

    said("1.png", "2.png", "--release", "thumbnail,caption")
    assert said("3.png", "--release", "none")["changed"] == 1
    counts = {"policy": 1, "caption": 1, "caption,thumbnail": 1, "none": 1}
    assert said()["rights"] == counts
    one = Index(home.root).items([1])[0]
    assert one.may_leave_as("caption") and not one.may_leave_as("id")
    assert not one.may_leave_as("thumbnail"), "the collection's own word still bounds it"
    # The picture shows something else, then everything is embedded anew, then built.
    home.draw("3.png", (9, 9, 9))
    home.pairs["1.png"] = Pair("1.png", ("one",))
    home.write()
    home.folder.update(embedder)
    # The collection's word on 1.png went with its line: what the command said of it is left.
    assert said()["rights"] == {"policy": 1, "caption,thumbnail": 2, "none": 1}
    other = MeanColour()
    other.release_id = "f" * 16
    home.folder.update(other).index.verify()
    home.folder.build(other)
    assert not Index(home.root).items([3])[0].may_leave_as("thumbnail")
    assert said("3.png", "1.png", "--release", "policy")["changed"] == 2
    assert Index(home.root).items([3])[0].may_leave_as("thumbnail")
    for flags in (["9.png", "--release", "none"], ["1.png", "--release", "all"], ["1.png"]):
        command = ["index", "rights", *flags, "--index", str(home.root)]
        assert CliRunner().invoke(app, command).exit_code != 0


def test_only_named_images_are_added(tmp_path: Path) -> None:
    home, embedder = Home(tmp_path, 3), MeanColour()
    home.folder.build(embedder)
    for name in ("a.png", "b.png"):
        home.draw(name, (1, 2, 3))
    home.write()
    assert home.folder.add(embedder, ["a.png", "0.png"]).added == ("a.png",)
    with pytest.raises(UsageError, match=r"'c\.png' is not described"):
        home.folder.add(embedder, ["c.png"])
    assert home.folder.add(embedder).added == ("b.png",)
    assert embedder.images == 5


def test_what_was_embedded_before_a_crash_is_kept(tmp_path: Path) -> None:
    home, killed, embedder = Home(tmp_path, 600), MeanColour(fails_after=500), MeanColour()
    with pytest.raises(KeyboardInterrupt):
        home.folder.build(killed)
    assert home.folder.build(embedder).index.manifest.items == 600
    assert (killed.images, embedder.images) == (512, 88)
    assert not list(home.root.glob("*.journal"))


def test_another_release_is_switched_to_when_all_of_it_is_there(tmp_path: Path) -> None:
    home, embedder = Home(tmp_path, 300), MeanColour()
    old = home.folder.build(embedder).index
    new = MeanColour(fails_after=200)
    new.release_id = "f" * 16
    with pytest.raises(ReleaseMismatch, match=f"{RELEASE}, this is {'f' * 16}"):
        home.folder.add(new)
    with pytest.raises(KeyboardInterrupt):
        home.folder.update(new)
    assert old.is_current
    new._fails_after = 10**9
    assert home.folder.update(new).index.manifest.release_id == "f" * 16
    assert new.images == 300 and not old.is_current
    with pytest.raises(ReleaseMismatch):
        own_search(home.root, embedder, "red", 3)


def test_embeddings_of_two_precisions_are_not_mixed(tmp_path: Path) -> None:
    home, small, embedder = Home(tmp_path, 20), MeanColour(), MeanColour()
    small.precision = "int8"
    assert home.folder.build(small).index.manifest.precision == "int8"
    home.draw("new.png", (1, 2, 3))
    home.write()
    with pytest.raises(UsageError, match="embedded in int8, this is float32"):
        home.folder.add(embedder)
    home.folder.add(small)
    report = home.folder.update(embedder)
    assert (report.index.manifest.precision, embedder.images) == ("float32", 21)
    home.folder.update(embedder)
    assert embedder.images == 21


def test_own_search_finds_by_sentence_and_by_image(tmp_path: Path) -> None:
    home, embedder = Home(tmp_path, 3), MeanColour()
    home.draw("rose.png", (250, 3, 3))
    home.draw("leaf.png", (3, 250, 3))
    home.write()
    home.folder.build(embedder)
    found = own_search(home.root, embedder, "red", 2, home.data).data["found"]
    assert found[0]["file_name"] == str(home.data / "rose.png") and len(found) == 2
    picture = Image.new("RGB", (4, 4), (9, 240, 9))
    assert own_search(home.root, embedder, picture, 1).data["found"][0]["file_name"] == "leaf.png"


# --- the journal


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 400), st.integers(0, 7), st.booleans())
def test_a_journal_that_was_cut_keeps_what_is_whole(cut: int, bit: int, flip: bool) -> None:
    rows, keys = unit_vectors(4), [f"{i:064x}" for i in range(4)]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        journal = EmbeddingJournal(root, RELEASE, "float32", DIM)
        journal.add(keys[:3], rows[:3])
        journal.close()
        path = root / "embedded.journal"
        whole = bytearray(path.read_bytes())
        if flip and cut < len(whole):
            whole[cut] ^= 1 << bit
        path.write_bytes(whole if flip else whole[:cut])
        journal = EmbeddingJournal(root, RELEASE, "float32", DIM)
        journal.add(keys[3:], rows[3:])
        for _ in range(2):
            kept = [i for i in range(4) if keys[i] in journal]
            assert kept[-1] == 3 and kept[:-1] == list(range(len(kept) - 1))
            assert all(np.array_equal(journal.row(keys[i]), rows[i]) for i in kept)
            journal.close()
            journal = EmbeddingJournal(root, RELEASE, "float32", DIM)
        journal.close()
        other = EmbeddingJournal(root, "f" * 16, "float32", DIM)
        assert not any(key in other for key in keys), "another release's embeddings are not used"
        other.close()


# --- faults

_ENDLESS = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import numpy as np
from pathlib import Path
from client.institution.index import Index
from client.institution.index_writer import IndexWriter
from client.institution.items import Item

root, said = Path(sys.argv[1]), open(sys.argv[2], "a", buffering=1)
step = int(sys.argv[3])
rows = np.random.default_rng(step).standard_normal((3000, 64)).astype(np.float32)
rows /= np.linalg.norm(rows, axis=1, keepdims=True)
print("ready", flush=True)
while True:
    step += 1
    with IndexWriter(root) as writer:
        names = [item.file_name for item in Index(root).table.all()]
        if step % 4 == 0:
            said.write("begin build\\n")
            items = [Item(name, str(step)) for name in names]
            writer.build(f"{{step:016x}}", rows[: len(names)], items).close()
        elif step % 4 == 2 and len(names) > 1000:
            gone = names[:: len(names) // 100]
            said.write("begin remove " + " ".join(gone) + "\\n")
            writer.change(gone).close()
        else:
            new = [f"{{step}}-{{i}}" for i in range(50)]
            said.write("begin add " + " ".join(new) + "\\n")
            given = {{name: rows[i] for i, name in enumerate(new)}}
            writer.change((), [Item(name, "") for name in new], given).close()
        said.write("done\\n")
"""


def test_no_kill_loses_or_repeats_an_item(tmp_path: Path) -> None:
    """SIGKILL while items are added and removed and while releases are switched."""
    root, said = tmp_path / "index", tmp_path / "said"
    built(root, 1500, 64).close()
    choose, names = random.Random(0), {f"{i}.png" for i in range(1500)}
    said.touch()
    for run in range(int(os.environ.get("BLINDSIGHT_KILLS", "4"))):
        done = said.stat().st_size
        command = [sys.executable, "-c", _ENDLESS, str(root), str(said), str(1000 * run)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline()
        time.sleep(choose.uniform(0.02, 1.0))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        index = Index(root)
        index.verify()
        found = {item.file_name for item in index.table.all()}
        assert len(found) == index.manifest.items
        pending = names
        for line in said.read_text()[done:].splitlines():
            if line == "done":
                names = pending
                continue
            _, verb, *some = line.split()
            pending = names | set(some) if verb == "add" else names - set(some)
        assert found in (names, pending), f"run {run}: the last change is whole or absent"
        names = found
        index.close()
    with IndexWriter(root) as writer:
        writer.change([next(iter(names))]).verify()
    index = Index(root)
    items = f"items-{index.manifest.items_since:06d}.sqlite"
    left = sorted(path.name for path in root.iterdir())
    assert left == ["building.lock", "current", index.folder.name, items]


def in_another_process(script: str, *arguments: object) -> str:
    begin = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    command = [sys.executable, "-c", begin + script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_full_disk_leaves_the_old_epoch_whatever_is_changed(tmp_path: Path) -> None:
    before = content(built(tmp_path, 2000))
    said = in_another_process(
        """
import resource
from pathlib import Path
from client.institution.index_writer import IndexWriter
from protocol.errors import StorageError
for limit in (50_000, 100_000, 150_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        with IndexWriter(Path(sys.argv[1])) as writer: writer.change(["3.png"])
    except StorageError as error:
        assert error.hint
        print(error.message)
""",
        tmp_path,
    )
    assert len(said.splitlines()) == 3 and "cannot be written" in said
    index = Index(tmp_path)
    assert (index.manifest.epoch, content(index)) == (1, before)
    index.verify()
    assert not list(tmp_path.glob("building-*"))


def test_a_folder_that_is_read_only_can_be_read(tmp_path: Path) -> None:
    built(tmp_path, 30).close()
    for path in (tmp_path, tmp_path / "epoch-000001"):
        path.chmod(0o500)
    if os.access(tmp_path, os.W_OK):
        pytest.skip("a superuser may write anywhere")
    Index(tmp_path).verify()
    with pytest.raises(StorageError, match="cannot be written"), IndexWriter(tmp_path) as writer:
        writer.change(["3.png"])
    tmp_path.chmod(0o700)


def test_what_a_killed_switch_left_is_deleted(tmp_path: Path) -> None:
    built(tmp_path, 30).close()
    shutil.copytree(tmp_path / "epoch-000001", tmp_path / "epoch-000002")
    shutil.copytree(tmp_path / "epoch-000001", tmp_path / "gone-epoch-000001")
    (tmp_path / ".current.x7").write_text("2")
    assert Index(tmp_path).manifest.epoch == 1
    with IndexWriter(tmp_path) as writer:
        assert writer.change(["3.png"]).manifest.epoch == 3
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["building.lock", "current", "epoch-000003", "items-000001.sqlite"]


def test_clocks_do_not_matter(tmp_path: Path) -> None:
    built(tmp_path, 30).close()
    for far in (0, 2**33):
        for path in [tmp_path, *tmp_path.rglob("*")]:
            os.utime(path, (far, far))
        epoch = Index(tmp_path).manifest.epoch
        with IndexWriter(tmp_path) as writer:
            index = writer.change([Index(tmp_path).items([0])[0].file_name])
        assert index.manifest.epoch == epoch + 1
        index.verify()
