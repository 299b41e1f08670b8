/* How much memory the system lets this process have. */
#ifndef DP_MEMORY_SYSTEM_H
#define DP_MEMORY_SYSTEM_H

#include <stdbool.h>
#include <stdint.h>

/* dp_system_memory as the files below `root` say, which is "" but in tests. False where /proc/meminfo cannot be read. */
bool dp_system_memory_read(const char *root, uint64_t *total, uint64_t *available);

#endif
