/* A node of attention: what can be computed, and from lists to the library. */
#include "llamacpp/attention.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "llamacpp/plugin.h"
#include "llamacpp/step.h"

enum {
    QUERIES = 16,  /* of one sequence in a step, at most: a draft to verify */
    OBSERVED = 64, /* of a prompt's queries in a step, at most: the index is shown a sample */
    SLEEP_CALLS = 1024,
    AWAKE_CALLS = 64
};

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
    free(scratch->steps);
    free(scratch->requests);
    free(scratch->stats);
    *scratch = (attention_scratch){0};
}

/* Room for n elements of so many bytes; what was there is lost. */
static void *room(void *memory, size_t *have, size_t n, size_t bytes)
{
    void **const m = memory;
    if (n <= *have) return *m;
    free(*m);
    *m = malloc(n * bytes);
    *have = *m ? n : 0;
    return *m;
}

static float *floats_of(attention_scratch *scratch, size_t n)
{
    return room(&scratch->floats, &scratch->n_floats, n, sizeof(float));
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
    return q->type == GGML_TYPE_F32 && q->nb[0] == sizeof(float) && in_cache(k) && in_cache(v) &&
           (k->type == GGML_TYPE_BF16) == (v->type == GGML_TYPE_BF16) /* a copy has one type */ && mask &&
           mask->type == GGML_TYPE_F16 && mask->nb[0] == sizeof(uint16_t) && mask->ne[2] == 1 &&
           (mask->ne[3] == 1 || mask->ne[3] == k->ne[3]) && dim_supported(k->ne[0]) && dim_supported(v->ne[0]) &&
           q->ne[2] % k->ne[2] == 0 && q->ne[2] <= 1024 && v->ne[2] == k->ne[2] && v->ne[1] == k->ne[1] &&
           v->ne[3] == k->ne[3] && q->ne[3] == k->ne[3] && cache_root(k)->ne[1] == cache_root(v)->ne[1] &&
           cache_root(k)->ne[1] <= INT32_MAX && scale > 0 && isfinite(scale) && max_bias == 0 && softcap >= 0 &&
           isfinite(softcap) && k->ne[1] >= plugin.settings.min_context;
}

/* ---- From lists to the library ---- */

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
    if (!qs) return;
    uint32_t n = 0;
    for (uint32_t i = 0, r = g->first; i < g->n; i++) {
        if ((i + 1) * wanted / g->n > n) load_query(step, r, qs + n++ * q_row);
        if (i + 1 < g->n) r = step_next_row(step, group, r);
    }
    if (dp_observe_queries(g->list->sequence, 0, n, qs) == DP_OK) atomic_fetch_add(&plugin.counters.queries, n);
}

/* Says once what nobody would look for where llama.cpp is just as slow as without the plugin. */
static void tell_refusal(cache_layer *layer)
{
    static atomic_flag told = ATOMIC_FLAG_INIT;
    char why[256];
    layer->patience = 0;
    atomic_fetch_add(&plugin.counters.refused, 1);
    if (atomic_flag_test_and_set(&told)) return;
    fprintf(stderr, "doublep: left to the CPU backend (said once): %s\n",
            dp_last_error(list_runtime(), why, sizeof why));
}

/* Brings a group's copy up to date; in a prompt its queries come first, as the index is built for what it has been asked. Where
 * there is no memory, copies that do not serve this step go first: of sequences that have ended, mostly. */
static bool copy_list(const stream_step *step, uint32_t group, bool decode, attention_scratch *scratch)
{
    cell_list *const list = step->groups[group].list;
    const list_shape *const shape = &step->layer->shape;
    while (!list_open(list, shape))
        if (!cache_drop_oldest(step->layer)) return false;
    if (!decode) observe_group(step, group, scratch);
    const uint32_t before = list->copied;
    bool ok;
    do ok = list_copy(list, shape, &step->rows, decode ? step->groups[group].n : 0);
    while (!ok && cache_drop_oldest(step->layer));
    atomic_fetch_add(&plugin.counters.tokens_copied, list->copied - before);
    return ok;
}

static bool copy_lists(const stream_step *step, bool decode, attention_scratch *scratch)
{
    for (uint32_t g = 0; g < step->n_groups; g++)
        if (!copy_list(step, g, decode, scratch)) {
            tell_refusal(step->layer);
            return false;
        }
    return true;
}

static void load_queries(const stream_step *step, uint32_t group, float *q)
{
    const query_group *const g = &step->groups[group];
    const size_t q_row = (size_t)step->layer->shape.query_heads * step->layer->shape.key_dim;
    for (uint32_t i = 0, r = g->first; i < g->n; i++) {
        load_query(step, r, q + i * q_row);
        if (i + 1 < g->n) r = step_next_row(step, group, r);
    }
}

static void store_outputs(const stream_step *step, uint32_t group, const float *out)
{
    const query_group *const g = &step->groups[group];
    const struct ggml_tensor *const node = step->node;
    const size_t out_row = (size_t)step->layer->shape.query_heads * step->layer->shape.value_dim;
    for (uint32_t i = 0, r = g->first; i < g->n; i++) {
        memcpy((char *)node->data + r * node->nb[2] + (size_t)step->index * node->nb[3], out + i * out_row,
               out_row * sizeof *out);
        if (i + 1 < g->n) r = step_next_row(step, group, r);
    }
}

static void count(const dp_attention_stats *stats)
{
    atomic_fetch_add(stats->sparse ? &plugin.counters.sparse : &plugin.counters.dense, 1);
    atomic_fetch_add(&plugin.counters.bytes, stats->bytes);
    atomic_fetch_add(&plugin.counters.bytes_dense, stats->bytes_dense);
}

/* All sequences of all streams in one batch. */
static bool decode_steps(const stream_step *steps, size_t n_steps, attention_scratch *scratch)
{
    const struct ggml_tensor *const sinks = steps->node->src[4];
    const list_shape *const shape = &steps->layer->shape;
    const size_t q_row = (size_t)shape->query_heads * shape->key_dim,
                 out_row = (size_t)shape->query_heads * shape->value_dim;
    size_t n = 0, n_rows = 0;
    for (size_t s = 0; s < n_steps; s++) n += steps[s].n_groups, n_rows += steps[s].n_rows;
    float *at = floats_of(scratch, n_rows * (q_row + out_row + shape->query_heads));
    dp_decode_request *const requests = room(&scratch->requests, &scratch->n_requests, n, sizeof *requests);
    dp_attention_stats *const stats = room(&scratch->stats, &scratch->n_stats, n, sizeof *stats);
    if (!at || !requests || !stats) return false;

    dp_attention_params params;
    dp_attention_params_init(&params);
    params.epsilon = plugin.settings.epsilon;
    params.min_context = plugin.settings.min_context;
    if (shape->dense) params.method = DP_DENSE;
    dp_decode_request *r = requests;
    for (size_t s = 0; s < n_steps; s++)
        for (uint32_t g = 0; g < steps[s].n_groups; g++, r++) {
            dp_decode_request_init(r);
            dp_attention_stats_init(&stats[r - requests]);
            load_queries(&steps[s], g, at);
            r->sequence = steps[s].groups[g].list->sequence;
            r->n_queries = steps[s].groups[g].n;
            r->params = &params;
            r->stats = &stats[r - requests];
            r->q = at, at += r->n_queries * q_row;
            r->out = at, at += r->n_queries * out_row;
            if (sinks) r->lse = at, at += r->n_queries * shape->query_heads;
        }
    dp_status status;
    do status = dp_decode_batch(list_runtime(), n, requests);
    while (status == DP_ERR_NO_MEMORY && cache_drop_oldest(steps->layer)); /* work memory counts, too */
    if (status) {
        tell_refusal(steps->layer);
        return false;
    }
    r = requests;
    for (size_t s = 0; s < n_steps; s++)
        for (uint32_t g = 0; g < steps[s].n_groups; g++, r++) {
            if (sinks)
                add_sinks(sinks->data, r->lse, (uint32_t)r->n_queries, shape->query_heads, shape->value_dim, r->out);
            store_outputs(&steps[s], g, r->out);
            count(r->stats);
        }
    return true;
}

/* The step is small, every row fits its list, and one of the lists at least is long. */
static bool is_decode(const stream_step *step)
{
    bool any_long = false;
    for (uint32_t g = 0; g < step->n_groups; g++) {
        if (step->groups[g].n > QUERIES || !step_causal(step, g)) return false;
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
        layer->patience = 2; /* one for reading anew what goes on */
        return false;
    }
    return true;
}

/* Brings the lists of the layer up to date. True where the node is a step of decoding that they can serve. */
static bool prepare(const struct ggml_tensor *node, cache_layer *layer, attention_scratch *scratch)
{
    const size_t n_streams = (size_t)node->src[1]->ne[3], n_rows = (size_t)node->src[0]->ne[1];
    uint32_t *const group_of = room(&scratch->group_of, &scratch->n_rows, n_streams * n_rows, sizeof *group_of);
    stream_step *const steps = room(&scratch->steps, &scratch->n_steps, n_streams, sizeof *steps);
    if (!group_of || !steps) return false;
    bool decode = true, prompt = false;
    for (size_t i = 0; i < n_streams; i++) {
        if (open_step(&steps[i], layer, node, (int64_t)i, group_of + i * n_rows) && step_settle(&steps[i])) continue;
        steps[i].n_groups = 0;
        decode = false;
    }
    for (size_t i = 0; i < n_streams; i++) { /* once it is known which lists serve */
        stream_step *const step = &steps[i];
        if (!step->n_groups) continue;
        const bool small = is_decode(step), copied = copy_lists(step, small, scratch);
        prompt |= copied && !small;
        decode &= copied && small;
    }
    if (prompt) atomic_fetch_add(&plugin.counters.prompts, 1);
    return decode;
}

bool attention_compute(const struct ggml_tensor *node, attention_scratch *scratch)
{
    const uint64_t start = now_ns();
    cache_layer *const layer = cache_find(node);
    if (!layer || !awake(layer)) return false;
    bool decode = prepare(node, layer, scratch);
    const uint64_t prepared = now_ns();
    atomic_fetch_add(decode ? &plugin.counters.growth_ns : &plugin.counters.prompt_ns, prepared - start);
    if (!decode) return false;
    decode = decode_steps(scratch->steps, (size_t)node->src[1]->ne[3], scratch);
    atomic_fetch_add(&plugin.counters.decode_ns, now_ns() - prepared);
    if (decode && layer->calls % AWAKE_CALLS == 0 && layer->patience < CACHE_PATIENCE) layer->patience++;
    return decode;
}
