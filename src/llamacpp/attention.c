/* A node of attention: from the rows of the mask to lists of cells, and from lists to the library. */
#include "llamacpp/attention.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "llamacpp/cache.h"
#include "llamacpp/plugin.h"

enum {
    QUERIES = 16,        /* of one sequence in a step, at most: a draft to verify */
    OBSERVED = 64,       /* of a prompt's queries in a step, at most: the index is shown a sample */
    GROUPS = 64,         /* sequences in a step, at most */
    SPARE_TOKENS = 256,  /* a list is cut back by so many tokens at most; beyond that another one is begun */
    REBUILD_TOKENS = 64, /* more than that read anew is a rebuild */
    SLEEP_CALLS = 1024,
    AWAKE_CALLS = 64
};

/* Queries of one sequence: rows of the node in order. */
typedef struct query_group {
    uint32_t n, first, last; /* rows */
    cell_list *list;
} query_group;

/* One stream of a node. */
typedef struct stream_step {
    cache_layer *layer;
    cache_stream *stream;
    const struct ggml_tensor *node;
    int64_t index; /* of the stream in the node */
    uint32_t n_rows, n_kv;
    const int64_t *cell; /* [n_rows] the cell of each row's token, NULL where that is not known */
    int64_t first_cell;  /* of the stream, in the numbers of `cell` */
    list_rows rows;
    uint32_t *group_of; /* [n_rows] */
    query_group groups[GROUPS];
    uint32_t n_groups;
} stream_step;

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void attention_scratch_free(attention_scratch *scratch)
{
    free(scratch->floats);
    free(scratch->group_of);
    *scratch = (attention_scratch){0};
}

static float *floats_of(attention_scratch *scratch, size_t n)
{
    if (n > scratch->n_floats) {
        float *const grown = realloc(scratch->floats, n * sizeof *grown);
        if (!grown) return NULL;
        scratch->floats = grown;
        scratch->n_floats = n;
    }
    return scratch->floats;
}

static uint32_t *rows_of(attention_scratch *scratch, size_t n)
{
    if (n > scratch->n_rows) {
        uint32_t *const grown = realloc(scratch->group_of, n * sizeof *grown);
        if (!grown) return NULL;
        scratch->group_of = grown;
        scratch->n_rows = n;
    }
    return scratch->group_of;
}

/* ---- What can be computed at all ---- */

static bool dim_supported(int64_t dim)
{
    return dim >= 8 && dim <= 512 && dim % 8 == 0;
}

/* A view of whole tokens of a cache tensor in the machine's memory. */
static bool in_cache(const struct ggml_tensor *view)
{
    const struct ggml_tensor *const root = cache_root(view);
    return root != view && root->op == GGML_OP_NONE && root->buffer && ggml_backend_buffer_is_host(root->buffer) &&
           ggml_get_type_traits(view->type)->to_float && view->type == root->type && view->nb[1] == root->nb[1] &&
           (view->ne[3] == 1 || view->nb[3] == root->nb[2]) && (view->ne[2] == 1 || view->nb[2] < view->nb[1]);
}

bool attention_supports(const struct ggml_tensor *node)
{
    const struct ggml_tensor *const q = node->src[0], *const k = node->src[1], *const v = node->src[2],
                                    *const mask = node->src[3];
    float scale, max_bias, softcap;
    memcpy(&scale, (const float *)node->op_params + 0, sizeof scale);
    memcpy(&max_bias, (const float *)node->op_params + 1, sizeof max_bias);
    memcpy(&softcap, (const float *)node->op_params + 2, sizeof softcap);
    return q->type == GGML_TYPE_F32 && q->nb[0] == sizeof(float) && in_cache(k) && in_cache(v) && mask &&
           mask->type == GGML_TYPE_F16 && mask->nb[0] == sizeof(uint16_t) && mask->ne[2] == 1 &&
           (mask->ne[3] == 1 || mask->ne[3] == k->ne[3]) && dim_supported(k->ne[0]) && dim_supported(v->ne[0]) &&
           q->ne[2] % k->ne[2] == 0 && q->ne[2] <= 1024 && v->ne[2] == k->ne[2] && v->ne[1] == k->ne[1] &&
           v->ne[3] == k->ne[3] && q->ne[3] == k->ne[3] && cache_root(k)->ne[1] == cache_root(v)->ne[1] &&
           cache_root(k)->ne[1] <= INT32_MAX && scale > 0 && isfinite(scale) && max_bias == 0 && softcap == 0 &&
           k->ne[1] >= plugin.settings.min_context;
}

/* ---- From rows to lists ---- */

static const uint16_t *mask_row(const stream_step *step, uint32_t row)
{
    const struct ggml_tensor *const mask = step->node->src[3];
    return (const uint16_t *)((const char *)mask->data + row * mask->nb[1] +
                              (mask->ne[3] == 1 ? 0 : (size_t)step->index * mask->nb[3]));
}

static uint32_t cell_of(const stream_step *step, uint32_t row)
{
    return (uint32_t)(step->cell[row] - step->first_cell);
}

/* Sorts the rows into groups: a row belongs to the sequence whose first new token it sees. */
static bool group_rows(stream_step *step)
{
    step->n_groups = 0;
    if (!step->cell) {
        step->groups[0] = (query_group){.n = 1};
        step->n_groups = 1;
        step->group_of[0] = 0;
        return step->n_rows == 1;
    }
    for (uint32_t r = 0; r < step->n_rows; r++) {
        const uint16_t *const mask = mask_row(step, r);
        const int64_t own = step->cell[r] - step->first_cell;
        if (own < 0 || own >= step->n_kv || mask[own] != MASK_SEEN) return false;
        uint32_t group = step->n_groups;
        for (uint32_t g = 0; g < step->n_groups; g++) {
            if (mask[cell_of(step, step->groups[g].first)] != MASK_SEEN) continue;
            if (group < step->n_groups) return false; /* a token of two sequences */
            group = g;
        }
        if (group == GROUPS) return false;
        if (group == step->n_groups) step->groups[step->n_groups++] = (query_group){.first = r};
        step->groups[group].n++;
        step->groups[group].last = r;
        step->group_of[r] = group;
    }
    return true;
}

/* The next row of the group after `row`. */
static uint32_t next_row(const stream_step *step, uint32_t group, uint32_t row)
{
    do row++;
    while (step->group_of[row] != group);
    return row;
}

/* Shows or hides the group's cells, from a row on, in a list's mask. */
static void mark_cells(const stream_step *step, uint32_t group, uint32_t row, cell_list *list, uint16_t value)
{
    if (!step->cell) return;
    for (;; row = next_row(step, group, row)) {
        list->mask[cell_of(step, row)] = value;
        if (row == step->groups[group].last) break;
    }
}

static bool any_in_list(const stream_step *step, uint32_t group, const cell_list *list)
{
    for (uint32_t r = step->groups[group].first; step->cell; r = next_row(step, group, r)) {
        if (list->mask[cell_of(step, r)] == MASK_SEEN) return true;
        if (r == step->groups[group].last) break;
    }
    return false;
}

static void push_cells(const stream_step *step, uint32_t group, cell_list *list)
{
    for (uint32_t r = step->groups[group].first; step->cell; r = next_row(step, group, r)) {
        list_push(list, cell_of(step, r));
        if (r == step->groups[group].last) break;
    }
}

/* The list with the group's new cells is what its last row sees, as while a sequence simply grows; they are added. */
static bool extends(const stream_step *step, uint32_t group, cell_list *list)
{
    const uint16_t *const mask = mask_row(step, step->groups[group].last);
    if (!step->cell || any_in_list(step, group, list)) return list_equals(list, mask, step->n_kv);
    mark_cells(step, group, step->groups[group].first, list, MASK_SEEN);
    const bool equal = list_equals(list, mask, step->n_kv);
    mark_cells(step, group, step->groups[group].first, list, MASK_HIDDEN);
    if (equal) push_cells(step, group, list);
    return equal;
}

/* Another group of this step has the list. */
static bool taken(const stream_step *step, const cell_list *list)
{
    return list->used == step->layer->calls;
}

/* The list that has most in common with what the mask shows, cut back to that where it loses little; else a new one
 * that shares what is common: the rest may belong to another sequence. */
static cell_list *adapt(const stream_step *step, const uint16_t *mask)
{
    cell_list *best = NULL;
    uint32_t common = 0;
    for (uint32_t l = 0; l < step->stream->n_lists; l++) {
        cell_list *const list = step->stream->list[l];
        const uint32_t n = list_common(list, mask, step->n_kv);
        if (n < common || (n == common && (n == 0 || list->n >= best->n))) continue;
        best = list;
        common = n;
    }
    if (best && !taken(step, best) && best->n - common <= SPARE_TOKENS) {
        list_truncate(best, common);
        return best;
    }
    cell_list *const fresh = cache_new_list(step->layer, step->stream, best);
    if (fresh && best) list_fork(fresh, best, common);
    return fresh;
}

/* Makes a list what the group's last row sees, whatever happened: new cells come in order of their numbers, the
 * group's own last. */
static cell_list *rebuild(stream_step *step, uint32_t group)
{
    const uint16_t *const mask = mask_row(step, step->groups[group].last);
    cell_list *const list = adapt(step, mask);
    if (!list) return NULL;
    if (any_in_list(step, group, list)) list_truncate(list, 0); /* written anew, so that they belong at the end */
    const uint32_t before = list->n;
    mark_cells(step, group, step->groups[group].first, list, MASK_SEEN);
    uint32_t n = 0;
    for (uint32_t c = 0; c < step->n_kv; c++)
        if (mask[c] == MASK_SEEN && list->mask[c] != MASK_SEEN) list_push(list, c), n++;
    mark_cells(step, group, step->groups[group].first, list, MASK_HIDDEN);
    push_cells(step, group, list);
    if (n > REBUILD_TOKENS) {
        atomic_fetch_add(&plugin.counters.rebuilds, before > 0);
        step->layer->patience--;
    }
    return list_equals(list, mask, step->n_kv) ? list : NULL;
}

static bool settle(stream_step *step)
{
    if (!group_rows(step)) return false;
    for (uint32_t g = 0; g < step->n_groups; g++) {
        cell_list *list = NULL;
        for (uint32_t l = 0; l < step->stream->n_lists && !list; l++)
            if (!taken(step, step->stream->list[l]) && extends(step, g, step->stream->list[l]))
                list = step->stream->list[l];
        if (!list) list = rebuild(step, g);
        if (!list) return false;
        list->used = step->layer->calls;
        step->groups[g].list = list;
    }
    return true;
}

/* Every row of the group sees the list up to its own token. */
static bool causal(const stream_step *step, uint32_t group)
{
    const query_group *const g = &step->groups[group];
    bool ok = true;
    for (uint32_t r = g->first; r != g->last && ok; r = next_row(step, group, r)) {
        mark_cells(step, group, next_row(step, group, r), g->list, MASK_HIDDEN);
        ok = list_equals(g->list, mask_row(step, r), step->n_kv);
        mark_cells(step, group, next_row(step, group, r), g->list, MASK_SEEN);
    }
    return ok;
}

/* ---- From lists to the library ---- */

static bool copy_lists(stream_step *step, bool decode, int n_threads)
{
    const uint64_t start = plugin.settings.stats ? now_ns() : 0;
    bool ok = true;
    for (uint32_t g = 0; g < step->n_groups && ok; g++) {
        cell_list *const list = step->groups[g].list;
        const uint32_t before = list->copied;
        ok = list_copy(list, &step->layer->shape, &step->rows, decode ? step->groups[g].n : 0, n_threads);
        if (ok && list->copied > before) atomic_fetch_add(&plugin.counters.tokens_copied, list->copied - before);
    }
    if (!ok) step->layer->patience = 0;
    if (plugin.settings.stats) atomic_fetch_add(&plugin.counters.copy_ns, now_ns() - start);
    return ok;
}

/* Softmax with one more logit that has no value: what gpt-oss calls an attention sink. */
static void add_sinks(const float *sinks, const float *lse, uint32_t n, uint32_t heads, uint32_t dim, float *out)
{
    for (uint32_t i = 0; i < n * heads; i++) {
        const float share = 1.0f / (1.0f + expf(sinks[i % heads] - lse[i]));
        for (uint32_t d = 0; d < dim; d++) out[(size_t)i * dim + d] *= share;
    }
}

static void load_query(const stream_step *step, uint32_t row, float *q)
{
    const struct ggml_tensor *const from = step->node->src[0];
    const list_shape *const shape = &step->layer->shape;
    for (uint32_t h = 0; h < shape->query_heads; h++)
        memcpy(q + h * shape->key_dim,
               (const char *)from->data + row * from->nb[1] + h * from->nb[2] + (size_t)step->index * from->nb[3],
               shape->key_dim * sizeof *q);
}

/* Shows the index what a prompt asks, evenly spread over the group's rows. Without memory it does without. */
static void observe_group(const stream_step *step, uint32_t group, attention_scratch *scratch)
{
    const list_shape *const shape = &step->layer->shape;
    const query_group *const g = &step->groups[group];
    const uint32_t wanted = g->n < OBSERVED ? g->n : OBSERVED;
    const size_t q_row = (size_t)shape->query_heads * shape->key_dim;
    float *const qs = shape->dense ? NULL : floats_of(scratch, wanted * q_row);
    if (!qs || !g->list->sequence) return;
    uint32_t n = 0;
    for (uint32_t i = 0, r = g->first; i < g->n; i++) {
        if ((i + 1) * wanted / g->n > n) load_query(step, r, qs + n++ * q_row);
        if (i + 1 < g->n) r = next_row(step, group, r);
    }
    if (dp_observe_queries(g->list->sequence, 0, n, qs) == DP_OK) atomic_fetch_add(&plugin.counters.queries, n);
}

static bool decode_group(const stream_step *step, uint32_t group, attention_scratch *scratch)
{
    const struct ggml_tensor *const node = step->node, *const sinks = node->src[4];
    const list_shape *const shape = &step->layer->shape;
    const query_group *const g = &step->groups[group];
    const size_t q_row = (size_t)shape->query_heads * shape->key_dim,
                 out_row = (size_t)shape->query_heads * shape->value_dim;
    float *const qs = floats_of(scratch, g->n * (q_row + out_row + shape->query_heads));
    if (!qs) return false;
    float *const out = qs + g->n * q_row, *const lse = out + g->n * out_row;
    uint32_t r = g->first;
    for (uint32_t i = 0; i < g->n; i++) {
        load_query(step, r, qs + i * q_row);
        if (i + 1 < g->n) r = next_row(step, group, r);
    }
    dp_attention_params params;
    dp_attention_params_init(&params);
    params.epsilon = plugin.settings.epsilon;
    params.min_context = plugin.settings.min_context;
    if (shape->dense) params.method = DP_DENSE;
    dp_attention_stats stats;
    dp_attention_stats_init(&stats);
    if (dp_decode(g->list->sequence, 0, g->n, qs, &params, out, sinks ? lse : NULL, &stats)) return false;
    if (sinks) add_sinks(sinks->data, lse, g->n, shape->query_heads, shape->value_dim, out);
    r = g->first;
    for (uint32_t i = 0; i < g->n; i++) {
        memcpy((char *)node->data + r * node->nb[2] + (size_t)step->index * node->nb[3], out + i * out_row,
               out_row * sizeof *out);
        if (i + 1 < g->n) r = next_row(step, group, r);
    }
    atomic_fetch_add(stats.sparse ? &plugin.counters.sparse : &plugin.counters.dense, 1);
    atomic_fetch_add(&plugin.counters.bytes, stats.bytes);
    atomic_fetch_add(&plugin.counters.bytes_dense, stats.bytes_dense);
    return true;
}

static bool decode_stream(const stream_step *step, attention_scratch *scratch)
{
    bool ok = true;
    const uint64_t start = plugin.settings.stats ? now_ns() : 0;
    for (uint32_t g = 0; g < step->n_groups && ok; g++) ok = decode_group(step, g, scratch);
    if (plugin.settings.stats) atomic_fetch_add(&plugin.counters.decode_ns, now_ns() - start);
    return ok;
}

/* The step is small, every row fits its list, and one of the lists at least is long. */
static bool is_decode(const stream_step *step)
{
    bool any_long = false;
    for (uint32_t g = 0; g < step->n_groups; g++) {
        if (step->groups[g].n > QUERIES || !causal(step, g)) return false;
        any_long |= step->groups[g].list->n >= plugin.settings.min_context;
    }
    return any_long;
}

static bool open_step(stream_step *step, cache_layer *layer, const struct ggml_tensor *node, int64_t index,
                      uint32_t *group_of)
{
    const struct ggml_tensor *const q = node->src[0], *const k = node->src[1], *const v = node->src[2];
    const size_t stream_bytes = layer->n_cells * k->nb[1];
    const char *const k_data = (const char *)k->data + (size_t)index * k->nb[3];
    const size_t stream = (size_t)(k_data - (const char *)layer->k_data) / stream_bytes;
    if (stream >= layer->n_streams) return false;
    const int64_t n_rows = q->ne[1];
    const bool known = layer->n_batch == n_rows * q->ne[3];
    *step = (stream_step){.layer = layer,
                          .stream = &layer->streams[stream],
                          .node = node,
                          .index = index,
                          .n_rows = (uint32_t)n_rows,
                          .n_kv = (uint32_t)k->ne[1],
                          .cell = known ? layer->batch + index * n_rows : NULL,
                          .first_cell = (int64_t)stream * layer->n_cells,
                          .rows = {.k = k_data,
                                   .v = (const char *)v->data + (size_t)index * v->nb[3],
                                   .k_row = k->nb[1],
                                   .k_head = k->nb[2],
                                   .v_row = v->nb[1],
                                   .v_head = v->nb[2]},
                          .group_of = group_of};
    return true;
}

/* Streams that keep having to be read anew (a sliding window, say) are left alone for a while. */
static bool awake(cache_layer *layer)
{
    layer->calls++;
    if (layer->calls < layer->asleep_until) return false;
    if (layer->patience <= 0) {
        cache_sleep(layer);
        layer->asleep_until = layer->calls + SLEEP_CALLS;
        layer->patience = 1;
        return false;
    }
    return true;
}

bool attention_compute(const struct ggml_tensor *node, attention_scratch *scratch, int n_threads)
{
    const int64_t n_streams = node->src[1]->ne[3], n_rows = node->src[0]->ne[1];
    cache_layer *const layer = cache_find(node);
    uint32_t *const group_of = rows_of(scratch, (size_t)n_rows);
    if (!layer || !group_of || !awake(layer)) return false;
    bool decode = true;
    stream_step step;
    for (int64_t i = 0; i < n_streams; i++) {
        if (!open_step(&step, layer, node, i, group_of) || !settle(&step)) {
            decode = false;
            continue;
        }
        const bool small = is_decode(&step);
        const bool copied = copy_lists(&step, small, n_threads);
        for (uint32_t g = 0; g < step.n_groups && copied && !small; g++) observe_group(&step, g, scratch);
        decode &= copied && small;
        decode = decode && decode_stream(&step, scratch);
    }
    if (decode && layer->calls % AWAKE_CALLS == 0 && layer->patience < CACHE_PATIENCE) layer->patience++;
    return decode;
}
