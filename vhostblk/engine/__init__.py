"""Data planes: the C core (`native`) and the readable one (`reference`)."""
