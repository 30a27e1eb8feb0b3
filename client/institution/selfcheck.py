"""What a service does before it opens: one question to itself.

It finds a packed index that does not belong to its embeddings, and compiles the kernels, so that
the first searcher does not wait for that.
"""

import numpy as np
from numpy.typing import NDArray

from client.institution.index import Index
from client.institution.packed import REBUILD
from client.institution.question import Question
from protocol.errors import StorageError
from protocol.insecure_twin import InsecureTwin
from protocol.ntt import U32
from protocol.packing import Layout
from protocol.scheme import Scheme

_TOLERANCE = 1e-3


def ask_here(
    layout: Layout, blocks: U32, scheme: Scheme, question: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Both sides of a question in this process: scores float64 [m, N/d2] of m packed blocks."""
    key = scheme.keygen(layout.preset)
    chunks = key.encrypt_query(layout.question_polynomials(question))
    reply = Question(layout, key.public_keys(layout.public_keys), chunks).answer(blocks, 0)
    return key.decrypt_scores(layout, reply)


def self_check(index: Index) -> None:
    """Ask for the first item; raise :class:`StorageError` unless its score is right.

    Nothing is encrypted: the question never leaves this process.
    """
    embedding = index.embedding(0)
    score = ask_here(index.layout, index.packed.blocks[:1], InsecureTwin(), embedding)[0, 0]
    expected = float(np.dot(embedding, embedding))
    if abs(score - expected) > _TOLERANCE:
        raise StorageError(
            f"the packed index is not of these embeddings: the first item scores {score:.4f} "
            f"against itself, expected {expected:.4f}",
            REBUILD,
        )
