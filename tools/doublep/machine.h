/* machine.h: what this machine can do at most, measured apart from the library: reading memory, multiplying and adding. */
#ifndef DOUBLEP_TOOL_MACHINE_H
#define DOUBLEP_TOOL_MACHINE_H

#include <stddef.h>

/* Bytes per second that n_threads read together, each from its own buffer of so many bytes; the median of several
 * passes. Negative where the buffers cannot be had. */
double machine_read_bandwidth(int n_threads, size_t bytes_per_thread);

/* Bytes per second that n_threads read together in contiguous runs of run_bytes (a power of two of at least 64) at random
 * places, each in its own buffer of so many bytes, with software prefetch; the median of several passes, at the
 * prefetch distance that suits the machine best. Negative where the buffers cannot be had. */
double machine_gather_bandwidth(int n_threads, size_t bytes_per_thread, size_t run_bytes);

/* f32 operations per second (a fused multiply-add is two) of n_threads in registers alone, with the widest vectors that
 * the CPU has; the median of several passes. */
double machine_peak_flops(int n_threads);

#endif
