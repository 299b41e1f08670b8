/* rope.h: the rotary position embedding, on interleaved pairs (x[2i], x[2i + 1]). */
#ifndef DOUBLEP_TOOL_ROPE_H
#define DOUBLEP_TOOL_ROPE_H

#include <stddef.h>
#include <stdint.h>

/* Radians per position of pair i, i < n_dims / 2: position_scale / (freq_base^(2i / n_dims) * factors[i]). factors may
 * be NULL: all 1. */
void rope_frequencies(size_t n_dims, double freq_base, double position_scale, const float *factors, double *frequencies);

/* table[2i], table[2i + 1] = cos, sin of position * frequencies[i], i < n_pairs; computed in double. */
void rope_table(uint64_t position, size_t n_pairs, const double *frequencies, float *table);

/* Rotates the first 2 n_pairs elements of each of n_heads heads of head_dim elements from src to dst (which may be
 * src) and copies the rest. */
void rope_apply(const float *table, size_t n_pairs, size_t n_heads, size_t head_dim, const float *src, float *dst);

#endif
