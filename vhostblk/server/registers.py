"""
Clear what copying leaves behind in the processor's registers.

The last bytes of a copy stay in the vector registers of its thread until somebody uses them, and a
core dump has the registers of every thread.  The C core's workers clear theirs
(native/src/registers.c); the thread of a Python disk has nothing but copies to do it with.
"""

_LENGTHS = (128, 256, 512, 2000)
"""Bytes: C libraries use up to 8 registers of 16, 32 or 64 bytes at once, and more in a loop."""
_COPIES = [(memoryview(bytearray(length)), bytes(length)) for length in _LENGTHS]
"""Targets and sources: made once, as this is done at every request."""


def forget() -> None:
    """Copy zeroes in the ways in which guest data may have been copied before."""
    for target, zeroes in _COPIES:
        target[:] = zeroes
