/* Creating, forking and freeing sequences, reading rows back, memory figures. */
#include "kv/sequence.h"

#include <math.h>
#include <string.h>

#include "kv/tail.h"
#include "memory/pages.h"
#include "runtime/structs.h"

void dp_sequence_config_init(dp_sequence_config *config)
{
    memset(config, 0, sizeof *config);
    config->struct_size = sizeof *config;
    config->n_layers = 1;
    config->n_query_heads = 1;
    config->n_kv_heads = 1;
    config->key_dim = 128;
    config->value_dim = 128;
    config->type = DP_BF16;
    config->sink = 4;
    config->window = 64;
    config->tokens_per_cluster = 24;
    config->segment_tokens = 8192;
    config->pending_tokens = 1024;
    config->iterations = 8;
    config->outlier_share = 0.125f;
    config->clustering = DP_CLUSTERING_L2;
    config->query_metric = 0.5f;
    config->query_origin = 1.0f;
    config->key_codes = 1;
    config->cluster_growth = 0.6f;
}

void dp_sequence_config_set_paper(dp_sequence_config *config)
{
    config->cluster_growth = 0;
    config->outlier_share = 0;
    config->clustering = DP_CLUSTERING_SPHERICAL;
    config->query_metric = 0;
    config->query_origin = 0;
    config->key_codes = 0;
}

static dp_status check_config(dp_runtime *rt, const dp_sequence_config *c)
{
    const struct {
        const char *name;
        uint32_t value, low, high;
    } ranges[] = {
        {"n_layers", c->n_layers, 1, 4096},
        {"n_query_heads", c->n_query_heads, 1, 1024},
        {"n_kv_heads", c->n_kv_heads, 1, 1024},
        {"key_dim", c->key_dim, 8, 512},
        {"value_dim", c->value_dim, 8, 512},
        {"type", (uint32_t)c->type, 0, DP_TYPE_COUNT - 1},
        {"sink", c->sink, 0, 4096},
        {"window", c->window, 0, 4096},
        {"tokens_per_cluster", c->tokens_per_cluster, 4, 256},
        {"segment_tokens", c->segment_tokens, 64, DP_MAX_SEGMENT_TOKENS},
        {"pending_tokens", c->pending_tokens, 64, 65536},
        {"iterations", c->iterations, 1, 64},
        {"clustering", (uint32_t)c->clustering, 0, DP_CLUSTERING_SPHERICAL},
        {"borrowed", (uint32_t)c->borrowed, 0, 1},
        {"key_codes", c->key_codes, 0, 1},
    };
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++)
        if (ranges[i].value < ranges[i].low || ranges[i].value > ranges[i].high)
            return dp_fail(rt, DP_ERR_INVALID, "dp_sequence_create: %s is %u, must be in [%u, %u]", ranges[i].name,
                           ranges[i].value, ranges[i].low, ranges[i].high);
    if (c->key_dim % 8 || c->value_dim % 8)
        return dp_fail(rt, DP_ERR_INVALID, "dp_sequence_create: key_dim %u and value_dim %u must be multiples of 8",
                       c->key_dim, c->value_dim);
    if (c->n_query_heads % c->n_kv_heads)
        return dp_fail(rt, DP_ERR_INVALID, "dp_sequence_create: n_query_heads %u is no multiple of n_kv_heads %u",
                       c->n_query_heads, c->n_kv_heads);
    if (!isfinite(c->scale) || c->scale < 0)
        return dp_fail(rt, DP_ERR_INVALID, "dp_sequence_create: scale is %g, must be positive, or 0 for the default",
                       (double)c->scale);
    if (!isfinite(c->softcap) || c->softcap < 0)
        return dp_fail(rt, DP_ERR_INVALID, "dp_sequence_create: softcap is %g, must be positive, or 0 for none",
                       (double)c->softcap);
    if (!(c->outlier_share >= 0 && c->outlier_share <= 0.5f))
        return dp_fail(rt, DP_ERR_INVALID, "dp_sequence_create: outlier_share is %g, must be in [0, 0.5]",
                       (double)c->outlier_share);
    if (!(c->cluster_growth >= 0 && c->cluster_growth <= 1))
        return dp_fail(rt, DP_ERR_INVALID, "dp_sequence_create: cluster_growth is %g, must be in [0, 1]",
                       (double)c->cluster_growth);
    if (!(c->query_metric >= 0 && c->query_metric <= 0.99f) || !(c->query_origin >= 0 && c->query_origin <= 1))
        return dp_fail(rt, DP_ERR_INVALID,
                       "dp_sequence_create: query_metric is %g, must be in [0, 0.99]; query_origin is %g, in [0, 1]",
                       (double)c->query_metric, (double)c->query_origin);
    return DP_OK;
}

int dp_sequence_node(const dp_sequence *sequence, int arena)
{
    switch (sequence->runtime->config.numa) {
    case DP_NUMA_LOCAL: return arena;
    case DP_NUMA_INTERLEAVE: return DP_NODE_INTERLEAVED;
    case DP_NUMA_OFF: break;
    }
    return DP_NODE_ANY;
}

uint32_t dp_sequence_first_limit(const dp_sequence *sequence, uint32_t layer, uint32_t kv_head)
{
    const dp_sequence_config *const c = &sequence->config;
    const uint64_t pairs = (c->n_kv_heads + (uint64_t)1) / 2, turns = c->n_layers * pairs;
    const uint64_t turn = layer * pairs + kv_head / 2;
    const uint64_t spread = c->pending_tokens - c->pending_tokens / 4;
    return c->pending_tokens / 4 + (uint32_t)(spread * (turn + 1) / turns);
}

size_t dp_unclustered(const dp_sequence *sequence, const dp_layer *layer)
{
    size_t fewest = SIZE_MAX;
    for (uint32_t h = 0; h < sequence->config.n_kv_heads; h++) {
        const dp_head *const head = &layer->heads[h];
        const size_t n = head->tail.n + (head->n_segments ? 0 : head->sink.n);
        if (n < fewest) fewest = n;
    }
    return fewest;
}

bool dp_has_clusters(const dp_sequence *sequence, const dp_layer *layer)
{
    for (uint32_t h = 0; h < sequence->config.n_kv_heads; h++)
        if (layer->heads[h].n_panels) return true;
    return false;
}

void dp_head_release(const dp_sequence *sequence, dp_head *head, dp_segment *segment)
{
    if (dp_segment_stale(segment))
        head->n_stale--;
    else
        head->clustered -= segment->n_tokens;
    head->n_panels -= segment->n_panels;
    dp_segment_free(segment, sequence->arenas[head->arena]);
}

/* An empty sequence, with the arenas of another one or its own; NULL where there is no memory. */
static dp_sequence *sequence_new(dp_runtime *rt, const dp_sequence_config *c, const dp_sequence *family)
{
    dp_sequence *const s = dp_heap_resize(rt, NULL, 0, sizeof *s);
    if (!s) return NULL;
    s->runtime = rt;
    s->config = *c;
    s->group = c->n_query_heads / c->n_kv_heads;
    s->scale = c->scale > 0 ? c->scale : 1.0f / sqrtf((float)c->key_dim);
    s->format = (dp_row_format){.type = c->type,
                                .key_dim = c->key_dim,
                                .value_dim = c->value_dim,
                                .has_codes = c->key_codes != 0,
                                .key_bytes = dp_row_bytes(c->type, c->key_dim),
                                .value_bytes = dp_row_bytes(c->type, c->value_dim),
                                .borrowed = c->borrowed != 0};
    s->n_arenas = rt->config.numa == DP_NUMA_LOCAL ? rt->topology.n_nodes : 1;
    const size_t n_heads = (size_t)c->n_layers * c->n_kv_heads;
    bool ok = (s->layers = dp_heap_resize(rt, NULL, 0, c->n_layers * sizeof *s->layers)) &&
              (s->heads = dp_heap_resize(rt, NULL, 0, n_heads * sizeof *s->heads)) &&
              (s->arenas = dp_heap_resize(rt, NULL, 0, (size_t)s->n_arenas * sizeof *s->arenas));
    for (int i = 0; ok && i < s->n_arenas; i++) {
        s->arenas[i] = family ? dp_arena_join(family->arenas[i]) : dp_arena_create(rt, dp_sequence_node(s, i));
        ok = s->arenas[i] != NULL;
    }
    if (!ok) {
        dp_sequence_free(s);
        return NULL;
    }
    for (uint32_t l = 0; l < c->n_layers; l++) {
        s->layers[l].heads = s->heads + (size_t)l * c->n_kv_heads;
        for (uint32_t h = 0; h < c->n_kv_heads; h++) {
            s->layers[l].heads[h].arena = (int)((uint64_t)h * (uint64_t)s->n_arenas / c->n_kv_heads);
            s->layers[l].heads[h].pending_limit = dp_sequence_first_limit(s, l, h);
        }
    }
    return s;
}

dp_status dp_sequence_create(dp_runtime *rt, const dp_sequence_config *config, dp_sequence **sequence)
{
    if (!rt) return dp_fail(NULL, DP_ERR_INVALID, "dp_sequence_create: runtime is NULL");
    if (!sequence) return dp_fail(rt, DP_ERR_INVALID, "dp_sequence_create: sequence is NULL");
    *sequence = NULL;
    dp_sequence_config c;
    dp_sequence_config_init(&c);
    if (!config || !DP_STRUCT_IN(&c, config))
        return dp_fail(
            rt, DP_ERR_INVALID,
            "dp_sequence_create: config is NULL or its struct_size is wrong; call dp_sequence_config_init first");
    const dp_status status = check_config(rt, &c);
    if (status) return status;

    *sequence = sequence_new(rt, &c, NULL);
    return *sequence ? DP_OK
                     : dp_no_memory(rt, "dp_sequence_create: no memory for %u layers of %u KV heads", c.n_layers,
                                    c.n_kv_heads);
}

void dp_sequence_free(dp_sequence *s)
{
    if (!s) return;
    dp_runtime *const rt = s->runtime;
    const size_t n_heads = (size_t)s->config.n_layers * s->config.n_kv_heads;
    for (size_t i = 0; s->heads && i < n_heads; i++) {
        dp_head *const head = &s->heads[i];
        dp_rows_free(&head->sink, rt);
        dp_rows_free(&head->tail, rt);
        dp_queries_free(&head->queries, rt, s->format.key_dim);
        if (head->n_segments && dp_arena_has_others(s->arenas[head->arena])) /* otherwise all goes with the arena */
            while (head->n_segments) dp_segment_free(&head->segments[--head->n_segments], s->arenas[head->arena]);
        dp_heap_resize(rt, head->segments, head->segments_capacity * sizeof *head->segments, 0);
    }
    for (int i = 0; s->arenas && i < s->n_arenas; i++) dp_arena_leave(s->arenas[i]);
    if (s->arenas) dp_heap_resize(rt, s->arenas, (size_t)s->n_arenas * sizeof *s->arenas, 0);
    if (s->heads) dp_heap_resize(rt, s->heads, n_heads * sizeof *s->heads, 0);
    if (s->layers) dp_heap_resize(rt, s->layers, s->config.n_layers * sizeof *s->layers, 0);
    dp_heap_resize(rt, s, sizeof *s, 0);
}

/* Gives an empty head what another one has: the same segments, copies of the rest. */
static bool fork_head(dp_sequence *s, dp_head *head, const dp_head *from)
{
    const dp_row_format *const f = &s->format;
    if (from->sink.n && !dp_rows_resize(&head->sink, s->runtime, f, s->config.sink, dp_sequence_node(s, head->arena)))
        return false;
    if (from->tail.n && !dp_tail_reserve(s, head, from->tail.n)) return false;
    if (!dp_queries_copy(&head->queries, &from->queries, s->runtime, f->key_dim)) return false;
    if (from->n_segments) {
        head->segments = dp_heap_resize(s->runtime, NULL, 0, from->n_segments * sizeof *head->segments);
        if (!head->segments) return false;
        head->segments_capacity = from->n_segments;
    }
    dp_rows_copy(&head->sink, f, &from->sink);
    dp_rows_copy(&head->tail, f, &from->tail);
    for (; head->n_segments < from->n_segments; head->n_segments++)
        head->segments[head->n_segments] = dp_segment_share(&from->segments[head->n_segments]);
    head->n_stale = from->n_stale;
    head->n_panels = from->n_panels;
    head->clustered = from->clustered;
    head->pending_limit = from->pending_limit;
    head->view = from->view;
    return true;
}

dp_status dp_sequence_fork(const dp_sequence *s, dp_sequence **copy)
{
    if (copy) *copy = NULL;
    if (!s) return dp_fail(NULL, DP_ERR_INVALID, "dp_sequence_fork: sequence is NULL");
    if (!copy) return dp_fail(s->runtime, DP_ERR_INVALID, "dp_sequence_fork: copy is NULL");
    dp_sequence *const fork = sequence_new(s->runtime, &s->config, s);
    bool ok = fork != NULL;
    for (uint32_t l = 0; ok && l < s->config.n_layers; l++) {
        fork->layers[l].n_tokens = s->layers[l].n_tokens;
        fork->layers[l].dense = s->layers[l].dense;
        for (uint32_t h = 0; ok && h < s->config.n_kv_heads; h++)
            ok = fork_head(fork, &fork->layers[l].heads[h], &s->layers[l].heads[h]);
    }
    if (!ok) {
        dp_sequence_free(fork);
        return dp_no_memory(s->runtime, "dp_sequence_fork: no memory for the copy");
    }
    *copy = fork;
    return DP_OK;
}

dp_status dp_sequence_get_config(const dp_sequence *s, dp_sequence_config *config)
{
    if (!s) return dp_fail(NULL, DP_ERR_INVALID, "dp_sequence_get_config: sequence is NULL");
    if (!DP_STRUCT_OUT(config, &s->config))
        return dp_fail(
            s->runtime, DP_ERR_INVALID,
            "dp_sequence_get_config: config is NULL or its struct_size is wrong; call dp_sequence_config_init first");
    return DP_OK;
}

uint64_t dp_sequence_tokens(const dp_sequence *sequence, uint32_t layer)
{
    return sequence && layer < sequence->config.n_layers ? sequence->layers[layer].n_tokens : 0;
}

dp_status dp_sequence_set_dense(dp_sequence *s, uint32_t layer, int dense)
{
    if (!s) return dp_fail(NULL, DP_ERR_INVALID, "dp_sequence_set_dense: sequence is NULL");
    if (layer >= s->config.n_layers)
        return dp_fail(s->runtime, DP_ERR_INVALID, "dp_sequence_set_dense: layer %u of %u", layer, s->config.n_layers);
    s->layers[layer].dense = dense != 0;
    return DP_OK;
}

/* Converts one token's row; a NULL destination is passed over. */
static void read_row(const dp_sequence *s, const char *key, const char *value, size_t at, float *k, float *v)
{
    const dp_row_format *const f = &s->format;
    if (k) s->runtime->kernels.to_f32[f->type](k + at * f->key_dim, key, f->key_dim);
    if (v) s->runtime->kernels.to_f32[f->type](v + at * f->value_dim, value, f->value_dim);
}

static void read_rows(const dp_sequence *s, const dp_rows *rows, uint64_t rows_first, uint64_t first, size_t n,
                      float *k, float *v)
{
    for (size_t i = 0; i < rows->n; i++) {
        const uint64_t token = rows_first + i;
        if (token < first || token >= first + n) continue;
        read_row(s, rows->k + i * s->format.key_bytes, rows->v + i * s->format.value_bytes, token - first, k, v);
    }
}

dp_status dp_sequence_read(const dp_sequence *s, uint32_t layer, uint32_t kv_head, uint64_t first, size_t n, float *k,
                           float *v)
{
    if (!s) return dp_fail(NULL, DP_ERR_INVALID, "dp_sequence_read: sequence is NULL");
    if (layer >= s->config.n_layers || kv_head >= s->config.n_kv_heads)
        return dp_fail(s->runtime, DP_ERR_INVALID, "dp_sequence_read: layer %u of %u, KV head %u of %u", layer,
                       s->config.n_layers, kv_head, s->config.n_kv_heads);
    const uint64_t tokens = s->layers[layer].n_tokens;
    if (first > tokens || n > tokens - first)
        return dp_fail(s->runtime, DP_ERR_INVALID, "dp_sequence_read: tokens %llu to %llu of %llu",
                       (unsigned long long)first, (unsigned long long)(first + n), (unsigned long long)tokens);
    const dp_head *const head = &s->layers[layer].heads[kv_head];
    const dp_row_format *const f = &s->format;
    for (size_t i = 0; i < n && f->borrowed; i++) {
        const void *key, *value;
        dp_view_row(&head->view, (uint32_t)(first + i), &key, &value);
        read_row(s, key, value, i, k, v);
    }
    if (f->borrowed) return DP_OK;
    read_rows(s, &head->sink, 0, first, n, k, v);
    for (uint32_t i = 0; i < head->n_segments; i++) {
        const dp_segment *const seg = &head->segments[i];
        for (uint32_t c = 0; c < seg->n_clusters; c++)
            for (uint32_t j = 0; j < dp_segment_size(seg, c); j++) {
                const uint64_t token = seg->first_token + seg->token[seg->offset[c] + j];
                if (token < first || token >= first + n) continue;
                read_row(s, dp_segment_keys(seg, f, c) + j * f->key_bytes,
                         dp_segment_values(seg, f, c) + j * f->value_bytes, token - first, k, v);
            }
    }
    read_rows(s, &head->tail, tokens - head->tail.n, first, n, k, v);
    return DP_OK;
}

void dp_memory_init(dp_memory *memory)
{
    memset(memory, 0, sizeof *memory);
    memory->struct_size = sizeof *memory;
}

dp_status dp_sequence_memory(const dp_sequence *s, dp_memory *memory)
{
    if (!s) return dp_fail(NULL, DP_ERR_INVALID, "dp_sequence_memory: sequence is NULL");
    dp_memory full;
    dp_memory_init(&full);
    const dp_row_format *const f = &s->format;
    const size_t row = f->key_bytes + f->value_bytes;
    full.reserved_bytes = sizeof *s + s->config.n_layers * sizeof *s->layers + (size_t)s->n_arenas * sizeof *s->arenas;
    for (uint32_t l = 0; l < s->config.n_layers; l++) {
        full.plain_bytes += s->layers[l].n_tokens * s->config.n_kv_heads * row;
        for (uint32_t h = 0; h < s->config.n_kv_heads; h++) {
            const dp_head *const head = &s->layers[l].heads[h];
            if (!f->borrowed) full.row_bytes += (head->sink.n + head->clustered + head->tail.n) * row;
            full.reserved_bytes += head->sink.bytes + head->tail.bytes + dp_queries_bytes(&head->queries, f->key_dim) +
                                   sizeof *head + head->segments_capacity * sizeof *head->segments;
            full.clustered_tokens += head->clustered;
            for (uint32_t i = 0; i < head->n_segments; i++) {
                const dp_segment *const seg = &head->segments[i];
                if (dp_segment_stale(seg)) continue;
                full.clusters += seg->n_clusters;
                full.index_bytes += dp_segment_index_bytes(f, seg->n_tokens, seg->n_clusters);
                full.reserved_bytes += dp_segment_bytes(seg);
                if (atomic_load(seg->holders) > 1) full.shared_bytes += dp_segment_bytes(seg);
            }
        }
    }
    for (int i = 0; i < s->n_arenas; i++) {
        const size_t slack = dp_arena_slack(s->arenas[i]);
        full.reserved_bytes += slack;
        if (dp_arena_has_others(s->arenas[i])) full.shared_bytes += slack;
    }
    if (!DP_STRUCT_OUT(memory, &full))
        return dp_fail(s->runtime, DP_ERR_INVALID,
                       "dp_sequence_memory: memory is NULL or its struct_size is wrong; call dp_memory_init first");
    return DP_OK;
}
