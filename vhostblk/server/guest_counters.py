"""
What was noticed of a device's guests, connection after connection.

Who notices something counts it here; who makes the status document reads it.
"""

from dataclasses import dataclass


@dataclass(slots=True)
class GuestCounters:
    """
    Totals of a device since it was opened; they never go down.

    Args:
        ring_looks_encrypted: Rings that read as ciphertext.
        zero_ring_kicks: Kicks of rings that read as zeroes.
        cbit_address: Addresses that are in memory but for a C-bit or shared bit.
        outside: Requests that named an address outside the shared ranges, of queues that are gone.
        faults: Requests that guest memory vanished under, of queues that are gone.
    """

    ring_looks_encrypted: int = 0
    zero_ring_kicks: int = 0
    cbit_address: int = 0
    outside: int = 0
    faults: int = 0
