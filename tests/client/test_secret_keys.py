"""A secret key cannot be taken out of its handle; tests/e2e/test_nothing_leaves.py looks for it."""

import copy
import dataclasses
import json
import os
import pickle
from collections.abc import Callable

import numpy as np
import pytest

from client.searcher.ckks import SealKey
from protocol.params import PRIVATE
from tests.e2e.secret_words import Keys


def test_the_scan_finds_a_key_in_the_midst_of_anything() -> None:
    words = np.random.default_rng(5).integers(1, 1 << 26, 4 * PRIVATE.ring_degree, np.uint64)
    saved = bytes(16) + words.tobytes()
    keys = Keys([saved])
    for kind in ("<u8", "<u4"):
        part = words[5000:5020].astype(kind).tobytes()
        assert keys.found(os.urandom(4096) + part + bytes(100)) == {0}
        assert keys.found(os.urandom(4096) + part[: 7 * int(kind[2])] + bytes(100)) == set()


@pytest.mark.parametrize(
    "look",
    [
        pickle.dumps,
        copy.copy,
        copy.deepcopy,
        json.dumps,
        bytes,
        dataclasses.asdict,
        lambda key: key.__getstate__(),
        lambda key: key.__reduce__(),
        lambda key: key.__reduce_ex__(4),
        lambda key: pickle.dumps([key], 5),
        lambda key: pickle.dumps(key._encryptor),
        lambda key: copy.deepcopy(key._decryptor),
    ],
)
def test_a_key_cannot_be_taken_out(look: Callable[[SealKey], object]) -> None:
    with pytest.raises(TypeError):
        look(SealKey(PRIVATE))


def test_a_key_shows_nothing() -> None:
    key = SealKey(PRIVATE)
    assert repr(key) == str(key) == f"{key}" == f"{key!s}" == "<SealKey private, secret>"
    assert vars(key) == {}
    assert not [one for one in dir(key) if "secret" in one.lower()]
