"""What a disk is, and the disks we ship."""
