/* dp_prefill: dense causal attention of a chunk of a prompt.
 *
 * A task is a block of queries of one KV head: their G query heads are the rows of the matrix products, so that every
 * key is loaded once for all of them. It walks over all tokens in blocks of up to KEY_BLOCK, keeps a running maximum
 * and sum per row, and never holds more than rows x KEY_BLOCK logits, which stay in L2. Clustered tokens are read in
 * cluster order: attention does not care. */
#include <math.h>
#include <string.h>

#include "attention/step.h"

enum {
    KEY_BLOCK = 256,
    ROW_TARGET = 512, /* query rows per task: enough to hide the conversion of a key block behind its products */
};

typedef struct prefill {
    const dp_sequence *sequence;
    const dp_layer *layer;
    size_t n_queries, queries_per_task, n_blocks; /* blocks of queries per KV head */
    const float *q;
    float *out, *lse;
    dp_ticket ticket, workers;
    char *scratch; /* [workers that get a task][scratch_bytes] */
    size_t scratch_bytes;
} prefill;

/* A task's memory. */
typedef struct block {
    const prefill *job;
    const dp_head *head;
    size_t first_query, n_queries, rows;
    uint64_t first_token; /* of the first query */
    float *q;             /* [rows][key_dim], scaled */
    float *acc;           /* [rows][value_dim] */
    float *top, *sum;     /* [rows] running maximum and sum */
    float *logits;        /* [rows][KEY_BLOCK] */
    float *keys;          /* [KEY_BLOCK][key_dim] */
    float *keys_t;        /* [key_dim][KEY_BLOCK] */
    float *values;        /* [KEY_BLOCK][value_dim] */
    size_t n;             /* tokens in keys and values */
} block;

static block carve(const prefill *job, dp_scratch *scratch)
{
    const dp_row_format *const f = &job->sequence->format;
    const size_t rows = job->queries_per_task * job->sequence->group;
    return (block){.job = job,
                   .q = dp_scratch_take(scratch, rows * f->key_dim * sizeof(float)),
                   .acc = dp_scratch_take(scratch, rows * f->value_dim * sizeof(float)),
                   .top = dp_scratch_take(scratch, rows * sizeof(float)),
                   .sum = dp_scratch_take(scratch, rows * sizeof(float)),
                   .logits = dp_scratch_take(scratch, rows * KEY_BLOCK * sizeof(float)),
                   .keys = dp_scratch_take(scratch, KEY_BLOCK * f->key_dim * sizeof(float)),
                   .keys_t = dp_scratch_take(scratch, KEY_BLOCK * f->key_dim * sizeof(float)),
                   .values = dp_scratch_take(scratch, KEY_BLOCK * f->value_dim * sizeof(float))};
}

static void load_queries(block *b, size_t kv_head)
{
    const dp_sequence *const s = b->job->sequence;
    const size_t group = s->group, dim = s->format.key_dim;
    for (size_t i = 0; i < b->n_queries; i++)
        memcpy(b->q + i * group * dim,
               b->job->q + ((b->first_query + i) * s->config.n_query_heads + kv_head * group) * dim,
               group * dim * sizeof(float));
    s->runtime->kernels.scale(b->q, s->scale, b->rows * dim);
    for (size_t r = 0; r < b->rows; r++) {
        b->top[r] = -INFINITY;
        b->sum[r] = 0;
    }
    memset(b->acc, 0, b->rows * s->format.value_dim * sizeof(float));
}

/* Adds the block's tokens to the rows. Query i (of the task) sees the first seen(i) = ahead + i + 1 of them, at most
 * all; ahead = how many of the tokens come before the task's first query. */
static void attend_block(block *b, int64_t ahead)
{
    const dp_sequence *const s = b->job->sequence;
    const dp_kernels *const kernels = &s->runtime->kernels;
    const size_t key_dim = s->format.key_dim, value_dim = s->format.value_dim, group = s->group;
    const bool causal = ahead + 1 < (int64_t)b->n;
    kernels->transpose(b->keys_t, KEY_BLOCK, b->keys, key_dim, b->n, key_dim);
    kernels->matmul(b->q, key_dim, b->keys_t, KEY_BLOCK, b->logits, KEY_BLOCK, b->rows, b->n, key_dim, 0);
    for (size_t i = 0; i < b->n_queries; i++) {
        const int64_t visible = ahead + (int64_t)i + 1;
        const size_t seen = visible < 0 ? 0 : visible < (int64_t)b->n ? (size_t)visible : b->n;
        if (!seen) continue;
        for (size_t r = i * group; r < (i + 1) * group; r++) {
            float *const logits = b->logits + r * KEY_BLOCK;
            if (s->config.softcap > 0) kernels->soft_cap(logits, seen, 0.0f, s->config.softcap);
            const float top = kernels->max(logits, seen);
            if (top > b->top[r]) {
                if (b->top[r] > -INFINITY) {
                    const float factor = expf(b->top[r] - top);
                    b->sum[r] *= factor;
                    kernels->scale(b->acc + r * value_dim, factor, value_dim);
                }
                b->top[r] = top;
            }
            b->sum[r] += kernels->exp_sum(logits, seen, b->top[r]);
        }
        if (causal) /* only what the query sees is touched: a NaN further on must not reach it */
            kernels->matmul(b->logits + i * group * KEY_BLOCK, KEY_BLOCK, b->values, value_dim,
                            b->acc + i * group * value_dim, value_dim, group, value_dim, seen, 1);
    }
    if (!causal)
        kernels->matmul(b->logits, KEY_BLOCK, b->values, value_dim, b->acc, value_dim, b->rows, value_dim, b->n, 1);
    b->n = 0;
}

/* Puts the first n rows of a run, for which there must be room, behind those in the block. */
static void load_rows(block *b, const dp_run *run, size_t n)
{
    const dp_row_format *const f = &b->job->sequence->format;
    const dp_to_f32_fn to_f32 = b->job->sequence->runtime->kernels.to_f32[f->type];
    float *const k = b->keys + b->n * f->key_dim, *const v = b->values + b->n * f->value_dim;
    b->n += n;
    dp_row keys[KEY_BLOCK], values[KEY_BLOCK];
    dp_run_list(run, f, &b->head->view, n, keys, values);
    for (size_t i = 0; i < n; i++) {
        to_f32(k + i * f->key_dim, dp_row_address(keys[i]), f->key_dim);
        to_f32(v + i * f->value_dim, dp_row_address(values[i]), f->value_dim);
    }
}

/* Adds n rows that every query sees to the block, attending whenever it is full. */
static void add_seen(block *b, dp_run run, size_t n)
{
    while (n) {
        const size_t take = n < KEY_BLOCK - b->n ? n : KEY_BLOCK - b->n;
        load_rows(b, &run, take);
        run = dp_run_from(run, &b->job->sequence->format, take);
        n -= take;
        if (b->n == KEY_BLOCK) attend_block(b, INT32_MAX);
    }
}

/* Rows in token order: those before the task's first query are seen by all, the others causally. */
static void add_ordered(block *b, const dp_rows *rows, uint64_t first_token)
{
    const dp_row_format *const f = &b->job->sequence->format;
    const uint64_t end = b->first_token + b->n_queries; /* no query of the task sees tokens from here on */
    if (first_token >= end) return;
    const size_t n = end - first_token < rows->n ? (size_t)(end - first_token) : rows->n;
    const size_t before = first_token < b->first_token ? (size_t)(b->first_token - first_token) : 0;
    const size_t seen = before < n ? before : n;
    const dp_run run = dp_rows_run(rows, first_token);
    add_seen(b, run, seen);
    if (seen == n) return;
    if (b->n) attend_block(b, INT32_MAX);
    for (size_t i = seen; i < n;) {
        const size_t take = n - i < KEY_BLOCK ? n - i : KEY_BLOCK;
        const dp_run rest = dp_run_from(run, f, i);
        load_rows(b, &rest, take);
        attend_block(b, (int64_t)b->first_token - (int64_t)(first_token + i));
        i += take;
    }
}

static void finish(const block *b, size_t kv_head)
{
    const dp_sequence *const s = b->job->sequence;
    const size_t group = s->group, dim = s->format.value_dim;
    for (size_t r = 0; r < b->rows; r++) {
        const size_t head = (b->first_query + r / group) * s->config.n_query_heads + kv_head * group + r % group;
        s->runtime->kernels.scale(b->acc + r * dim, 1.0f / b->sum[r], dim);
        memcpy(b->job->out + head * dim, b->acc + r * dim, dim * sizeof(float));
        if (b->job->lse) b->job->lse[head] = logf(b->sum[r]) + (b->top[r] > -INFINITY ? b->top[r] : 0);
    }
}

static void prefill_worker(void *argument, int thread, int n_threads)
{
    (void)thread, (void)n_threads;
    prefill *const job = argument;
    char *base = NULL;
    const dp_sequence *const s = job->sequence;
    for (size_t t; (t = dp_ticket_take(&job->ticket)) < job->n_blocks * s->config.n_kv_heads;) {
        if (!base) base = job->scratch + dp_ticket_take(&job->workers) * job->scratch_bytes;
        dp_scratch scratch = {.base = base};
        block b = carve(job, &scratch);
        const size_t kv_head = t % s->config.n_kv_heads;
        /* Last queries first: they see most, and the long tasks should not come at the end. */
        b.first_query = (job->n_blocks - 1 - t / s->config.n_kv_heads) * job->queries_per_task;
        b.n_queries = job->n_queries - b.first_query < job->queries_per_task ? job->n_queries - b.first_query
                                                                             : job->queries_per_task;
        b.rows = b.n_queries * s->group;
        b.first_token = job->layer->n_tokens - job->n_queries + b.first_query;
        b.head = &job->layer->heads[kv_head];
        load_queries(&b, kv_head);
        add_ordered(&b, &b.head->sink, 0);
        for (uint32_t i = 0; i < b.head->n_segments; i++) {
            const dp_segment *const segment = &b.head->segments[i];
            if (dp_segment_stale(segment)) add_seen(&b, dp_run_in_order(segment->first_token), segment->n_tokens);
            for (uint32_t c = 0; c < segment->n_clusters; c++)
                add_seen(&b, dp_segment_run(segment, &s->format, c), dp_segment_size(segment, c));
        }
        add_ordered(&b, &b.head->tail, job->layer->n_tokens - b.head->tail.n);
        if (b.n) attend_block(&b, INT32_MAX);
        finish(&b, kv_head);
    }
}

/* Queries of a call that are looked at: more change nothing, and cost. */
enum { OBSERVED_QUERIES = 64 };

/* Makes room in every head for sums over queries; after a failure those that have seen none have no room. */
static dp_status reserve_sums(dp_sequence *s, uint32_t layer, const char *caller)
{
    const size_t dim = s->format.key_dim;
    dp_head *const heads = s->layers[layer].heads;
    uint32_t h = 0;
    while (h < s->config.n_kv_heads &&
           (heads[h].queries.settled || dp_queries_reserve(&heads[h].queries, s->runtime, dim)))
        h++;
    if (h == s->config.n_kv_heads) return DP_OK;
    while (h-- > 0)
        if (!heads[h].queries.n) dp_queries_free(&heads[h].queries, s->runtime, dim);
    return dp_no_memory(s->runtime, "%s: no memory for the queries' moments", caller);
}

/* After reserve_sums. */
static void observe(dp_sequence *s, uint32_t layer, size_t n_queries, const float *q)
{
    const size_t dim = s->format.key_dim, n_heads = s->config.n_query_heads;
    const size_t n = n_queries < OBSERVED_QUERIES ? n_queries : OBSERVED_QUERIES;
    for (uint32_t h = 0; h < s->config.n_kv_heads; h++) {
        dp_queries *const queries = &s->layers[layer].heads[h].queries;
        for (size_t i = 0; i < n && !queries->settled; i++)
            dp_queries_add(queries, dim, q + ((i + 1) * n_queries / n - 1) * n_heads * dim + h * s->group * dim, dim,
                           s->group);
    }
}

dp_status dp_observe_queries(dp_sequence *s, uint32_t layer, size_t n_queries, const float *q)
{
    if (!s) return dp_fail(NULL, DP_ERR_INVALID, "dp_observe_queries: sequence is NULL");
    if (layer >= s->config.n_layers)
        return dp_fail(s->runtime, DP_ERR_INVALID, "dp_observe_queries: layer %u of %u", layer, s->config.n_layers);
    if (!n_queries || !q)
        return dp_fail(s->runtime, DP_ERR_INVALID, "dp_observe_queries: %s", q ? "n_queries is 0" : "q is NULL");
    const dp_status status = reserve_sums(s, layer, "dp_observe_queries");
    if (!status) observe(s, layer, n_queries, q);
    return status;
}

dp_status dp_prefill(dp_sequence *s, uint32_t layer, size_t n_queries, const float *q, float *out, float *lse)
{
    if (!s) return dp_fail(NULL, DP_ERR_INVALID, "dp_prefill: sequence is NULL");
    dp_runtime *const rt = s->runtime;
    if (layer >= s->config.n_layers)
        return dp_fail(rt, DP_ERR_INVALID, "dp_prefill: layer %u of %u", layer, s->config.n_layers);
    if (!q || !out) return dp_fail(rt, DP_ERR_INVALID, "dp_prefill: q or out is NULL");
    prefill job = {.sequence = s, .layer = &s->layers[layer], .n_queries = n_queries, .q = q, .out = out, .lse = lse};
    const size_t unclustered = dp_unclustered(s, job.layer);
    if (!job.layer->n_tokens)
        return dp_fail(rt, DP_ERR_INVALID, "dp_prefill: layer %u has no tokens: dp_append comes first", layer);
    if (!n_queries || n_queries > unclustered)
        return dp_fail(rt, DP_ERR_INVALID,
                       "dp_prefill: n_queries is %zu, must be in [1, %zu], the last tokens not yet"
                       " clustered",
                       n_queries, unclustered);
    job.queries_per_task = ROW_TARGET / s->group ? ROW_TARGET / s->group : 1;
    if (job.queries_per_task > n_queries) job.queries_per_task = n_queries;
    job.n_blocks = (n_queries + job.queries_per_task - 1) / job.queries_per_task;

    dp_scratch measured = {0};
    carve(&job, &measured);
    job.scratch_bytes = measured.used;
    const size_t n_tasks = job.n_blocks * s->config.n_kv_heads, n_threads = (size_t)dp_team_size(rt);
    dp_scratch *const scratch = dp_scratch_acquire(rt, job.scratch_bytes * (n_tasks < n_threads ? n_tasks : n_threads));
    if (!scratch) return dp_no_memory(rt, "dp_prefill: no memory for %zu bytes of scratch per thread", measured.used);
    const dp_status status = reserve_sums(s, layer, "dp_prefill"); /* last, since from here on nothing fails */
    if (!status) {
        observe(s, layer, n_queries, q);
        job.scratch = scratch->base;
        dp_team_run(rt, prefill_worker, &job);
    }
    dp_scratch_release(rt, scratch);
    return status;
}
