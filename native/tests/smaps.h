/* smaps.h - how the kernel treats a mapping: the two-letter words of VmFlags in /proc/self/smaps.
 */
#ifndef VHB_SMAPS_H
#define VHB_SMAPS_H

#include <inttypes.h>

#include "check.h"

/* Whether *flag* (" dd": not in a core dump, " dc": not in a child) is set on the mapping of *at*.
 */
static inline bool has_vm_flag(const void *at, const char *flag)
{
    FILE *smaps = fopen("/proc/self/smaps", "re");
    CHECK(smaps);
    bool here = false, found = false;
    char line[512];
    while (fgets(line, sizeof(line), smaps)) {
        uintptr_t from, to;
        if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " ", &from, &to) == 2)
            here = from <= (uintptr_t)at && (uintptr_t)at < to;
        else if (here && strncmp(line, "VmFlags:", 8) == 0)
            found = strstr(line, flag) != NULL;
    }
    fclose(smaps);
    return found;
}

#endif
