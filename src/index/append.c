/* Appending tokens, and the growth of the index with them. */
#include <string.h>

#include "index/build.h"
#include "kv/sequence.h"
#include "kv/tail.h"
#include "runtime/team.h"

static size_t min_size(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* ---- Clustering what waits ---- */

/* Of the tokens that wait in a head, how many are to be clustered now. */
typedef size_t (*due_fn)(const dp_sequence *s, const dp_head *head, size_t waiting);

static size_t due_all(const dp_sequence *s, const dp_head *head, size_t waiting)
{
    (void)s, (void)head;
    return waiting;
}

static size_t due_whole_segments(const dp_sequence *s, const dp_head *head, size_t waiting)
{
    (void)head;
    return waiting - waiting % s->config.segment_tokens;
}

static size_t due_over_limit(const dp_sequence *s, const dp_head *head, size_t waiting)
{
    (void)s;
    return waiting >= head->pending_limit ? waiting : 0;
}

/* Tokens wait that are outside the window, in layers that are not dense for good. */
static size_t due_in(const dp_sequence *s, uint32_t layer, uint32_t kv_head, due_fn due)
{
    const dp_head *const head = &s->layers[layer].heads[kv_head];
    if (s->layers[layer].dense || head->tail.n <= s->config.window) return 0;
    return due(s, head, head->tail.n - s->config.window);
}

/* A last segment that does not fill a panel of centroids takes the next tokens in, where a segment may be so long: it is
 * built anew with them. Without that, short appends and many calls of dp_build_index would leave a trail of panels that
 * are mostly padding. Returns the segment, NULL where there is none to be extended by so many tokens. */
static const dp_segment *extended(const dp_sequence *s, const dp_head *head, size_t tokens)
{
    if (!tokens || !head->n_segments) return NULL;
    const dp_segment *const last = &head->segments[head->n_segments - 1];
    const bool small = last->n_tokens < (size_t)DP_PANEL * s->config.tokens_per_cluster;
    return small && last->n_tokens + tokens <= s->config.segment_tokens ? last : NULL;
}

/* One segment to build. */
typedef struct build_task {
    dp_head *head;
    uint32_t segment; /* index in the head, allocated, not counted yet */
    size_t first_row; /* in the tail */
    bool extends;     /* begins with the tokens of the segment before it, whose place it will take */
} build_task;

typedef struct build_job {
    dp_sequence *sequence;
    build_task *tasks;
    size_t n_tasks;
    dp_ticket ticket, workers;
    char *scratch; /* [workers that get a task][scratch_bytes] */
    size_t scratch_bytes;
    atomic_bool failed;
} build_job;

static void build_worker(void *argument, int thread, int n_threads)
{
    (void)thread, (void)n_threads;
    build_job *const job = argument;
    char *base = NULL;
    for (size_t i; (i = dp_ticket_take(&job->ticket)) < job->n_tasks;) {
        const build_task *const task = &job->tasks[i];
        const dp_row_format *const f = &job->sequence->format;
        if (!base) base = job->scratch + dp_ticket_take(&job->workers) * job->scratch_bytes;
        dp_scratch scratch = {.base = base, .bytes = job->scratch_bytes};
        dp_segment *const segment = &task->head->segments[task->segment];
        const dp_rows *const tail = &task->head->tail;
        const char *k = tail->k + task->first_row * f->key_bytes, *v = tail->v + task->first_row * f->value_bytes;
        if (task->extends) {
            const dp_segment *const before = segment - 1;
            const size_t n = before->n_tokens, more = segment->n_tokens - n;
            char *const all_k = dp_scratch_take(&scratch, segment->n_tokens * f->key_bytes);
            char *const all_v = dp_scratch_take(&scratch, segment->n_tokens * f->value_bytes);
            dp_segment_unpack(before, f, n, all_k, all_v);
            memcpy(all_k + n * f->key_bytes, k, more * f->key_bytes);
            memcpy(all_v + n * f->value_bytes, v, more * f->value_bytes);
            k = all_k, v = all_v;
        }
        if (!dp_build_segment(job->sequence, &task->head->queries, segment, k, v, &scratch))
            atomic_store(&job->failed, true);
    }
}

static size_t segments_of(const dp_sequence *s, size_t tokens)
{
    return (tokens + s->config.segment_tokens - 1) / s->config.segment_tokens;
}

/* Room for n more segments in the head's array. */
static bool reserve_segments(const dp_sequence *s, dp_head *head, size_t n)
{
    if (head->n_segments + n <= head->segments_capacity) return true;
    size_t capacity = 2 * (size_t)head->segments_capacity;
    if (capacity < head->n_segments + n) capacity = head->n_segments + n;
    dp_segment *const segments = dp_heap_resize(s->runtime, head->segments, head->segments_capacity * sizeof *segments,
                                                capacity * sizeof *segments);
    if (!segments) return false;
    head->segments = segments;
    head->segments_capacity = (uint32_t)capacity;
    return true;
}

/* Allocates the segments of one head and writes their tasks. */
static bool plan_head(dp_sequence *s, dp_head *head, uint64_t tail_first, size_t tokens, build_task *tasks,
                      size_t *n_tasks)
{
    if (!reserve_segments(s, head, segments_of(s, tokens))) return false;
    uint32_t segment = head->n_segments;
    const dp_segment *const before = extended(s, head, tokens);
    if (before) {
        const size_t n = before->n_tokens + tokens;
        if (!dp_segment_alloc(&head->segments[segment], s->arenas[head->arena], &s->format, before->first_token, n,
                              dp_build_clusters(&s->config, n)))
            return false;
        tasks[(*n_tasks)++] = (build_task){.head = head, .segment = segment, .extends = true};
        return true;
    }
    for (size_t first = 0; first < tokens; first += s->config.segment_tokens) {
        const size_t n = min_size(tokens - first, s->config.segment_tokens);
        if (!dp_segment_alloc(&head->segments[segment], s->arenas[head->arena], &s->format, tail_first + first, n,
                              dp_build_clusters(&s->config, n)))
            return false;
        tasks[(*n_tasks)++] = (build_task){.head = head, .segment = segment++, .first_row = first};
    }
    return true;
}

/* Takes the built segments into account and their tokens out of the tail. Where more came at once than decoding
 * gathers, a prompt has ended: the heads' turns start anew. */
static void attach(dp_sequence *s, uint32_t layer, uint32_t kv_head, size_t tokens)
{
    dp_head *const head = &s->layers[layer].heads[kv_head];
    if (!tokens) return;
    if (extended(s, head, tokens)) {
        dp_segment *const before = &head->segments[--head->n_segments];
        head->n_panels -= before->n_panels;
        dp_segment_free(before, s->arenas[head->arena]);
        *before = before[1];
    }
    for (size_t i = segments_of(s, tokens); i > 0; i--) head->n_panels += head->segments[head->n_segments++].n_panels;
    head->clustered += tokens;
    head->pending_limit =
        tokens > s->config.pending_tokens ? dp_sequence_first_limit(s, layer, kv_head) : s->config.pending_tokens;
    dp_rows_drop(&head->tail, &s->format, tokens);
}

/* Clusters what is due in layers [first, last). After a failure everything is as it was. */
static dp_status cluster_due(dp_sequence *s, uint32_t first, uint32_t last, due_fn due, const char *caller)
{
    dp_runtime *const rt = s->runtime;
    const uint32_t n_heads = s->config.n_kv_heads;
    size_t n_tasks = 0;
    for (uint32_t l = first; l < last; l++)
        for (uint32_t h = 0; h < n_heads; h++) n_tasks += segments_of(s, due_in(s, l, h, due));
    if (!n_tasks) return DP_OK;

    build_job job = {.sequence = s};
    const size_t tasks_bytes = (n_tasks * sizeof *job.tasks + 63) & ~(size_t)63;
    size_t largest = 0, longest = 0; /* tokens of a segment; of one that is extended */
    for (uint32_t l = first; l < last; l++)
        for (uint32_t h = 0; h < n_heads; h++) {
            const size_t n = due_in(s, l, h, due);
            const dp_segment *const before = extended(s, &s->layers[l].heads[h], n);
            if (before && before->n_tokens + n > longest) longest = before->n_tokens + n;
            if (min_size(n, s->config.segment_tokens) > largest) largest = min_size(n, s->config.segment_tokens);
        }
    if (longest > largest) largest = longest;
    job.scratch_bytes = dp_build_scratch_bytes(s, largest) + dp_segment_row_bytes(&s->format, longest) + 128;
    const size_t scratch_bytes = job.scratch_bytes * min_size(n_tasks, (size_t)rt->n_threads);
    dp_scratch *const scratch = dp_scratch_acquire(rt, tasks_bytes + scratch_bytes);
    if (!scratch) return dp_no_memory(rt, "%s: no memory to cluster %zu tokens", caller, largest);
    job.tasks = dp_scratch_take(scratch, tasks_bytes);
    job.scratch = dp_scratch_take(scratch, scratch_bytes);

    bool ok = true;
    for (uint32_t l = first; l < last && ok; l++)
        for (uint32_t h = 0; h < n_heads && ok; h++) {
            dp_head *const head = &s->layers[l].heads[h];
            if (!head->n_segments && due_in(s, l, h, due)) /* all segments of a head have one metric */
                dp_queries_settle(&head->queries, s->format.key_dim, s->config.query_metric, s->config.query_origin);
            ok =
                plan_head(s, head, s->layers[l].n_tokens - head->tail.n, due_in(s, l, h, due), job.tasks, &job.n_tasks);
        }
    if (ok) dp_team_run(rt, build_worker, &job);
    for (size_t i = 0; i < job.n_tasks && (!ok || job.failed); i++)
        dp_segment_free(&job.tasks[i].head->segments[job.tasks[i].segment], s->arenas[job.tasks[i].head->arena]);
    dp_scratch_release(rt, scratch);
    if (!ok) return dp_no_memory(rt, "%s: no memory for the index", caller);
    if (job.failed) return dp_fail(rt, DP_ERR_SYSTEM, "%s: oneDNN could not multiply matrices", caller);
    for (uint32_t l = first; l < last; l++)
        for (uint32_t h = 0; h < n_heads; h++) attach(s, l, h, due_in(s, l, h, due));
    return DP_OK;
}

/* ---- Appending ---- */

/* How many of n new tokens still belong to the sink. */
static size_t sink_share(const dp_sequence *s, const dp_head *head, size_t n)
{
    return head->sink.n < s->config.sink ? min_size(n, s->config.sink - head->sink.n) : 0;
}

dp_status dp_append(dp_sequence *s, uint32_t layer, size_t n_tokens, const float *k, size_t k_stride, const float *v,
                    size_t v_stride)
{
    if (!s) return dp_fail(NULL, DP_ERR_INVALID, "dp_append: sequence is NULL");
    dp_runtime *const rt = s->runtime;
    const dp_sequence_config *const c = &s->config;
    if (layer >= c->n_layers) return dp_fail(rt, DP_ERR_INVALID, "dp_append: layer %u of %u", layer, c->n_layers);
    if (!n_tokens || !k || !v)
        return dp_fail(rt, DP_ERR_INVALID, "dp_append: %s", !n_tokens ? "n_tokens is 0" : "k or v is NULL");
    if (!k_stride) k_stride = (size_t)c->n_kv_heads * c->key_dim;
    if (!v_stride) v_stride = (size_t)c->n_kv_heads * c->value_dim;
    if (k_stride < (size_t)c->n_kv_heads * c->key_dim || v_stride < (size_t)c->n_kv_heads * c->value_dim)
        return dp_fail(rt, DP_ERR_INVALID, "dp_append: strides %zu and %zu are shorter than a token", k_stride,
                       v_stride);
    dp_layer *const l = &s->layers[layer];
    if (n_tokens > UINT32_MAX - l->n_tokens)
        return dp_fail(rt, DP_ERR_INVALID, "dp_append: %zu tokens on top of %llu are too many", n_tokens,
                       (unsigned long long)l->n_tokens);

    for (uint32_t h = 0; h < c->n_kv_heads; h++) {
        dp_head *const head = &l->heads[h];
        const size_t to_sink = sink_share(s, head, n_tokens);
        if ((to_sink && !dp_rows_resize(&head->sink, rt, &s->format, c->sink, dp_sequence_node(s, head->arena))) ||
            !dp_tail_reserve(s, head, n_tokens - to_sink))
            return dp_no_memory(rt, "dp_append: no memory for %zu tokens", n_tokens);
    }
    const bool prompt = n_tokens >= DP_PROMPT_CHUNK;
    const dp_status status =
        cluster_due(s, layer, layer + 1, prompt ? due_whole_segments : due_over_limit, "dp_append");
    if (status) return status;
    for (uint32_t h = 0; h < c->n_kv_heads; h++) {
        dp_head *const head = &l->heads[h];
        const size_t to_sink = sink_share(s, head, n_tokens);
        const float *const kh = k + h * s->format.key_dim, *const vh = v + h * s->format.value_dim;
        dp_rows_append(&head->sink, &rt->kernels, &s->format, kh, k_stride, vh, v_stride, to_sink);
        dp_rows_append(&head->tail, &rt->kernels, &s->format, kh + to_sink * k_stride, k_stride,
                       vh + to_sink * v_stride, v_stride, n_tokens - to_sink);
    }
    l->n_tokens += n_tokens;
    return DP_OK;
}

dp_status dp_build_index(dp_sequence *s, uint32_t layer)
{
    if (!s) return dp_fail(NULL, DP_ERR_INVALID, "dp_build_index: sequence is NULL");
    const uint32_t n_layers = s->config.n_layers;
    if (layer != DP_ALL_LAYERS && layer >= n_layers)
        return dp_fail(s->runtime, DP_ERR_INVALID, "dp_build_index: layer %u of %u", layer, n_layers);
    const uint32_t first = layer == DP_ALL_LAYERS ? 0 : layer, last = layer == DP_ALL_LAYERS ? n_layers : layer + 1;
    const dp_status status = cluster_due(s, first, last, due_all, "dp_build_index");
    if (status) return status;
    for (uint32_t l = first; l < last; l++)
        for (uint32_t h = 0; h < s->config.n_kv_heads; h++) {
            dp_head *const head = &s->layers[l].heads[h];
            head->pending_limit = dp_sequence_first_limit(s, l, h);
            (void)dp_tail_reserve(s, head, 0); /* a prompt's room is not needed any more */
        }
    return DP_OK;
}
