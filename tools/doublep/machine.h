/* machine.h: what this machine can do at most, measured apart from the library: reading memory, multiplying and adding. */
#ifndef DOUBLEP_TOOL_MACHINE_H
#define DOUBLEP_TOOL_MACHINE_H

#include <stddef.h>

/* Bytes per second that n_threads read together, each from its own buffer of so many bytes; the median of several
 * passes. Negative where the buffers cannot be had. */
double machine_read_bandwidth(int n_threads, size_t bytes_per_thread);

/* Reads a byte of each line of memory, each thread its part: more than the caches hold, and they hold nothing else. Returns the
 * sum, for compilers that would leave it out. */
unsigned machine_flush(const char *memory, size_t bytes, int n_threads);

/* Bytes per second that n_threads read together in contiguous runs of run_bytes (a power of two of at least 64) at random
 * places, each in its own buffer of so many bytes, with software prefetch: some MiB at a time, each time after machine_flush
 * of `flush`, for caches and address translation start as cold when a model comes to the next attention step. The median of
 * several passes, at the prefetch distance that suits the machine best. Negative where the buffers cannot be had. */
double machine_gather_bandwidth(int n_threads, size_t bytes_per_thread, size_t run_bytes, const char *flush,
                                size_t flush_bytes);

/* f32 operations per second (a fused multiply-add is two) of n_threads in registers alone, with the widest vectors that
 * the CPU has; the median of several passes. */
double machine_peak_flops(int n_threads);

#endif
