"""A queue whose requests are noted in an inflight region, and who comes after it."""

from engine.conftest import ENGINES
from engine.driver import Asked
from engine.harness import FEATURES, Rig
from engine.region import Region

SIZE = 16

Moment = tuple[bytes, bytes]
"""The bytes of ring and region."""


class Tracked:
    """
    A lane whose queue notes what it takes, and its successors.

    Args:
        engine: Which.
        packed: The ring is.
        size: Of the ring.
        features: Acked.
    """

    def __init__(
        self, engine: str, *, packed: bool, size: int = SIZE, features: int = FEATURES
    ) -> None:
        self.packed = packed
        self.rig = Rig(ENGINES[engine], packed=packed)
        self.region = Region(size, packed=packed)
        self.features = features
        self.lane = self.rig.lane(size=size, region=self.region, features=features)
        self._dead: list[tuple[Rig, Region]] = []  # what they write to is mapped until they end

    def die(self, engine: str, *, run: bool = True) -> None:
        """Let nobody serve any more, and a successor find what is there."""
        before, lane = self.rig, self.lane
        self._dead.append((before, self.region))
        self.rig = Rig(ENGINES[engine], packed=self.packed)
        self.rig.memory.bytes[:] = before.memory.bytes[:]
        self.rig.disk[:] = before.disk
        self.region = self.region.copy()
        ring = lane.ring.adopt(self.rig.memory)
        self.lane = self.rig.lane(ring=ring, region=self.region, features=self.features, run=run)

    def use_every_entry(self) -> None:
        """Have every entry that a chain may begin with hold an old counter."""
        for _ in range(SIZE):  # of three descriptors each, a number that goes round
            self.lane.read()
            self.rig.pump()

    def moment(self) -> Moment:
        """Return what a successor would find."""
        at, length = self.lane.ring.span()
        return self.lane.memory.read(at, length), bytes(self.region.bytes)

    def take_over(self, engine: str, ring: bytes, region: bytes) -> None:
        """Die, and let a successor take what there was at some moment."""
        self.die(engine, run=False)
        self.rig.memory.write(self.lane.ring.span()[0], ring)
        self.region.bytes[:] = region
        self.rig.call(self.lane.queue.run)
        self.rig.step()

    def forget_death(self) -> None:
        """Let the one who died last live on."""
        self._dead.pop()

    def follow(self, asked: Asked) -> Asked:
        """Return what a request is to the successor."""
        since = asked.since
        return Asked(self.lane, asked.head, asked.status_at, asked.data_at, asked.length, since)

    def close(self) -> None:
        for rig, _ in self._dead:
            rig.close()
        self.rig.close()
