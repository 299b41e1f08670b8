/* cache.h: the keys and values of all layers in token order, in the type that they are stored in: what the baselines
 * attend to, and what every method's output is judged by. */
#ifndef DOUBLEP_BENCH_CACHE_H
#define DOUBLEP_BENCH_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "doublep/doublep.h"
#include "kv/rows.h"

typedef struct method_cache {
    dp_runtime *runtime;
    const dp_kernels *kernels;
    uint32_t n_layers, n_query_heads, n_kv_heads;
    uint32_t group; /* query heads per KV head */
    dp_row_format format;
    float scale;
    size_t capacity;    /* tokens per layer */
    uint64_t *n_tokens; /* [n_layers] */
    char *k, *v;        /* [n_layers][n_kv_heads][capacity] rows */
    float *queries;     /* [n_layers][METHOD_QUERIES][n_query_heads][key_dim] some of the prompt's, for indexes that want
                           to know what will be asked */
    size_t *n_queries;  /* [n_layers] */
} method_cache;

/* Room for `capacity` tokens of the shape and type of a sequence's config; NULL where there is no memory. */
method_cache *method_cache_create(dp_runtime *runtime, const dp_sequence_config *config, size_t capacity);
void method_cache_free(method_cache *cache); /* NULL is allowed */

/* Appends n tokens as dp_append takes them; false where they do not fit. */
bool method_cache_append(method_cache *cache, uint32_t layer, size_t n, const float *k, size_t k_stride, const float *v,
                         size_t v_stride);

/* Keeps every METHOD_QUERY_STEP-th query of those of tokens first .. first + n - 1, as long as there is room: those of a
 * prompt's first METHOD_QUERY_TOKENS tokens. */
enum { METHOD_QUERIES = 512, METHOD_QUERY_STEP = 8, METHOD_QUERY_TOKENS = METHOD_QUERIES * METHOD_QUERY_STEP };
void method_cache_observe(method_cache *cache, uint32_t layer, uint64_t first, size_t n, const float *q, size_t q_stride);

/* Forgets all but the first n tokens; with n = 0 the queries, too. */
void method_cache_truncate(method_cache *cache, uint64_t n_tokens);

/* Tokens first .. first + n - 1 of a layer as f32 in the order of dp_append: k[n][n_kv_heads][key_dim], v likewise. */
void method_cache_read(const method_cache *cache, uint32_t layer, uint64_t first, size_t n, float *k, float *v);

/* Lends a layer's rows, and the place of those to come, to a sequence that borrows by its config. */
dp_status method_cache_lend(const method_cache *cache, dp_sequence *sequence, const dp_sequence_config *config,
                            uint32_t layer);

static inline char *method_cache_keys(const method_cache *c, uint32_t layer, uint32_t kv_head)
{
    return c->k + ((size_t)layer * c->n_kv_heads + kv_head) * c->capacity * c->format.key_bytes;
}

static inline char *method_cache_values(const method_cache *c, uint32_t layer, uint32_t kv_head)
{
    return c->v + ((size_t)layer * c->n_kv_heads + kv_head) * c->capacity * c->format.value_bytes;
}

/* Bytes that dense attention reads for one token of a layer's length. */
static inline uint64_t method_cache_dense_bytes(const method_cache *c, uint32_t layer)
{
    return c->n_tokens[layer] * c->n_kv_heads * (c->format.key_bytes + c->format.value_bytes);
}

#endif
