"""Sweeps over recordings: every state a power cut could have left, built and checked."""
