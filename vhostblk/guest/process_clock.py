"""What CPU time another process uses: that of all its threads, those that ended as well."""

import time

CPUCLOCK_SCHED = 2
"""What clock_getcpuclockid(3) gives.  Source: Linux, include/linux/posix-timers_types.h."""


def cpu_seconds(pid: int) -> float | None:
    """
    Return the CPU seconds a process has used.

    Args:
        pid: Of the process; threads of its io_uring count.

    Returns:
        None: there is no such process.
    """
    try:
        return time.clock_gettime_ns(~pid << 3 | CPUCLOCK_SCHED) / 1e9
    except OSError:
        return None
