/* quantised.c: see quantised.h. Codes are unpacked to bf16, which holds 0 to 15 exactly, a few rows at a time, so that
 * the library's kernel multiplies them: q.k = minimum * sum(q) + step * q.codes. */
#include "quantised.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/runtime.h"
#include "simd/half.h"
#include "table.h"
#include "tasks.h"

enum { LEVELS = 15, ROWS = 16, MAX_GROUP = 1024 };

struct quantised_keys {
    const method_cache *cache;
    uint8_t *rows; /* [n_layers][n_kv_heads][capacity][row bytes]: bf16 minimum, bf16 step, two codes a byte */
    uint64_t *built;
    uint32_t pairs[256]; /* a byte's two codes as bf16 */
    uint32_t layer;      /* of the present update */
};

size_t quantised_row_bytes(const method_cache *cache)
{
    return 2 * sizeof(uint16_t) + cache->format.key_dim / 2;
}

static uint8_t *rows_of(const quantised_keys *q, uint32_t layer, size_t kv_head)
{
    return q->rows + ((size_t)layer * q->cache->n_kv_heads + kv_head) * q->cache->capacity *
                         quantised_row_bytes(q->cache);
}

quantised_keys *quantised_create(const method_cache *cache)
{
    quantised_keys *const q = calloc(1, sizeof(*q));
    if (!q)
        return NULL;
    q->cache = cache;
    q->rows = malloc((size_t)cache->n_layers * cache->n_kv_heads * cache->capacity * quantised_row_bytes(cache) + 1);
    q->built = calloc(cache->n_layers, sizeof(*q->built));
    if (!q->rows || !q->built) {
        quantised_free(q);
        return NULL;
    }
    for (uint32_t byte = 0; byte < 256; byte++) {
        const uint16_t pair[2] = {dp_bf16_from_f32((float)(byte & 15)), dp_bf16_from_f32((float)(byte >> 4))};
        memcpy(&q->pairs[byte], pair, sizeof(pair));
    }
    for (uint32_t l = 0; l < cache->n_layers; l++)
        quantised_update(q, l);
    return q;
}

void quantised_free(quantised_keys *q)
{
    if (!q)
        return;
    free(q->rows);
    free(q->built);
    free(q);
}

static unsigned code_of(float x, float low, float step)
{
    const float level = step > 0 ? (x - low) / step : 0;
    return level > 0 ? (level < LEVELS ? (unsigned)(level + 0.5f) : LEVELS) : 0; /* NaN: 0 */
}

static void quantise(const method_cache *c, const char *key, uint8_t *row)
{
    float x[DP_MAX_DIM], low = INFINITY, high = -INFINITY;
    const size_t dim = c->format.key_dim;
    c->kernels->to_f32[c->format.type](x, key, dim);
    for (size_t j = 0; j < dim; j++) {
        low = x[j] < low ? x[j] : low;
        high = x[j] > high ? x[j] : high;
    }
    const uint16_t head[2] = {dp_bf16_from_f32(low), dp_bf16_from_f32((high - low) / LEVELS)};
    const float base = dp_f32_from_bf16(head[0]), step = dp_f32_from_bf16(head[1]);
    memcpy(row, head, sizeof(head));
    for (size_t j = 0; j < dim; j += 2)
        row[sizeof(head) + j / 2] = (uint8_t)(code_of(x[j], base, step) | code_of(x[j + 1], base, step) << 4);
}

static void update_head(void *argument, size_t kv_head, int thread)
{
    const quantised_keys *const q = argument;
    const method_cache *const c = q->cache;
    const char *const keys = method_cache_keys(c, q->layer, (uint32_t)kv_head);
    uint8_t *const rows = rows_of(q, q->layer, kv_head);
    (void)thread;
    for (uint64_t t = q->built[q->layer]; t < c->n_tokens[q->layer]; t++)
        quantise(c, keys + t * c->format.key_bytes, rows + t * quantised_row_bytes(c));
}

void quantised_update(quantised_keys *q, uint32_t layer)
{
    q->layer = layer;
    tasks_run(q->cache->runtime, q->cache->n_kv_heads, update_head, q);
    q->built[layer] = q->cache->n_tokens[layer];
}

void quantised_restart(quantised_keys *q)
{
    memcpy(q->built, q->cache->n_tokens, q->cache->n_layers * sizeof(*q->built));
}

void quantised_logits(const quantised_keys *keys, uint32_t layer, uint32_t kv_head, const float *q,
                      const uint32_t *index, size_t n, float *out, size_t stride)
{
    const method_cache *const c = keys->cache;
    const size_t dim = c->format.key_dim, row_bytes = quantised_row_bytes(c);
    const uint8_t *const rows = rows_of(keys, layer, kv_head);
    _Alignas(64) uint32_t codes[ROWS * DP_MAX_DIM / 2];
    float low[ROWS], step[ROWS], sums[MAX_GROUP];
    for (size_t r = 0; r < c->group; r++) {
        sums[r] = 0;
        for (size_t j = 0; j < dim; j++)
            sums[r] += q[r * dim + j];
    }
    for (size_t first = 0; first < n; first += ROWS) {
        const size_t some = n - first < ROWS ? n - first : ROWS;
        for (size_t i = 0; i < some; i++) {
            const uint8_t *const row = rows + index[first + i] * row_bytes;
            uint16_t head[2];
            memcpy(head, row, sizeof(head));
            low[i] = c->scale * dp_f32_from_bf16(head[0]);
            step[i] = c->scale * dp_f32_from_bf16(head[1]);
            for (size_t j = 0; j < dim / 2; j++)
                codes[i * dim / 2 + j] = keys->pairs[row[sizeof(head) + j]];
        }
        table_logits(c->kernels, &(row_table){DP_BF16, codes, dim, NULL, some}, q, c->group, 1, out + first, stride);
        for (size_t r = 0; r < c->group; r++) {
            float *const row = out + r * stride + first;
            for (size_t i = 0; i < some; i++)
                row[i] = low[i] * sums[r] + step[i] * row[i];
        }
    }
}
