"""OpenFHE's inner product, one document at a time, where the library is installed."""

import importlib
import time
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulations.bench.peer import Peer, checked

_NAME = "OpenFHE inner product"
_SAMPLE = 6
_SCALE_BITS = 50


def openfhe_peer(vectors: NDArray[np.float32], question: NDArray[np.float32]) -> Peer:
    """Measure ``EvalInnerProduct`` on a few of ``vectors`` float32 [n, dim].

    Raises :class:`BlindsightError` if it does not decrypt to the right scores.
    """
    try:
        openfhe: Any = importlib.import_module("openfhe")
    except ImportError:
        return Peer(_NAME, None, "not installed")
    sample, width = vectors[:_SAMPLE], 1 << (len(question) - 1).bit_length()
    parameters = openfhe.CCParamsCKKSRNS()
    parameters.SetMultiplicativeDepth(1)
    parameters.SetScalingModSize(_SCALE_BITS)
    parameters.SetBatchSize(width)
    context = openfhe.GenCryptoContext(parameters)
    for feature in ("PKE", "KEYSWITCH", "LEVELEDSHE", "ADVANCEDSHE"):
        context.Enable(getattr(openfhe.PKESchemeFeature, feature))
    keys = context.KeyGen()
    context.EvalMultKeyGen(keys.secretKey)
    context.EvalSumKeyGen(keys.secretKey)

    def encode(vector: NDArray[np.float32]) -> Any:
        padded = [*vector.tolist(), *[0.0] * (width - len(vector))]
        return context.MakeCKKSPackedPlaintext(padded)

    asked = context.Encrypt(keys.publicKey, encode(question))
    seconds, scores = [], []
    for one in sample:
        item = encode(one)
        since = time.perf_counter()
        reply = context.EvalInnerProduct(asked, item, width)
        seconds.append(time.perf_counter() - since)
        decrypted = context.Decrypt(keys.secretKey, reply)
        decrypted.SetLength(1)
        scores.append(decrypted.GetRealPackedValue()[0])
    told = f"{len(sample)} documents"
    return checked(_NAME, 1e6 * median(seconds), told, 1, np.array(scores), sample, question)
