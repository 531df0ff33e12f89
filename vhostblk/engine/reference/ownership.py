"""Whose a ring is, and what is asked of who has it."""

from enum import Enum, auto


class Owner(Enum):
    """Whose the ring is."""

    CONTROL = auto()
    WORKER = auto()


class Ask(Enum):
    """What the control plane wants of the worker."""

    RUN = auto()
    PARK = auto()
    DRAIN = auto()
    CANCEL = auto()
