"""
What front-end and back-end agree on, asked for in QEMU's order.

Spec: vhost-user, "Feature negotiation".  The order is what QEMU 10 sends: SET_OWNER comes after
SET_PROTOCOL_FEATURES, and SET_FEATURES only when the driver starts.
"""

from dataclasses import dataclass

from vhostblk.guest.channel import BackendChannel
from vhostblk.guest.errors import GuestError
from vhostblk.guest.frontend import FrontEnd
from vhostblk.guest.personality import PLAIN, Personality
from vhostblk.spec import vhost_user as vu
from vhostblk.spec import virtio_blk as vb
from vhostblk.spec import virtio_ring as vr
from vhostblk.spec.vhost_user import ProtocolFeature

BLK_FEATURES = (
    vb.F_SIZE_MAX
    | vb.F_SEG_MAX
    | vb.F_GEOMETRY
    | vb.F_RO
    | vb.F_BLK_SIZE
    | vb.F_FLUSH
    | vb.F_TOPOLOGY
    | vb.F_CONFIG_WCE
    | vb.F_MQ
    | vb.F_DISCARD
    | vb.F_WRITE_ZEROES
)
DEFAULT_FEATURES = (
    BLK_FEATURES
    | vr.F_INDIRECT_DESC
    | vr.F_EVENT_IDX
    | vr.F_VERSION_1
    | vu.VHOST_USER_F_PROTOCOL_FEATURES
)
"""Everything this driver knows; what the back-end offers of it is acknowledged."""
DEFAULT_PROTOCOL_FEATURES = (
    ProtocolFeature.MQ
    | ProtocolFeature.LOG_SHMFD
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.CONFIG
    | ProtocolFeature.INFLIGHT_SHMFD
    | ProtocolFeature.RESET_DEVICE
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
    | ProtocolFeature.STATUS
)
"""Everything this front-end knows; leave CONFIGURE_MEM_SLOTS out to get SET_MEM_TABLE."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """
    What the guest asks for.

    Args:
        queues: How many queues.
        features: Virtio features the driver would acknowledge.
        required: Those of them it cannot do without.
        protocol_features: Features the front-end would agree on.
        personality: Which front-end it is.
    """

    queues: int = 1
    features: int = DEFAULT_FEATURES
    required: int = 0
    protocol_features: int = DEFAULT_PROTOCOL_FEATURES
    personality: Personality = PLAIN


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """
    The outcome.

    Args:
        offered: Virtio features the back-end offers.
        features: Those that are acknowledged at every start.
        protocol_features: In force.
        max_queues: Queues the back-end serves.
        max_mem_slots: Memory regions it takes.
    """

    offered: int
    features: int
    protocol_features: ProtocolFeature
    max_queues: int
    max_mem_slots: int


def negotiate(frontend: FrontEnd, wanted: Wanted, channel: BackendChannel) -> Agreement:
    """
    Agree with the back-end, up to and with the second GET_FEATURES.

    Args:
        frontend: Nothing was sent on it yet.
        wanted: What to ask for.
        channel: Handed over if BACKEND_REQ is agreed on.

    Returns:
        What was agreed on.

    Raises:
        GuestError: The back-end does not answer, serves fewer queues or lacks what is required.
    """
    agreed = ProtocolFeature(0)
    max_queues, slots = 1, vu.MEM_TABLE_REGIONS
    if frontend.get_features() & wanted.features & vu.VHOST_USER_F_PROTOCOL_FEATURES:
        known = wanted.protocol_features & ~int(wanted.personality.lacks)
        agreed = frontend.get_protocol_features() & known
        frontend.set_protocol_features(agreed)
    if ProtocolFeature.MQ in agreed:
        max_queues = frontend.get_queue_num()
    if wanted.queues > max_queues:
        raise GuestError(f"the back-end serves {max_queues} queues, not {wanted.queues}")
    if ProtocolFeature.CONFIGURE_MEM_SLOTS in agreed:
        slots = frontend.get_max_mem_slots()
    if ProtocolFeature.BACKEND_REQ in agreed:
        frontend.set_backend_req_fd(channel.backend_fd)
    channel.handed_over()
    frontend.set_owner()
    offered = frontend.get_features()
    wanted.personality.check(offered, agreed)
    if missing := wanted.required & ~offered:
        raise GuestError(f"the back-end does not offer feature bits {missing:#x}")
    return Agreement(
        offered=offered,
        features=offered & wanted.features,
        protocol_features=agreed,
        max_queues=max_queues,
        max_mem_slots=slots,
    )
