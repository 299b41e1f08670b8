/* Bytes of the index: mean values, centroids, and points of k-means. */
#ifndef DP_INDEX_QUANTISE_H
#define DP_INDEX_QUANTISE_H

#include <stddef.h>
#include <stdint.h>

/* Rounds to int8 in units of the returned step: the largest magnitude is 127. NaN where a number is not finite. */
float dp_quantise(const float *x, size_t n, int8_t *rounded);

#endif
