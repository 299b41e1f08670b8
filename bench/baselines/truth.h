/* truth.h: what a method should have computed: dense attention over the cache, and how much of its softmax the tokens
 * have that the method used. */
#ifndef DOUBLEP_BENCH_TRUTH_H
#define DOUBLEP_BENCH_TRUTH_H

#include "cache.h"

typedef struct truth truth;

truth *truth_create(const method_cache *cache);
void truth_free(truth *t); /* NULL is allowed */

/* Dense attention of the layer's last token: out[n_query_heads][value_dim]; mass[h] = the sum of query head h's softmax
 * over the tokens t with kept[(its KV head) * stride + t]. False where there is no memory. */
bool truth_attend(truth *t, uint32_t layer, const float *q, const uint8_t *kept, size_t stride, float *out, double *mass);

#endif
