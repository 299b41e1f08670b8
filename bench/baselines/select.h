/* select.h: the choices that baselines make: the n largest, and the smallest set that holds a share of the mass. */
#ifndef DOUBLEP_BENCH_SELECT_H
#define DOUBLEP_BENCH_SELECT_H

#include <stddef.h>
#include <stdint.h>

#include "simd/kernels.h"

/* Sets chosen[i] for the n_wanted largest x[i]; among equals the lower i. work: [n]. */
void select_largest(const float *x, size_t n, size_t n_wanted, float *work, uint8_t *chosen);

/* The largest t such that the x[i] >= t sum to at least `need`; 0 where not even all of them do, Inf where need <= 0.
 * x[i] >= 0. */
float select_threshold(const dp_kernels *kernels, const float *x, size_t n, double need);

/* round(share * n), at least 1, at most n. */
size_t select_count(float share, size_t n);

#endif
