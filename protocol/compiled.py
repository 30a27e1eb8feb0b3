"""How every compiled kernel of the project is compiled: without the GIL, cached on disk."""

import numba

kernel = numba.njit(nogil=True, cache=True, boundscheck=False, error_model="numpy")
"""Decorator of a kernel. Bounds are not checked: callers pass arrays of agreed shapes."""
