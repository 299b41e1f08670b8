/* clusters.c: see clusters.h. */
#include "clusters.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "index/kmeans.h"

/* All parts in one allocation; s->memory == NULL: only measures. */
static size_t lay_out(cluster_segment *s, const dp_row_format *f, size_t n_means)
{
    dp_scratch memory = {.base = s->memory};
    s->mean_key = dp_scratch_take(&memory, f->key_dim * sizeof(*s->mean_key));
    s->centroids = dp_scratch_take(&memory, n_means * f->key_dim * sizeof(*s->centroids));
    s->mean_values = dp_scratch_take(&memory, n_means * f->value_dim * sizeof(*s->mean_values));
    s->offset = dp_scratch_take(&memory, (n_means + 1) * sizeof(*s->offset));
    s->token = dp_scratch_take(&memory, s->n_tokens * sizeof(*s->token));
    s->k = dp_scratch_take(&memory, s->n_tokens * f->key_bytes);
    s->v = dp_scratch_take(&memory, s->n_tokens * f->value_bytes);
    return memory.used;
}

void cluster_segment_free(cluster_segment *s)
{
    free(s->memory);
    *s = (cluster_segment){0};
}

static void *allocate(size_t bytes)
{
    return aligned_alloc(64, (bytes + 63) / 64 * 64 + 64);
}

/* Loads the keys less their mean. */
static void load(cluster_segment *s, const method_cache *c, const char *keys, dp_kmeans *p)
{
    for (size_t i = 0; i < p->n; i++)
        c->kernels->to_f32[c->format.type](p->x + i * p->dim, keys + i * c->format.key_bytes, p->dim);
    memset(s->mean_key, 0, p->dim * sizeof(*s->mean_key));
    for (size_t i = 0; i < p->n; i++)
        c->kernels->axpy(s->mean_key, p->x + i * p->dim, 1, p->dim);
    c->kernels->scale(s->mean_key, 1 / (float)p->n, p->dim);
    for (size_t i = 0; i < p->n; i++)
        c->kernels->axpy(p->x + i * p->dim, s->mean_key, -1, p->dim);
}

/* Clusters with members get their numbers, centroids, mean values and rows. */
static void fill(cluster_segment *s, const method_cache *c, const dp_kmeans *p, const char *keys, const char *values)
{
    const dp_row_format *const f = &c->format;
    float sum[DP_MAX_DIM], row[DP_MAX_DIM];
    uint32_t at = 0;
    s->n_clusters = 0;
    for (size_t m = 0; m < p->n_means; m++) {
        if (p->count[m] == 0)
            continue;
        const uint32_t number = s->n_clusters++;
        s->offset[number] = at;
        c->kernels->from_f32[DP_BF16](s->centroids + number * f->key_dim, p->centroids + m * f->key_dim, f->key_dim);
        memset(sum, 0, sizeof(sum));
        for (size_t i = 0; i < p->n; i++) {
            if (p->assignment[i] != m)
                continue;
            memcpy(s->k + at * f->key_bytes, keys + i * f->key_bytes, f->key_bytes);
            memcpy(s->v + at * f->value_bytes, values + i * f->value_bytes, f->value_bytes);
            c->kernels->to_f32[f->type](row, values + i * f->value_bytes, f->value_dim);
            c->kernels->axpy(sum, row, 1, f->value_dim);
            s->token[at++] = (uint32_t)(s->first_token + i);
        }
        c->kernels->scale(sum, 1 / (float)p->count[m], f->value_dim);
        c->kernels->from_f32[DP_BF16](s->mean_values + number * f->value_dim, sum, f->value_dim);
    }
    s->offset[s->n_clusters] = at;
}

bool cluster_segment_create(cluster_segment *s, const method_cache *cache, uint32_t layer, uint32_t kv_head,
                            uint64_t first, size_t n, uint32_t per_cluster, uint32_t iterations)
{
    const dp_row_format *const f = &cache->format;
    dp_kmeans p = {.kernels = cache->kernels,
                   .n = n,
                   .dim = f->key_dim,
                   .n_means = (n + per_cluster - 1) / per_cluster,
                   .iterations = iterations,
                   .clustering = DP_CLUSTERING_SPHERICAL};
    *s = (cluster_segment){.first_token = first, .n_tokens = (uint32_t)n};
    dp_scratch scratch = {0};
    dp_kmeans_carve(&p, &scratch);
    scratch = (dp_scratch){.base = allocate(scratch.used), .bytes = scratch.used};
    s->memory = allocate(lay_out(s, f, p.n_means));
    bool done = scratch.base && s->memory;
    if (done) {
        const char *const keys = method_cache_keys(cache, layer, kv_head) + first * f->key_bytes;
        const char *const values = method_cache_values(cache, layer, kv_head) + first * f->value_bytes;
        lay_out(s, f, p.n_means);
        dp_kmeans_carve(&p, &scratch);
        load(s, cache, keys, &p);
        done = dp_kmeans_run(&p);
        if (done)
            fill(s, cache, &p, keys, values);
    }
    free(scratch.base);
    if (!done)
        cluster_segment_free(s);
    return done;
}
