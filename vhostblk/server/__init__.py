"""Serving: sockets, sessions, devices, and the thread a Python disk lives on."""
