/* The file that a fuzz target saves to: in memory, in a folder of its own, which goes when the process ends. */
#ifndef TESTS_FUZZ_SAVED_H
#define TESTS_FUZZ_SAVED_H

#include "fuzz.h"

static char saved_folder[] = "/dev/shm/doublep-fuzz-XXXXXX";
static char saved_path[64];

static inline void saved_remove(void)
{
    unlink(saved_path);
    rmdir(saved_folder);
}

/* As LLVMFuzzerInitialize returns: 0 unless it failed. */
static inline int saved_open(void)
{
    MUST(mkdtemp(saved_folder));
    snprintf(saved_path, sizeof saved_path, "%s/saved", saved_folder);
    return atexit(saved_remove);
}

#endif
