/* What the fuzz targets share: numbers drawn from the input, a file that has the input as its content, one runtime for all
 * inputs. Whatever is wrong ends the process, so that libFuzzer keeps the input. */
#ifndef TESTS_FUZZ_FUZZ_H
#define TESTS_FUZZ_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "doublep/doublep.h"

/* libFuzzer's entry points. */
int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MUST(condition)                                                                                                \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);                                    \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

/* The input, taken from the front; zeros when it is used up. */
typedef struct input {
    const uint8_t *data;
    size_t size;
} input;

static inline uint8_t input_byte(input *in)
{
    if (!in->size) return 0;
    in->size--;
    return *in->data++;
}

static inline uint32_t input_below(input *in, uint32_t bound)
{
    const uint32_t value = input_byte(in) | (bound > 256 ? (uint32_t)input_byte(in) << 8 : 0);
    return value % bound;
}

/* A file in memory, and the path that opens it; one at a time. */
static inline const char *memory_file(const void *data, size_t size, int *descriptor)
{
    static char path[64];
    *descriptor = memfd_create("input", MFD_CLOEXEC);
    MUST(*descriptor >= 0 && write(*descriptor, data, size) == (ssize_t)size);
    snprintf(path, sizeof path, "/proc/self/fd/%d", *descriptor);
    return path;
}

/* Small and on one thread: most of the time is to go into the code under test. */
static inline dp_runtime *small_runtime(uint64_t memory_limit)
{
    dp_runtime_config config;
    dp_runtime_config_init(&config);
    config.n_threads = 1;
    config.huge_pages = DP_HUGE_PAGES_OFF;
    config.numa = DP_NUMA_OFF;
    config.memory_limit = memory_limit;
    dp_runtime *runtime;
    MUST(dp_runtime_create(&config, &runtime) == DP_OK);
    return runtime;
}

static inline uint64_t runtime_bytes(const dp_runtime *runtime)
{
    dp_runtime_info info;
    dp_runtime_info_init(&info);
    MUST(dp_runtime_get_info(runtime, &info) == DP_OK);
    return info.memory_bytes - info.scratch_bytes;
}

#endif
