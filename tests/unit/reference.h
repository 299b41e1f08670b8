/* A slow, obviously right attention in double precision, and caches to try it on. */
#ifndef TESTS_UNIT_REFERENCE_H
#define TESTS_UNIT_REFERENCE_H

#include <stddef.h>
#include <stdint.h>

#include "doublep/doublep.h"

/* Pseudo-random numbers with a fixed start: failures repeat. */
typedef struct rng {
    uint64_t state;
} rng;
float rng_uniform(rng *r); /* [0, 1) */
float rng_normal(rng *r);

/* Keys and values of one layer, f32, token-major, as dp_append takes them; rounded to the type that the store keeps. */
typedef struct cache {
    size_t n_tokens, n_kv_heads, key_dim, value_dim;
    float *k, *v;
} cache;

/* Clustered keys with a common mean, a few outliers, a sink: what trained models show. */
cache cache_create(rng *r, size_t n_tokens, size_t n_kv_heads, size_t key_dim, size_t value_dim, dp_type type);
void cache_free(cache *c);

/* Queries near some of the keys, so that attention is neither flat nor a single token. */
void make_queries(rng *r, const cache *c, size_t n_queries, size_t n_query_heads, float *q);

/* Causal dense attention of the last n_queries tokens, shapes as in dp_prefill; softcap as in dp_sequence_config. */
void reference_attention(const cache *c, size_t n_query_heads, float scale, size_t n_queries, const float *q,
                         float *out, float *lse);
void reference_capped_attention(const cache *c, size_t n_query_heads, float scale, float softcap, size_t n_queries,
                                const float *q, float *out, float *lse);

/* |a - b| / |b| over n elements. */
double relative_error(const float *a, const float *b, size_t n);

#endif
