/* What a KV head knows of its queries. Keys are only ever seen through products with queries, and those are far from
 * evenly spread: their mean has a fifth to three quarters of their energy, a few directions most of the rest. While a
 * prompt is read, sums over its queries are kept; when the head's first tokens are clustered these settle into
 *   a metric M = (1 - share) I + share * key_dim * E[q q'] / trace(E[q q']) = L L': keys are clustered as x = L'k, where
 *     distances are the expected differences of logits, and a logit's deviation has the scale |L^-1 q|, and
 *   an origin y0 = L^-1 mean(q): where cluster statistics are exact, so that they only have to carry from the mean query
 *     to the actual one.
 * Without queries M = I and y0 = 0. */
#ifndef DP_KV_QUERIES_H
#define DP_KV_QUERIES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "doublep/doublep.h"
#include "simd/kernels.h"

typedef struct dp_queries {
    float *vector; /* [dim], then [dim][dim]: sums of q and of q q' (lower triangle), then y0 and L; NULL: none seen */
    uint64_t n;    /* seen */
    bool settled;
} dp_queries;

/* L: row i at i * dim, zero above the diagonal. */
static inline float *dp_queries_factor(const dp_queries *queries, size_t dim)
{
    return queries->vector + dim;
}

/* Makes room for the sums; false where there is no memory. */
bool dp_queries_reserve(dp_queries *queries, dp_runtime *runtime, size_t dim);

/* Adds n rows, row i at q + i * stride, where there is room and the sums have not settled. Rows that are not finite are
 * passed over. */
void dp_queries_add(dp_queries *queries, size_t dim, const float *q, size_t stride, size_t n);

/* Settles, if anything was seen. The shares: of the moments in the metric, of the mean in the origin. */
void dp_queries_settle(dp_queries *queries, size_t dim, float metric_share, float origin_share);

bool dp_queries_copy(dp_queries *copy, const dp_queries *queries, dp_runtime *runtime, size_t dim);
void dp_queries_free(dp_queries *queries, dp_runtime *runtime, size_t dim);
size_t dp_queries_bytes(const dp_queries *queries, size_t dim);

/* offset = L^-1 q - y0 of a query, settled or not; returns |offset|^2. */
float dp_queries_offset(const dp_queries *queries, const dp_kernels *kernels, size_t dim, const float *q, float *offset);

/* From x = L'k back to k, in place. Settled only. */
void dp_queries_restore(const dp_queries *queries, size_t dim, float *x);

#endif
