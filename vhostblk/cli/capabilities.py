"""
What QEMU's managers may ask of ``vhostblk-backend``; imports nothing, it is asked before any work.

Spec: vhost-user, "Backend program conventions"; vhost-user.json, "VHostUserBackendCapabilities".
"""

CAPABILITIES = '{"type": "block", "features": ["read-only", "blk-file"]}'
"""What ``--print-capabilities`` prints."""
