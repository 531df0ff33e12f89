/* crash.c - see crash.h.  Compiled in builds for tests only. */
#include <stddef.h>

#include "crash.h"

#ifdef VHB_CRASH_POINTS

static void (*passed)(const char *name);

extern const char *const __start_vhb_crash[] __attribute__((visibility("hidden")));
extern const char *const __stop_vhb_crash[] __attribute__((visibility("hidden")));

void vhb_crash_pass(const char *name)
{
    if (passed)
        passed(name);
}

void vhb_crash_set_hook(void (*hook)(const char *name))
{
    passed = hook;
}

const char *vhb_crash_name(unsigned i)
{
    return &__start_vhb_crash[i] < __stop_vhb_crash ? __start_vhb_crash[i] : NULL;
}

#endif
