/* library.c: the library's own attention as methods: dense, Double-P, and Double-P in the paper's form. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "attention/step.h"
#include "method.h"

typedef struct library_settings {
    dp_attention_params params;
    dp_sequence_config sequence;
    uint64_t dense_layers;
} library_settings;

/* The shape, type and scale of the sequence come from the cache. */
static const char *const refine_names[] = {"budget", "top-p", NULL};
static const char *const clustering_names[] = {"l2", "spherical", NULL};
enum { SAME_TYPE = DP_TYPE_COUNT }; /* as the cache's */
static const char *const type_names[] = {[DP_F32] = "f32",   [DP_F16] = "f16",       [DP_BF16] = "bf16",
                                         [DP_INT8] = "int8", [SAME_TYPE] = "cache", NULL};
#define FIELD(label, m, index) METHOD_FIELD(library_settings, label, m, index)
#define CHOICE(label, m, names, index) METHOD_FIELD_CHOICE(library_settings, label, m, names, index)
static const method_field fields[] = {
    CHOICE("refine", params.refine, refine_names, false),
    FIELD("p1", params.p1, false),
    FIELD("p2", params.p2, false),
    FIELD("epsilon", params.epsilon, false),
    FIELD("call_sink", params.sink, false),
    FIELD("call_window", params.window, false),
    FIELD("min_context", params.min_context, false),
    FIELD("min_clusters", params.min_clusters, false),
    FIELD("dispersion", params.dispersion, false),
    FIELD("exact_mass", params.exact_mass, false),
    FIELD("keep_dropped", params.keep_dropped, false),
    FIELD("slope", params.slope, false),
    FIELD("dense_layers", dense_layers, false),
    FIELD("sink", sequence.sink, true),
    FIELD("window", sequence.window, true),
    FIELD("tokens_per_cluster", sequence.tokens_per_cluster, true),
    FIELD("cluster_growth", sequence.cluster_growth, true),
    FIELD("segment_tokens", sequence.segment_tokens, true),
    FIELD("pending_tokens", sequence.pending_tokens, true),
    FIELD("iterations", sequence.iterations, true),
    FIELD("outlier_share", sequence.outlier_share, true),
    FIELD("query_metric", sequence.query_metric, true),
    FIELD("query_origin", sequence.query_origin, true),
    FIELD("key_codes", sequence.key_codes, true),
    CHOICE("clustering", sequence.clustering, clustering_names, true),
    FIELD("borrowed", sequence.borrowed, true), /* no copy: the cache's rows as they lie there */
    CHOICE("kv", sequence.type, type_names, true),
};
enum { N_FIELDS = sizeof(fields) / sizeof(fields[0]) };

typedef struct library_state {
    method_cache *cache;
    library_settings settings;
    dp_sequence *sequence;
    uint64_t *n_tokens; /* [n_layers] with the prompt, */
    dp_memory memory;   /* and what it takes */
    /* Of the latest attend, for `mark`. */
    bool sparse;
    uint8_t **flags;       /* [n_kv_heads][capacity] */
    size_t *flag_capacity; /* [n_kv_heads] */
    uint64_t observed_ns;
} library_state;

static void defaults_dense(void *settings)
{
    library_settings *const s = settings;
    memset(s, 0, sizeof(*s));
    dp_attention_params_init(&s->params);
    dp_sequence_config_init(&s->sequence);
    s->sequence.type = (dp_type)SAME_TYPE;
    s->params.method = DP_DENSE;
    /* As little of an index as there can be: it is not used. */
    s->sequence.segment_tokens = s->sequence.pending_tokens = 65536;
    s->sequence.tokens_per_cluster = 256;
    s->sequence.iterations = 1;
    s->sequence.outlier_share = 0;
}

static void defaults_double_p(void *settings)
{
    library_settings *const s = settings;
    memset(s, 0, sizeof(*s));
    dp_attention_params_init(&s->params);
    dp_sequence_config_init(&s->sequence);
    s->sequence.type = (dp_type)SAME_TYPE;
}

static void defaults_paper(void *settings)
{
    library_settings *const s = settings;
    memset(s, 0, sizeof(*s));
    dp_attention_params_init_paper(&s->params);
    dp_sequence_config_init(&s->sequence);
    s->sequence.type = (dp_type)SAME_TYPE;
    dp_sequence_config_set_paper(&s->sequence);
}

/* The library checks its settings itself, when they are used. */
static const char *check(const void *settings, const method_cache *cache)
{
    const dp_sequence_config *const c = &((const library_settings *)settings)->sequence;
    if (c->borrowed && c->type != (dp_type)SAME_TYPE && c->type != cache->format.type)
        return "borrowed rows are of the cache's type";
    return NULL;
}

static double target(const void *settings)
{
    const library_settings *const s = settings;
    return s->params.method == DP_DOUBLE_P ? (double)s->params.p1 : 0;
}

static void state_free(void *state)
{
    library_state *const s = state;
    if (!s)
        return;
    dp_sequence_free(s->sequence);
    free(s->n_tokens);
    for (uint32_t h = 0; s->flags && h < s->cache->n_kv_heads; h++)
        free(s->flags[h]);
    free(s->flags);
    free(s->flag_capacity);
    free(s);
}

static dp_status set_dense_layers(library_state *s)
{
    dp_status status = DP_OK;
    for (uint32_t l = 0; l < s->cache->n_layers && status == DP_OK; l++)
        status = dp_sequence_set_dense(s->sequence, l, l < 64 && (s->settings.dense_layers >> l & 1));
    return status;
}

/* Each layer's prompt in one append, then what is left of it is clustered, too. */
static dp_status fill(library_state *s)
{
    const method_cache *const c = s->cache;
    dp_status status = DP_OK;
    for (uint32_t l = 0; l < c->n_layers && status == DP_OK; l++) {
        const size_t n = c->n_tokens[l];
        if (n == 0)
            continue;
        const size_t width = c->n_query_heads * c->format.key_dim, most = 64; /* as many as a call looks at */
        for (size_t i = 0; i < c->n_queries[l] && status == DP_OK; i += most)
            status = dp_observe_queries(s->sequence, l, c->n_queries[l] - i < most ? c->n_queries[l] - i : most,
                                        c->queries + (l * (size_t)METHOD_QUERIES + i) * width);
        if (status != DP_OK)
            break;
        if (s->settings.sequence.borrowed) {
            status = dp_append(s->sequence, l, n, NULL, 0, NULL, 0);
        } else {
            float *const k = malloc(n * c->n_kv_heads * c->format.key_dim * sizeof(*k));
            float *const v = malloc(n * c->n_kv_heads * c->format.value_dim * sizeof(*v));
            status = DP_ERR_NO_MEMORY;
            if (k && v) {
                method_cache_read(c, l, 0, n, k, v);
                status = dp_append(s->sequence, l, n, k, 0, v, 0);
            }
            free(k);
            free(v);
        }
        if (status == DP_OK)
            status = dp_build_index(s->sequence, l);
    }
    return status;
}

static void *state_create(method_cache *cache, const void *settings, char *error, size_t error_size)
{
    library_state *const s = calloc(1, sizeof(*s));
    dp_status status = DP_ERR_NO_MEMORY;
    if (s) {
        s->cache = cache;
        s->settings = *(const library_settings *)settings;
        dp_sequence_config *const c = &s->settings.sequence;
        c->n_layers = cache->n_layers;
        c->n_query_heads = cache->n_query_heads;
        c->n_kv_heads = cache->n_kv_heads;
        c->key_dim = (uint32_t)cache->format.key_dim;
        c->value_dim = (uint32_t)cache->format.value_dim;
        if (c->type == (dp_type)SAME_TYPE) c->type = cache->format.type;
        c->scale = cache->scale;
        s->flags = calloc(cache->n_kv_heads, sizeof(*s->flags));
        s->flag_capacity = calloc(cache->n_kv_heads, sizeof(*s->flag_capacity));
        s->n_tokens = calloc(cache->n_layers, sizeof(*s->n_tokens));
        if (s->flags && s->flag_capacity && s->n_tokens)
            status = dp_sequence_create(cache->runtime, c, &s->sequence);
        if (status == DP_OK)
            status = set_dense_layers(s);
        for (uint32_t l = 0; l < cache->n_layers && status == DP_OK; l++)
            status = method_cache_lend(cache, s->sequence, c, l);
        if (status == DP_OK)
            status = fill(s);
        for (uint32_t l = 0; l < cache->n_layers && status == DP_OK; l++)
            s->n_tokens[l] = dp_sequence_tokens(s->sequence, l);
        dp_memory_init(&s->memory);
        if (status == DP_OK)
            status = dp_sequence_memory(s->sequence, &s->memory);
    }
    if (status == DP_OK)
        return s;
    char reason[256] = "";
    if (status != DP_ERR_NO_MEMORY)
        dp_last_error(cache->runtime, reason, sizeof(reason));
    snprintf(error, error_size, "%s", *reason ? reason : dp_strerror(status));
    state_free(s);
    return NULL;
}

/* Where tokens of the prompt were clustered meanwhile (of a layer that was dense), the index is another one. */
static bool restart(void *state, const void *settings)
{
    library_state *const s = state;
    const library_settings *const wanted = settings;
    for (uint32_t l = 0; l < s->cache->n_layers; l++)
        if (dp_sequence_truncate(s->sequence, l, s->n_tokens[l]) != DP_OK)
            return false;
    dp_memory now;
    dp_memory_init(&now);
    if (dp_sequence_memory(s->sequence, &now) != DP_OK || now.clustered_tokens != s->memory.clustered_tokens ||
        now.clusters != s->memory.clusters)
        return false;
    s->settings.params = wanted->params;
    s->settings.dense_layers = wanted->dense_layers;
    return set_dense_layers(s) == DP_OK;
}

static bool append(void *state, uint32_t layer, const float *k, const float *v)
{
    const library_state *const s = state;
    const bool borrowed = s->settings.sequence.borrowed;
    return dp_append(s->sequence, layer, 1, borrowed ? NULL : k, 0, borrowed ? NULL : v, 0) == DP_OK;
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Keeps the selection of a step. Where there is no memory for it, the step counts as if it had kept nothing. */
static void observe(void *user, const dp_step *step)
{
    library_state *const s = user;
    const uint64_t start = now_ns();
    s->sparse = step->sparse;
    for (uint32_t h = 0; step->sparse && h < s->cache->n_kv_heads; h++) {
        const size_t n = step->heads[h].n_positions;
        if (n > s->flag_capacity[h]) {
            free(s->flags[h]);
            s->flags[h] = malloc(n);
            s->flag_capacity[h] = s->flags[h] ? n : 0;
        }
        if (s->flags[h])
            memcpy(s->flags[h], step->heads[h].flags, n);
    }
    s->observed_ns = now_ns() - start;
}

static bool attend(void *state, uint32_t layer, const float *q, float *out, method_report *report)
{
    library_state *const s = state;
    dp_attention_stats stats;
    dp_attention_stats_init(&stats);
    if (dp_decode_observed(s->sequence, layer, 1, q, &s->settings.params, out, NULL, &stats, observe, s) != DP_OK)
        return false;
    report->bytes_index = stats.bytes_centroids + stats.bytes_means + stats.bytes_codes;
    report->bytes_rows = stats.bytes_rows;
    report->own_ns = s->observed_ns;
    return true;
}

static void mark(const void *state, uint32_t layer, uint8_t *kept, size_t stride)
{
    const library_state *const s = state;
    const dp_layer *const l = &s->sequence->layers[layer];
    for (uint32_t h = 0; h < s->cache->n_kv_heads; h++) {
        const dp_head *const head = &l->heads[h];
        uint8_t *const row = kept + h * stride;
        if (!s->sparse) {
            memset(row, 1, l->n_tokens);
            continue;
        }
        memset(row, 1, head->sink.n);
        memset(row + l->n_tokens - head->tail.n, 1, head->tail.n);
        const uint8_t *flags = s->flags[h];
        for (uint32_t i = 0; flags && i < head->n_segments; i++) {
            const dp_segment *const segment = &head->segments[i];
            for (uint32_t c = 0; c < segment->n_clusters; c++)
                for (uint32_t t = segment->offset[c]; (flags[c] & (SELECT_ESTIMATE | SELECT_REFINE)) && t < segment->offset[c + 1]; t++)
                    row[segment->first_token + segment->token[t]] = 1;
            flags += (size_t)segment->n_panels * DP_PANEL;
        }
    }
}

bool method_library_settings(const method_type *type, const void *settings, const dp_attention_params **params,
                             const dp_sequence_config **sequence)
{
    const library_settings *const s = settings;
    if (type->create != state_create)
        return false;
    *params = &s->params;
    *sequence = &s->sequence;
    return true;
}

bool method_is_reference(const method_type *type, const void *settings)
{
    return type == &method_dense && ((const library_settings *)settings)->sequence.type == (dp_type)SAME_TYPE;
}

#define LIBRARY_METHOD                                                                                          \
    .settings_bytes = sizeof(library_settings), .check = check, .target = target, .create = state_create,        \
    .restart = restart, .append = append, .attend = attend, .mark = mark, .free = state_free

const method_type method_dense = {
    .name = "dense", .defaults = defaults_dense, .fields = fields + N_FIELDS - 1, .n_fields = 1, LIBRARY_METHOD};
const method_type method_double_p = {
    .name = "double-p", .defaults = defaults_double_p, .fields = fields, .n_fields = N_FIELDS, LIBRARY_METHOD};
const method_type method_double_p_paper = {
    .name = "double-p-paper", .defaults = defaults_paper, .fields = fields, .n_fields = N_FIELDS, LIBRARY_METHOD};
