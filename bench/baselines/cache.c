/* cache.c: see cache.h. */
#include "cache.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/runtime.h"

method_cache *method_cache_create(dp_runtime *runtime, const dp_sequence_config *config, size_t capacity)
{
    method_cache *const c = calloc(1, sizeof(*c));
    if (!c)
        return NULL;
    *c = (method_cache){
        .runtime = runtime,
        .kernels = &runtime->kernels,
        .n_layers = config->n_layers,
        .n_query_heads = config->n_query_heads,
        .n_kv_heads = config->n_kv_heads,
        .group = config->n_query_heads / config->n_kv_heads,
        .format = {.type = config->type,
                   .key_dim = config->key_dim,
                   .value_dim = config->value_dim,
                   .key_bytes = dp_row_bytes(config->type, config->key_dim),
                   .value_bytes = dp_row_bytes(config->type, config->value_dim)},
        .scale = config->scale > 0 ? config->scale : 1.0f / sqrtf((float)config->key_dim),
        .capacity = capacity,
    };
    const size_t rows = (size_t)c->n_layers * c->n_kv_heads * capacity;
    c->n_tokens = calloc(c->n_layers, sizeof(*c->n_tokens));
    c->n_queries = calloc(c->n_layers, sizeof(*c->n_queries));
    c->queries = malloc((size_t)c->n_layers * METHOD_QUERIES * c->n_query_heads * config->key_dim * sizeof(*c->queries));
    c->k = malloc(rows * c->format.key_bytes + 1);
    c->v = malloc(rows * c->format.value_bytes + 1);
    if (c->n_tokens && c->n_queries && c->queries && c->k && c->v)
        return c;
    method_cache_free(c);
    return NULL;
}

void method_cache_free(method_cache *cache)
{
    if (!cache)
        return;
    free(cache->n_tokens);
    free(cache->n_queries);
    free(cache->queries);
    free(cache->k);
    free(cache->v);
    free(cache);
}

bool method_cache_append(method_cache *c, uint32_t layer, size_t n, const float *k, size_t k_stride, const float *v,
                         size_t v_stride)
{
    const uint64_t first = c->n_tokens[layer];
    const dp_row_format *const f = &c->format;
    if (n > c->capacity - first)
        return false;
    for (uint32_t h = 0; h < c->n_kv_heads; h++) {
        char *const keys = method_cache_keys(c, layer, h) + first * f->key_bytes;
        char *const values = method_cache_values(c, layer, h) + first * f->value_bytes;
        for (size_t i = 0; i < n; i++) {
            c->kernels->from_f32[f->type](keys + i * f->key_bytes, k + i * k_stride + h * f->key_dim, f->key_dim);
            c->kernels->from_f32[f->type](values + i * f->value_bytes, v + i * v_stride + h * f->value_dim, f->value_dim);
        }
    }
    c->n_tokens[layer] += n;
    return true;
}

void method_cache_observe(method_cache *c, uint32_t layer, uint64_t first, size_t n, const float *q, size_t q_stride)
{
    const size_t width = c->n_query_heads * c->format.key_dim;
    float *const kept = c->queries + (size_t)layer * METHOD_QUERIES * width;
    for (size_t i = 0; i < n; i++)
        if ((first + i) % METHOD_QUERY_STEP == METHOD_QUERY_STEP - 1 && c->n_queries[layer] < METHOD_QUERIES)
            memcpy(kept + c->n_queries[layer]++ * width, q + i * q_stride, width * sizeof(*q));
}

void method_cache_truncate(method_cache *cache, uint64_t n_tokens)
{
    for (uint32_t l = 0; l < cache->n_layers; l++) {
        if (cache->n_tokens[l] > n_tokens)
            cache->n_tokens[l] = n_tokens;
        if (n_tokens == 0)
            cache->n_queries[l] = 0;
    }
}

void method_cache_read(const method_cache *c, uint32_t layer, uint64_t first, size_t n, float *k, float *v)
{
    const dp_row_format *const f = &c->format;
    for (uint32_t h = 0; h < c->n_kv_heads; h++) {
        const char *const keys = method_cache_keys(c, layer, h) + first * f->key_bytes;
        const char *const values = method_cache_values(c, layer, h) + first * f->value_bytes;
        for (size_t i = 0; i < n; i++) {
            c->kernels->to_f32[f->type](k + (i * c->n_kv_heads + h) * f->key_dim, keys + i * f->key_bytes, f->key_dim);
            c->kernels->to_f32[f->type](v + (i * c->n_kv_heads + h) * f->value_dim, values + i * f->value_bytes,
                                        f->value_dim);
        }
    }
}

dp_status method_cache_lend(const method_cache *c, dp_sequence *sequence, const dp_sequence_config *config, uint32_t layer)
{
    dp_borrowed_rows rows;
    dp_borrowed_rows_init(&rows);
    rows.k = method_cache_keys(c, layer, 0);
    rows.v = method_cache_values(c, layer, 0);
    rows.k_token_stride = c->format.key_bytes;
    rows.v_token_stride = c->format.value_bytes;
    rows.k_head_stride = c->capacity * c->format.key_bytes;
    rows.v_head_stride = c->capacity * c->format.value_bytes;
    rows.n_tokens = c->capacity;
    return config->borrowed ? dp_borrow(sequence, layer, &rows) : DP_OK;
}
