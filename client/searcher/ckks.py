"""CKKS by SEAL: the one file that imports TenSEAL, and all that ever touches a secret key.

SEAL makes the keys, encrypts and decrypts. Polynomials enter and leave it in its own file
format (docs/protocol.md section 3.4) through a memory file that never reaches a disk; the
secret key itself is never saved, and its handle can be neither printed nor pickled.
"""

import os
import struct
from functools import lru_cache
from typing import Any, NoReturn

import numpy as np
import tenseal.sealapi as seal
import zstandard
from numpy.typing import NDArray

from protocol.errors import MalformedMessage, UsageError
from protocol.ntt import U32
from protocol.packing import Layout
from protocol.params import Preset
from protocol.ring import ring
from protocol.scheme import EncryptedScores, Scheme, SecretKey, Seeded, scores_from_residues
from protocol.seeds import SEED_BYTES

_HEADER = struct.Struct("<HBBBBHQ")  # magic, header size, version 4.3, compression, 0, size
_MAGIC, _VERSION, _PLAIN, _ZSTD = 0xA15E, (4, 3), 0, 2
_CIPHERTEXT = struct.Struct("<32s?QQQdQ")  # parms_id, NTT form, polynomials, N, k, scale, 1
_PLAINTEXT = struct.Struct("<32sQd")  # parms_id, coefficients, scale
_COUNT = struct.Struct("<Q")
_ARRAY = struct.Struct("<16xQ")  # an inner header, then the number of words
_MAX_SAVED = 1 << 20


class SealScheme(Scheme):
    """The real scheme."""

    def keygen(self, preset: Preset) -> SecretKey:
        """Make a fresh key pair; about 3 ms."""
        return SealKey(preset)


class SealKey(SecretKey):
    """A secret key inside SEAL, for one question to one institution.

    Its encryptor and its decryptor each hold a copy, in pools that SEAL overwrites when they go;
    nothing else does once this is made. None of the ways to look into an object shows one.
    """

    # Not in a __dict__, which vars() would show.
    __slots__ = ("_context", "_decryptor", "_encryptor", "_preset", "_ring", "_zeros")

    def __init__(self, preset: Preset) -> None:
        self._preset = preset
        self._ring = ring(preset.ring_degree, preset.data_moduli)
        self._context = _context(preset)
        secret = seal.KeyGenerator(self._context).secret_key()
        self._encryptor = seal.Encryptor(self._context, secret)
        self._decryptor = seal.Decryptor(self._context, secret)
        self._zeros: list[Seeded] = []

    def prepare(self, count: int) -> None:
        """Encrypt zero symmetrically: (b, a) with b = -(a*s + e); about 1.2 ms each."""
        with _MemoryFile() as file:
            for _ in range(count):
                saved = file.save(self._encryptor.encrypt_zero_symmetric())
                self._zeros.append(self._seeded(saved))

    def public_keys(self, count: int) -> list[Seeded]:
        """Hand out encryptions of zero, each once."""
        self.prepare(count - len(self._zeros))
        return [self._zeros.pop() for _ in range(count)]

    def encrypt_query(self, polynomials: NDArray[np.int64]) -> list[Seeded]:
        """Encrypt coefficients int64 [d1, N]: added to encryptions of zero, as SEAL itself does."""
        residues = self._ring.encode(polynomials)
        zeros = self.public_keys(len(residues))
        return [
            Seeded(self._ring.add(zero.c0, message), zero.seed)
            for zero, message in zip(zeros, residues, strict=True)
        ]

    def decrypt_scores(self, layout: Layout, reply: EncryptedScores) -> NDArray[np.float64]:
        """Decrypt m blocks; raise :class:`MalformedMessage` if SEAL refuses one.

        Each data prime of a ciphertext carries a block of its own: SEAL decrypts prime by prime,
        and most of its time is not the decryption but the call, the file and its compression.
        """
        primes, degree, width = self._ring.moduli, self._ring.degree, layout.chunk_width
        shape = (-(-len(reply.c0) // len(primes)), len(primes), degree)
        pairs = np.zeros((shape[0], 2, *shape[1:]), np.uint32)
        for i, prime in enumerate(primes):
            c0, c1 = reply.every(len(primes), i).lifted(self._preset, int(prime))
            pairs[: len(c0), 0, i, width - 1 :: width], pairs[: len(c1), 1, i] = c0, c1
        self._ring.forward(pairs)
        parms_id, scale = _id(self._context.first_parms_id()), self._preset.reply_scale
        head = _CIPHERTEXT.pack(parms_id, True, 2, degree, len(primes), scale, 1)
        messages = np.empty(shape, np.uint32)
        with _MemoryFile() as file:
            for pair, message in zip(pairs, messages, strict=True):
                ciphertext, plaintext = seal.Ciphertext(), seal.Plaintext()
                try:
                    file.load(ciphertext, self._context, head, pair)
                    self._decryptor.decrypt(ciphertext, plaintext)
                except (RuntimeError, ValueError) as error:
                    raise MalformedMessage(f"a reply cannot be decrypted: {error}") from error
                words = np.frombuffer(
                    file.save(plaintext), "<u8", message.size, _PLAINTEXT.size + _ARRAY.size
                )
                message[:] = words.reshape(message.shape)
        self._ring.inverse(messages)
        scores = np.empty((len(reply.c0), layout.block_items))
        for i, prime in enumerate(primes):
            mine = scores[i :: len(primes)]
            read = messages[: len(mine), i, width - 1 :: width]
            mine[:] = scores_from_residues(layout, read, int(prime))
        return scores

    def _seeded(self, saved: bytes) -> Seeded:
        k, degree = len(self._preset.data_moduli), self._ring.degree
        start = _CIPHERTEXT.size + _ARRAY.size
        words = np.frombuffer(saved, "<u8", k * degree, start).astype(np.uint32)
        return Seeded(words.reshape(k, degree), saved[-SEED_BYTES:])

    def __repr__(self) -> str:
        return f"<SealKey {self._preset.name}, secret>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret key is never pickled, copied or sent")

    def __getstate__(self) -> NoReturn:
        self.__reduce__()


@lru_cache(maxsize=4)
def _context(preset: Preset) -> Any:
    parameters = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
    parameters.set_poly_modulus_degree(preset.ring_degree)
    parameters.set_coeff_modulus([seal.Modulus(modulus) for modulus in preset.moduli])
    context = seal.SEALContext(parameters, True, seal.SEC_LEVEL_TYPE.TC128)
    if not context.parameters_set():
        raise UsageError(f"SEAL refuses preset {preset.name}: {context.parameters_error_message()}")
    return context


def _id(parms_id: list[int]) -> bytes:
    return struct.pack("<4Q", *parms_id)


class _MemoryFile:
    """SEAL's Python interface saves and loads by path only; these two paths are memory."""

    def __enter__(self) -> "_MemoryFile":
        self._saved = os.memfd_create("saved", os.MFD_CLOEXEC)
        self._loaded = os.memfd_create("loaded", os.MFD_CLOEXEC)
        self._size = 0
        self._zstd = zstandard.ZstdDecompressor()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._saved)
        os.close(self._loaded)

    def save(self, thing: Any) -> bytes:
        """Return what SEAL saves of ``thing``, decompressed, without its header."""
        thing.save(f"/proc/self/fd/{self._saved}")
        saved = memoryview(os.pread(self._saved, os.fstat(self._saved).st_size, 0))
        compression, body = _HEADER.unpack_from(saved)[4], saved[_HEADER.size :]
        if compression == _ZSTD:
            return self._zstd.decompress(body, max_output_size=_MAX_SAVED)
        return bytes(body)

    def load(self, thing: Any, context: Any, head: bytes, residues: U32) -> None:
        """Let SEAL load ``thing``, uncompressed: its ``head``, and then ``residues`` as words."""
        array = _HEADER.size + len(head)
        size = array + _ARRAY.size + 8 * residues.size
        header = _HEADER.pack(_MAGIC, 16, *_VERSION, _PLAIN, 0, size)
        inner = _HEADER.pack(_MAGIC, 16, *_VERSION, _PLAIN, 0, size - array)
        if size != self._size:  # a file of the same size keeps its pages: they are written over
            os.ftruncate(self._loaded, size)
            self._size = size
        words = residues.astype("<u8").data.cast("B")
        count = _COUNT.pack(residues.size)
        os.pwritev(self._loaded, [header, head, inner, count, words], 0)
        thing.load(context, f"/proc/self/fd/{self._loaded}")
