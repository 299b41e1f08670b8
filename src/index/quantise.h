/* Bytes of the index: mean values, centroids, and points of k-means. */
#ifndef DP_INDEX_QUANTISE_H
#define DP_INDEX_QUANTISE_H

#include <stddef.h>
#include <stdint.h>

/* The largest magnitude; Inf or NaN where a number is not finite. */
float dp_largest_magnitude(const float *x, size_t n);

/* Rounds to int8 in units of the returned step: the largest magnitude is 127. The step is NaN where a number is not finite,
 * and 0 where all are so small that 1 / step is not; then all bytes are 0. */
float dp_quantise(const float *restrict x, size_t n, int8_t *restrict rounded);

/* The same row by row. */
void dp_quantise_rows(const float *x, size_t n_rows, size_t n, int8_t *rounded, float *steps);

#endif
