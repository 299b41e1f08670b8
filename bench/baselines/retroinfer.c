/* retroinfer.c: RetroInfer's fixed budget (arXiv 2505.02922): per KV head a fixed share of the clusters is read token by
 * token, the next share contributes by centroid and mean value, the rest is dropped. One choice per KV head: clusters
 * are ranked by the sum, over the group's query heads, of the softmax over centroids without the size term. Sink, window
 * and decoded tokens that wait to be clustered are exact.
 * Bytes: all centroids, sizes and segment means, the mean values of estimated clusters, the rows that are read. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clusters.h"
#include "gather.h"
#include "method.h"
#include "runtime/runtime.h"
#include "select.h"
#include "table.h"
#include "tasks.h"

typedef struct retroinfer_settings {
    float exact, estimated; /* shares of the clusters */
    uint32_t tokens_per_cluster, segment_tokens, pending_tokens, iterations, sink, window;
} retroinfer_settings;

#define FIELD(m, index) METHOD_FIELD(retroinfer_settings, #m, m, index)
static const method_field fields[] = {
    FIELD(exact, false),         FIELD(estimated, false),     FIELD(tokens_per_cluster, true),
    FIELD(segment_tokens, true), FIELD(pending_tokens, true), FIELD(iterations, true),
    FIELD(sink, true),           FIELD(window, true),
};

/* A layer's KV head: tokens [sink, clustered) are in segments. */
typedef struct retroinfer_head {
    cluster_segment *segments;
    size_t n_segments, n_clusters;
    size_t n_prompt_segments; /* those of create */
    uint64_t clustered;
} retroinfer_head;

typedef struct retroinfer_state {
    method_cache *cache;
    retroinfer_settings settings;
    retroinfer_head *heads; /* [n_layers][n_kv_heads] */
    gather *gather;
    /* Of the present step, per KV head. */
    uint32_t layer;
    const float *q;
    size_t capacity;    /* clusters */
    float *logits;      /* [n_query_heads][capacity] */
    float *score;       /* [n_kv_heads][capacity] summed softmaxes */
    float *work;        /* [n_kv_heads][capacity] */
    uint8_t *use;       /* [n_kv_heads][capacity] */
    uint32_t *estimated; /* [n_kv_heads][capacity] numbers within their segments */
} retroinfer_state;

enum { DROPPED, ESTIMATED, EXACT };

static void defaults(void *settings)
{
    *(retroinfer_settings *)settings = (retroinfer_settings){.exact = 0.018f,
                                                             .estimated = 0.232f,
                                                             .tokens_per_cluster = 16,
                                                             .segment_tokens = 8192,
                                                             .pending_tokens = 1024,
                                                             .iterations = 8,
                                                             .sink = 4,
                                                             .window = 64};
}

static const char *check(const void *settings, const method_cache *cache)
{
    const retroinfer_settings *const s = settings;
    (void)cache;
    if (!(s->exact >= 0 && s->estimated >= 0 && s->exact + s->estimated <= 1.000001f))
        return "exact and estimated must be shares of one whole";
    if (s->tokens_per_cluster < 1 || s->segment_tokens < s->tokens_per_cluster || s->pending_tokens < 1 || !s->iterations)
        return "tokens_per_cluster, segment_tokens, pending_tokens and iterations must be positive";
    return NULL;
}

static double target(const void *settings)
{
    (void)settings;
    return 0;
}

static retroinfer_head *head_of(const retroinfer_state *s, uint32_t layer, size_t kv_head)
{
    return &s->heads[(size_t)layer * s->cache->n_kv_heads + kv_head];
}

static void drop_segments(retroinfer_state *s, retroinfer_head *head, size_t left)
{
    while (head->n_segments > left) {
        cluster_segment *const last = &head->segments[--head->n_segments];
        head->n_clusters -= last->n_clusters;
        cluster_segment_free(last);
    }
    const cluster_segment *const last = left ? &head->segments[left - 1] : NULL;
    head->clustered = last ? last->first_token + last->n_tokens : s->settings.sink;
}

static void state_free(void *state)
{
    retroinfer_state *const s = state;
    if (!s)
        return;
    for (size_t i = 0; s->heads && i < (size_t)s->cache->n_layers * s->cache->n_kv_heads; i++) {
        drop_segments(s, &s->heads[i], 0);
        free(s->heads[i].segments);
    }
    free(s->heads);
    gather_free(s->gather);
    free(s->logits);
    free(s->score);
    free(s->work);
    free(s->use);
    free(s->estimated);
    free(s);
}

/* ---- The index --------------------------------------------------------------------------------------------------- */

/* Clusters that are due, in segments. */
typedef struct build {
    retroinfer_state *state;
    uint32_t first_layer;
    size_t at_least; /* tokens that must wait */
    atomic_bool failed;
} build;

static void build_head(void *argument, size_t task, int thread)
{
    build *const b = argument;
    retroinfer_state *const s = b->state;
    const retroinfer_settings *const o = &s->settings;
    const uint32_t layer = b->first_layer + (uint32_t)(task / s->cache->n_kv_heads);
    const uint32_t kv_head = (uint32_t)(task % s->cache->n_kv_heads);
    retroinfer_head *const head = head_of(s, layer, kv_head);
    const uint64_t n = s->cache->n_tokens[layer], end = n > o->window ? n - o->window : 0;
    (void)thread;
    if (end < head->clustered + b->at_least)
        return;
    while (head->clustered < end) {
        const size_t left = end - head->clustered, some = left < o->segment_tokens ? left : o->segment_tokens;
        cluster_segment *const segments = realloc(head->segments, (head->n_segments + 1) * sizeof(*segments));
        if (segments)
            head->segments = segments;
        if (!segments || !cluster_segment_create(&segments[head->n_segments], s->cache, layer, kv_head, head->clustered,
                                                 some, o->tokens_per_cluster, o->iterations)) {
            b->failed = true;
            return;
        }
        head->n_clusters += segments[head->n_segments++].n_clusters;
        head->clustered += some;
    }
}

static bool resize(void *pointer, size_t bytes)
{
    void *memory;
    memcpy(&memory, pointer, sizeof(memory));
    free(memory);
    memory = malloc(bytes);
    memcpy(pointer, &memory, sizeof(memory));
    return memory != NULL;
}

/* Room for the steps over what is clustered now. */
static bool reserve(retroinfer_state *s)
{
    size_t most = 0;
    for (size_t i = 0; i < (size_t)s->cache->n_layers * s->cache->n_kv_heads; i++)
        most = s->heads[i].n_clusters > most ? s->heads[i].n_clusters : most;
    if (most <= s->capacity && s->logits)
        return true;
    s->capacity = most + most / 8 + 64;
    const size_t heads = s->cache->n_kv_heads;
    return resize(&s->logits, s->cache->n_query_heads * s->capacity * sizeof(*s->logits)) &&
           resize(&s->score, heads * s->capacity * sizeof(*s->score)) &&
           resize(&s->work, heads * s->capacity * sizeof(*s->work)) && resize(&s->use, heads * s->capacity) &&
           resize(&s->estimated, heads * s->capacity * sizeof(*s->estimated));
}

static bool cluster_due(retroinfer_state *s, uint32_t first_layer, uint32_t n_layers, size_t at_least)
{
    build b = {.state = s, .first_layer = first_layer, .at_least = at_least};
    tasks_run(s->cache->runtime, (size_t)n_layers * s->cache->n_kv_heads, build_head, &b);
    return !b.failed && reserve(s);
}

static void *state_create(method_cache *cache, const void *settings, char *error, size_t error_size)
{
    retroinfer_state *const s = calloc(1, sizeof(*s));
    const size_t n_heads = (size_t)cache->n_layers * cache->n_kv_heads;
    if (s) {
        s->cache = cache;
        s->settings = *(const retroinfer_settings *)settings;
        s->heads = calloc(n_heads, sizeof(*s->heads));
        s->gather = gather_create(cache);
    }
    bool done = s && s->heads && s->gather;
    for (size_t i = 0; done && i < n_heads; i++)
        s->heads[i].clustered = s->settings.sink;
    done = done && cluster_due(s, 0, cache->n_layers, 1);
    if (!done) {
        snprintf(error, error_size, "no memory for the clusters");
        state_free(s);
        return NULL;
    }
    for (size_t i = 0; i < n_heads; i++)
        s->heads[i].n_prompt_segments = s->heads[i].n_segments;
    return s;
}

static bool restart(void *state, const void *settings)
{
    retroinfer_state *const s = state;
    s->settings = *(const retroinfer_settings *)settings;
    for (size_t i = 0; i < (size_t)s->cache->n_layers * s->cache->n_kv_heads; i++)
        drop_segments(s, &s->heads[i], s->heads[i].n_prompt_segments);
    return true;
}

static bool append(void *state, uint32_t layer, const float *k, const float *v)
{
    retroinfer_state *const s = state;
    (void)k, (void)v;
    return cluster_due(s, layer, 1, s->settings.pending_tokens);
}

/* ---- A step ------------------------------------------------------------------------------------------------------ */

/* Logits of a KV head's centroids, and the sum of their softmaxes. */
static void score(void *argument, size_t kv_head, int thread)
{
    retroinfer_state *const s = argument;
    const method_cache *const c = s->cache;
    const retroinfer_head *const head = head_of(s, s->layer, kv_head);
    const size_t dim = c->format.key_dim, n = head->n_clusters;
    const float *const q = s->q + kv_head * c->group * dim;
    float *const logits = s->logits + kv_head * c->group * s->capacity;
    float *const sum = s->score + kv_head * s->capacity, *const soft = s->work + kv_head * s->capacity;
    uint8_t *const use = s->use + kv_head * s->capacity;
    (void)thread;
    size_t position = 0;
    for (size_t i = 0; i < head->n_segments; position += head->segments[i++].n_clusters) {
        const cluster_segment *const segment = &head->segments[i];
        table_logits(c->kernels, &(row_table){DP_BF16, segment->centroids, dim, NULL, segment->n_clusters}, q, c->group,
                     c->scale, logits + position, s->capacity);
        for (size_t r = 0; r < c->group; r++) {
            const float base = c->scale * c->kernels->dot(q + r * dim, segment->mean_key, dim);
            for (size_t j = 0; j < segment->n_clusters; j++)
                logits[r * s->capacity + position + j] += base;
        }
    }
    memset(sum, 0, n * sizeof(*sum));
    for (size_t r = 0; r < c->group; r++) {
        memcpy(soft, logits + r * s->capacity, n * sizeof(*soft));
        const float total = c->kernels->exp_sum(soft, n, c->kernels->max(soft, n));
        c->kernels->axpy(sum, soft, 1 / total, n);
    }

    /* The first so many of a ranking, and then more of it. */
    const size_t n_exact = n ? select_count(s->settings.exact, n) : 0;
    const size_t n_used = n ? select_count(s->settings.exact + s->settings.estimated, n) : 0;
    memset(use, DROPPED, n);
    select_largest(sum, n, n_used, soft, use);
    for (size_t i = 0; i < n; i++) /* softmaxes are not negative */
        sum[i] = use[i] ? sum[i] : -1;
    uint8_t *const exact = (uint8_t *)(s->estimated + kv_head * s->capacity);
    memset(exact, 0, n);
    select_largest(sum, n, n_exact, soft, exact);
    for (size_t i = 0; i < n; i++)
        use[i] = exact[i] ? EXACT : use[i];

    position = 0; /* an estimated cluster weighs as many tokens as it has */
    for (size_t i = 0; i < head->n_segments; position += head->segments[i++].n_clusters)
        for (size_t j = 0; j < head->segments[i].n_clusters; j++)
            for (size_t r = 0; r < c->group && use[position + j] == ESTIMATED; r++)
                logits[r * s->capacity + position + j] +=
                    logf((float)(head->segments[i].offset[j + 1] - head->segments[i].offset[j]));
}

/* Puts a KV head's rows and mean values on the lists. */
static bool list(retroinfer_state *s, uint32_t kv_head, uint64_t *index_bytes)
{
    const method_cache *const c = s->cache;
    const dp_row_format *const f = &c->format;
    const retroinfer_head *const head = head_of(s, s->layer, kv_head);
    const uint64_t n = c->n_tokens[s->layer], sink = n < s->settings.sink ? n : s->settings.sink;
    const char *const k = method_cache_keys(c, s->layer, kv_head), *const v = method_cache_values(c, s->layer, kv_head);
    const uint64_t tail = head->clustered < n ? head->clustered : n;
    bool done = gather_run_of_rows(s->gather, kv_head, k, v, sink) &&
                gather_run_of_rows(s->gather, kv_head, k + tail * f->key_bytes, v + tail * f->value_bytes, n - tail);
    const uint8_t *use = s->use + kv_head * s->capacity;
    const float *logits = s->logits + (size_t)kv_head * c->group * s->capacity;
    uint32_t *estimated = s->estimated + kv_head * s->capacity;
    for (size_t i = 0; i < head->n_segments; i++) {
        const cluster_segment *const segment = &head->segments[i];
        size_t n_estimated = 0;
        for (uint32_t j = 0; j < segment->n_clusters; j++)
            if (use[j] == EXACT)
                done &= gather_run_of_rows(s->gather, kv_head, segment->k + segment->offset[j] * f->key_bytes,
                                           segment->v + segment->offset[j] * f->value_bytes,
                                           segment->offset[j + 1] - segment->offset[j]);
            else if (use[j] == ESTIMATED)
                estimated[n_estimated++] = j;
        done &= gather_estimates(s->gather, kv_head, segment->mean_values, estimated, n_estimated, logits, s->capacity);
        estimated += n_estimated;
        use += segment->n_clusters;
        logits += segment->n_clusters;
        *index_bytes += segment->n_clusters * (f->key_dim * sizeof(uint16_t) + sizeof(float)) + f->key_dim * sizeof(float);
    }
    return done;
}

static bool attend(void *state, uint32_t layer, const float *q, float *out, method_report *report)
{
    retroinfer_state *const s = state;
    bool done = true;
    s->layer = layer;
    s->q = q;
    tasks_run(s->cache->runtime, s->cache->n_kv_heads, score, s);
    gather_begin(s->gather);
    report->bytes_index = 0;
    for (uint32_t h = 0; h < s->cache->n_kv_heads; h++)
        done &= list(s, h, &report->bytes_index);
    report->bytes_index += gather_estimate_bytes(s->gather);
    report->bytes_rows = gather_row_bytes(s->gather);
    return done && gather_run(s->gather, q, out);
}

static void mark(const void *state, uint32_t layer, uint8_t *kept, size_t stride)
{
    const retroinfer_state *const s = state;
    for (uint32_t h = 0; h < s->cache->n_kv_heads; h++) {
        const retroinfer_head *const head = head_of(s, layer, h);
        const uint64_t n = s->cache->n_tokens[layer];
        uint8_t *const row = kept + h * stride;
        const uint8_t *use = s->use + h * s->capacity;
        memset(row, 1, n < s->settings.sink ? n : s->settings.sink);
        if (head->clustered < n)
            memset(row + head->clustered, 1, n - head->clustered);
        for (size_t i = 0; i < head->n_segments; use += head->segments[i++].n_clusters)
            for (uint32_t j = 0; j < head->segments[i].n_clusters; j++)
                for (uint32_t t = head->segments[i].offset[j]; use[j] && t < head->segments[i].offset[j + 1]; t++)
                    row[head->segments[i].token[t]] = 1;
    }
}

const method_type method_retroinfer = {
    .name = "retroinfer",
    .settings_bytes = sizeof(retroinfer_settings),
    .defaults = defaults,
    .fields = fields,
    .n_fields = sizeof(fields) / sizeof(fields[0]),
    .check = check,
    .target = target,
    .create = state_create,
    .restart = restart,
    .append = append,
    .attend = attend,
    .mark = mark,
    .free = state_free,
};
