/* machine.h: what this machine can do at most, measured apart from the library: reading memory, multiplying and adding. */
#ifndef DOUBLEP_TOOL_MACHINE_H
#define DOUBLEP_TOOL_MACHINE_H

#include <stddef.h>

/* Bytes per second that n_threads read together, each from its own buffer of so many bytes; the median of several
 * passes. Negative where the buffers cannot be had. */
double machine_read_bandwidth(int n_threads, size_t bytes_per_thread);

/* f32 operations per second (a fused multiply-add is two) of n_threads in registers alone, with the widest vectors that
 * the CPU has; the median of several passes. */
double machine_peak_flops(int n_threads);

#endif
