"""What a service does before it opens: one question to itself.

It finds a packed index that does not belong to its embeddings, and compiles the kernels, so that
the first searcher does not wait for that.
"""

import numpy as np

from client.institution.index import Index
from client.institution.question import Question
from protocol.errors import StorageError
from protocol.insecure_twin import InsecureTwin

_TOLERANCE = 1e-3


def self_check(index: Index) -> None:
    """Ask for the first item; raise :class:`StorageError` unless its score is right.

    Nothing is encrypted: the question never leaves this process.
    """
    layout, embedding = index.layout, index.embedding(0)
    key = InsecureTwin().keygen(layout.preset)
    chunks = key.encrypt_query(layout.question_polynomials(embedding))
    question = Question(layout, key.public_keys(layout.public_keys), chunks)
    reply = question.answer(index.packed.blocks[:1], 0)
    score = key.decrypt_scores(layout, reply)[0, 0]
    expected = float(np.dot(embedding, embedding))
    if abs(score - expected) > _TOLERANCE:
        raise StorageError(
            f"the packed index is not of these embeddings: the first item scores {score:.4f} "
            f"against itself, expected {expected:.4f}",
            "Build it again: blindsight institution index.",
        )
