/* truth.c: see truth.h. */
#include "truth.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/runtime.h"
#include "table.h"
#include "tasks.h"

enum { BLOCK = 512 }; /* tokens per task */

struct truth {
    const method_cache *cache;
    float *weights;  /* [n_threads][group][BLOCK] */
    float *partials; /* [n_kv_heads][n_blocks][group][3 + value_dim]: maximum, sum, sum of kept, values */
    size_t capacity; /* blocks */
    /* Of the present call. */
    uint32_t layer;
    size_t n_blocks, stride;
    const float *q;
    const uint8_t *kept;
    float *out;
    double *mass;
};

truth *truth_create(const method_cache *cache)
{
    truth *const t = calloc(1, sizeof(*t));
    if (!t)
        return NULL;
    t->cache = cache;
    t->weights = malloc((size_t)cache->runtime->n_threads * cache->group * BLOCK * sizeof(*t->weights));
    if (t->weights)
        return t;
    free(t);
    return NULL;
}

void truth_free(truth *t)
{
    if (!t)
        return;
    free(t->weights);
    free(t->partials);
    free(t);
}

static size_t partial_floats(const method_cache *c)
{
    return c->group * (3 + c->format.value_dim);
}

static void run_block(void *argument, size_t task, int thread)
{
    truth *const t = argument;
    const method_cache *const c = t->cache;
    const dp_row_format *const f = &c->format;
    const size_t h = task / t->n_blocks, first = task % t->n_blocks * BLOCK;
    const size_t left = c->n_tokens[t->layer] - first, n = left < BLOCK ? left : BLOCK;
    float *const weights = t->weights + (size_t)thread * c->group * BLOCK;
    float *const partial = t->partials + task * partial_floats(c), *const values = partial + 3 * c->group;
    const uint8_t *const kept = t->kept + h * t->stride + first;
    const row_table k = {
        f->type, method_cache_keys(c, t->layer, (uint32_t)h) + first * f->key_bytes, f->key_dim, NULL, n};
    const row_table v = {
        f->type, method_cache_values(c, t->layer, (uint32_t)h) + first * f->value_bytes, f->value_dim, NULL, n};
    table_logits(c->kernels, &k, t->q + h * c->group * f->key_dim, c->group, c->scale, weights, BLOCK);
    for (size_t r = 0; r < c->group; r++) {
        float *const row = weights + r * BLOCK;
        partial[3 * r] = c->kernels->max(row, n);
        partial[3 * r + 1] = c->kernels->exp_sum(row, n, partial[3 * r]);
        double sum = 0;
        for (size_t i = 0; i < n; i++)
            sum += kept[i] ? (double)row[i] : 0;
        partial[3 * r + 2] = (float)sum;
    }
    memset(values, 0, c->group * f->value_dim * sizeof(*values));
    table_values(c->kernels, &v, weights, BLOCK, c->group, values);
}

static void merge(void *argument, size_t head, int thread)
{
    truth *const t = argument;
    const method_cache *const c = t->cache;
    const size_t dim = c->format.value_dim, h = head / c->group, r = head % c->group, stride = partial_floats(c);
    const float *const partials = t->partials + h * t->n_blocks * stride;
    float *const out = t->out + head * dim;
    float top = -INFINITY;
    double sum = 0, kept = 0;
    (void)thread;
    for (size_t i = 0; i < t->n_blocks; i++)
        top = fmaxf(top, partials[i * stride + 3 * r]);
    memset(out, 0, dim * sizeof(*out));
    for (size_t i = 0; i < t->n_blocks; i++) {
        const float *const partial = partials + i * stride;
        const float factor = expf(partial[3 * r] - top);
        sum += (double)partial[3 * r + 1] * (double)factor;
        kept += (double)partial[3 * r + 2] * (double)factor;
        c->kernels->axpy(out, partial + 3 * c->group + r * dim, factor, dim);
    }
    c->kernels->scale(out, (float)(1 / sum), dim);
    t->mass[head] = kept / sum;
}

bool truth_attend(truth *t, uint32_t layer, const float *q, const uint8_t *kept, size_t stride, float *out, double *mass)
{
    const method_cache *const c = t->cache;
    t->n_blocks = (c->n_tokens[layer] + BLOCK - 1) / BLOCK;
    if (t->n_blocks > t->capacity) {
        free(t->partials);
        t->partials = malloc(t->n_blocks * c->n_kv_heads * partial_floats(c) * sizeof(*t->partials));
        t->capacity = t->partials ? t->n_blocks : 0;
        if (!t->partials)
            return false;
    }
    t->layer = layer;
    t->q = q;
    t->kept = kept;
    t->stride = stride;
    t->out = out;
    t->mass = mass;
    tasks_run(c->runtime, t->n_blocks * c->n_kv_heads, run_block, t);
    tasks_run(c->runtime, c->n_query_heads, merge, t);
    return true;
}
