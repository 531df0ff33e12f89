"""Helpers of the tests of histories: brute force, and disks with planted bugs."""
