"""Memory that is freed stays with the program: on CPU every step asks for the same again."""

import ctypes
import sys

# mallopt's names for what is set (malloc.h), and the values.
SETTINGS = {
    -4: 0,  # M_MMAP_MAX: large blocks come from the heap too
    -1: -1,  # M_TRIM_THRESHOLD: the end of the heap is never given back
    -2: 64 * 2**20,  # M_TOP_PAD, bytes by which it grows beyond what is asked for
    -8: 1,  # M_ARENA_MAX: one heap for all threads, the one that can grow without bound
}


def keep() -> bool:
    """Has the C library keep what is freed; False where it is not glibc, and nothing is changed.

    XLA on CPU allocates the buffers of a step anew at every call. glibc returns large ones to the kernel at
    once, which then clears every page of them at the next step: a quarter of a training step's time at the
    size of configs/clinc150.py. In return the process stays as large as it has been at its largest. To be
    called before other threads have started, because each may already have a heap of its own.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    return min(mallopt(name, value) for name, value in SETTINGS.items()) == 1
