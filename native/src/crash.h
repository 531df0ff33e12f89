/* crash.h - the places where a test lets us die: between any two stores that a successor sees.
 *
 * Only in a build with -Dcrash_points=true.  In any other there is nothing of this. */
#ifndef VHB_CRASH_H
#define VHB_CRASH_H

#ifdef VHB_CRASH_POINTS

/* Their names are collected by the linker, so that a test knows all there are. */
#define VHB_CRASH(name)                                                                            \
    do {                                                                                           \
        static const char *const point __attribute__((section("vhb_crash"), used)) = #name;        \
        vhb_crash_pass(point);                                                                     \
    } while (0)

#pragma GCC visibility push(default) /* a test in Python finds them in the module */

void vhb_crash_pass(const char *name);

/* What to do at each; NULL: go on.  Called by whoever passes, a worker as a rule. */
void vhb_crash_set_hook(void (*hook)(const char *name));
/* The *i*-th of all that were compiled in, NULL behind the last; one that is written once and
 * compiled twice is there twice. */
const char *vhb_crash_name(unsigned i);

#pragma GCC visibility pop

#else

#define VHB_CRASH(name) ((void)0)

#endif

#endif
