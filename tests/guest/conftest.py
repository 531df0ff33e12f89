"""The fixture of the plugin, also where the package is not installed."""

from vhostblk.guest.pytest_plugin import vhost_user_guest

__all__ = ["vhost_user_guest"]
