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

/* Of the tokens that wait in a head, from number `first` on, how many are to be clustered now. */
typedef size_t (*due_fn)(const dp_sequence *s, const dp_head *head, uint64_t first, size_t waiting);

static size_t due_all(const dp_sequence *s, const dp_head *head, uint64_t first, size_t waiting)
{
    (void)s, (void)head, (void)first;
    return waiting;
}

static size_t due_whole_segments(const dp_sequence *s, const dp_head *head, uint64_t first, size_t waiting)
{
    (void)head;
    size_t due = 0;
    for (size_t n; (n = dp_build_segment_tokens(&s->config, first + due)) <= waiting - due;) due += n;
    return due;
}

static size_t due_over_limit(const dp_sequence *s, const dp_head *head, uint64_t first, size_t waiting)
{
    (void)s, (void)first;
    return waiting >= head->pending_limit ? waiting : 0;
}

static uint64_t first_of_tail(const dp_sequence *s, uint32_t layer, const dp_head *head)
{
    return s->layers[layer].n_tokens - head->tail.n;
}

/* Tokens wait that are outside the window, in layers that are not dense for good. */
static size_t due_in(const dp_sequence *s, uint32_t layer, uint32_t kv_head, due_fn due)
{
    const dp_head *const head = &s->layers[layer].heads[kv_head];
    if (s->layers[layer].dense || head->tail.n <= s->config.window) return 0;
    return due(s, head, first_of_tail(s, layer, head), head->tail.n - s->config.window);
}

/* The last segment where it takes so many tokens in, else NULL. */
static const dp_segment *extended(const dp_sequence *s, const dp_head *head, size_t tokens)
{
    if (!tokens || !head->n_segments) return NULL;
    const dp_segment *const last = &head->segments[head->n_segments - 1];
    return dp_build_extends(&s->config, last->first_token, last->n_tokens, tokens) ? last : NULL;
}

/* Stale segments of a layer are due, too, where it is not dense for good; all of them, or `most` in its first heads that
 * have any. */
static size_t due_stale(const dp_sequence *s, uint32_t layer, size_t most)
{
    size_t n = 0;
    for (uint32_t h = 0; h < s->config.n_kv_heads && !s->layers[layer].dense; h++)
        n += s->layers[layer].heads[h].n_stale;
    return min_size(n, most);
}

/* One segment to build. */
typedef struct build_task {
    dp_head *head;
    uint32_t segment;  /* index in the head, allocated, not counted yet */
    uint32_t replaces; /* index of the segment whose place it will take, with whose tokens it begins; or none */
    size_t first_row;  /* of its rows in the tail */
} build_task;
static const uint32_t none = UINT32_MAX;

typedef struct build_job {
    dp_sequence *sequence;
    build_task *tasks;
    size_t n_tasks;
    dp_queries *unsettled; /* [layers][KV heads] sums over queries as they were, of heads where they settle now */
    dp_ticket ticket, workers;
    char *scratch; /* [workers that get a task][scratch_bytes] */
    size_t scratch_bytes;
    atomic_bool failed;
} build_job;

/* The task's rows in token order: k[n], v[n]. */
static void copy_rows(const dp_row_format *f, const build_task *task, char *k, char *v)
{
    const dp_head *const head = task->head;
    const dp_segment *const segment = &head->segments[task->segment];
    for (size_t i = 0; i < segment->n_tokens && f->borrowed; i++) {
        const void *key, *value;
        dp_view_row(&head->view, (uint32_t)(segment->first_token + i), &key, &value);
        memcpy(k + i * f->key_bytes, key, f->key_bytes);
        memcpy(v + i * f->value_bytes, value, f->value_bytes);
    }
    if (f->borrowed) return;
    const dp_segment *const before = &head->segments[task->replaces];
    const size_t n = before->n_tokens, more = segment->n_tokens - n;
    dp_segment_unpack(before, f, n, k, v);
    memcpy(k + n * f->key_bytes, head->tail.k, more * f->key_bytes);
    memcpy(v + n * f->value_bytes, head->tail.v, more * f->value_bytes);
}

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
        const char *k, *v;
        if (f->borrowed || task->replaces != none) {
            char *const all_k = dp_scratch_take(&scratch, segment->n_tokens * f->key_bytes);
            char *const all_v = dp_scratch_take(&scratch, segment->n_tokens * f->value_bytes);
            copy_rows(f, task, all_k, all_v);
            k = all_k, v = all_v;
        } else {
            k = task->head->tail.k + task->first_row * f->key_bytes;
            v = task->head->tail.v + task->first_row * f->value_bytes;
        }
        if (!dp_build_segment(job->sequence, &task->head->queries, segment, k, v, &scratch))
            atomic_store(&job->failed, true);
    }
}

/* Of n tokens from `first` on, those of the first segment. */
static size_t first_segment(const dp_sequence *s, uint64_t first, size_t n)
{
    return min_size(n, dp_build_segment_tokens(&s->config, first));
}

static size_t segments_of(const dp_sequence *s, uint64_t first, size_t n)
{
    size_t segments = 0;
    for (size_t taken; n; first += taken, n -= taken, segments++) taken = first_segment(s, first, n);
    return segments;
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

/* Allocates a segment and adds its task. */
static bool plan_segment(build_job *job, uint64_t first_token, size_t n, build_task task)
{
    const dp_sequence *const s = job->sequence;
    if (!dp_segment_alloc(&task.head->segments[task.segment], s->arenas[task.head->arena], &s->format, first_token, n,
                          dp_build_clusters(&s->config, first_token, n)))
        return false;
    job->tasks[job->n_tasks++] = task;
    return true;
}

/* Plans the segments of one head: of the tail's first tokens, and up to *stale of those that are stale. */
static bool plan_head(build_job *job, dp_head *head, uint64_t tail_first, size_t tokens, size_t *stale)
{
    const dp_sequence *const s = job->sequence;
    if (!reserve_segments(s, head, segments_of(s, tail_first, tokens) + min_size(head->n_stale, *stale))) return false;
    build_task task = {.head = head, .segment = head->n_segments, .replaces = none};
    const dp_segment *const before = extended(s, head, tokens);
    if (before) {
        task.replaces = head->n_segments - 1;
        if (!plan_segment(job, before->first_token, before->n_tokens + tokens, task)) return false;
        task.segment++;
    }
    for (size_t n; !before && task.first_row < tokens; task.first_row += n, task.segment++) {
        const uint64_t first = tail_first + task.first_row;
        n = first_segment(s, first, tokens - task.first_row);
        if (!plan_segment(job, first, n, task)) return false;
    }
    for (task.replaces = 0; task.replaces < head->n_segments && *stale && head->n_stale; task.replaces++) {
        const dp_segment *const old = &head->segments[task.replaces];
        if (!dp_segment_stale(old) || old == before) continue;
        if (!plan_segment(job, old->first_token, old->n_tokens, task)) return false;
        task.segment++;
        --*stale;
    }
    return true;
}

/* Takes a segment that was built into account. Those of a head come in the order of their plan. */
static void attach(const dp_sequence *s, const build_task *task)
{
    dp_head *const head = task->head;
    const dp_segment *const built = &head->segments[task->segment];
    head->clustered += built->n_tokens;
    head->n_panels += built->n_panels;
    if (task->replaces == none) {
        head->n_segments++;
        return;
    }
    dp_segment *const old = &head->segments[task->replaces];
    dp_head_release(s, head, old);
    *old = *built;
}

/* Takes clustered tokens out of the tail. Where more came at once than decoding gathers, a prompt has ended: the heads'
 * turns start anew. */
static void drop_clustered(dp_sequence *s, uint32_t layer, uint32_t kv_head, size_t tokens)
{
    dp_head *const head = &s->layers[layer].heads[kv_head];
    if (!tokens) return;
    head->pending_limit =
        tokens > s->config.pending_tokens ? dp_sequence_first_limit(s, layer, kv_head) : s->config.pending_tokens;
    dp_rows_drop(&head->tail, &s->format, tokens);
}

/* Whether the head's sums over queries are to settle: before its first segment, so that all segments of a head have one
 * metric. */
static bool settles(const dp_sequence *s, uint32_t layer, uint32_t kv_head, due_fn due)
{
    const dp_head *const head = &s->layers[layer].heads[kv_head];
    return !head->n_segments && !head->queries.settled && head->queries.n && due_in(s, layer, kv_head, due);
}

/* Settles what settles; what it was goes to job->unsettled. False where there is no memory for that. */
static bool settle_queries(build_job *job, uint32_t first, uint32_t last, due_fn due)
{
    dp_sequence *const s = job->sequence;
    dp_queries *before = job->unsettled;
    for (uint32_t l = first; l < last; l++)
        for (uint32_t h = 0; h < s->config.n_kv_heads; h++, before++) {
            dp_queries *const queries = &s->layers[l].heads[h].queries;
            if (!settles(s, l, h, due)) continue;
            if (!dp_queries_copy(before, queries, s->runtime, s->format.key_dim)) return false;
            dp_queries_settle(queries, s->format.key_dim, s->config.query_metric, s->config.query_origin);
        }
    return true;
}

/* Frees what the sums were, or makes them that again. */
static void drop_unsettled(const build_job *job, uint32_t first, uint32_t last, bool restore)
{
    dp_sequence *const s = job->sequence;
    dp_queries *before = job->unsettled;
    for (uint32_t l = first; l < last; l++)
        for (uint32_t h = 0; h < s->config.n_kv_heads; h++, before++) {
            if (!before->vector) continue;
            dp_queries *const queries = &s->layers[l].heads[h].queries, settled = *queries;
            if (restore) *queries = *before, *before = settled;
            dp_queries_free(before, s->runtime, s->format.key_dim);
        }
}

/* Clusters what is due in layers [first, last), of each layer's stale segments most_stale. After a failure everything is
 * as it was. */
static dp_status cluster_due(dp_sequence *s, uint32_t first, uint32_t last, due_fn due, size_t most_stale,
                             const char *caller)
{
    dp_runtime *const rt = s->runtime;
    const uint32_t n_heads = s->config.n_kv_heads;
    size_t n_tasks = 0;
    for (uint32_t l = first; l < last; l++) {
        n_tasks += due_stale(s, l, most_stale);
        for (uint32_t h = 0; h < n_heads; h++)
            n_tasks += segments_of(s, first_of_tail(s, l, &s->layers[l].heads[h]), due_in(s, l, h, due));
    }
    if (!n_tasks) return DP_OK;

    build_job job = {.sequence = s};
    const size_t tasks_bytes = (n_tasks * sizeof *job.tasks + 63) & ~(size_t)63,
                 sums_bytes = ((last - first) * n_heads * sizeof *job.unsettled + 63) & ~(size_t)63;
    size_t largest = 0, copied = 0; /* tokens of a segment; of one whose rows are put together first */
    for (uint32_t l = first; l < last; l++)
        for (uint32_t h = 0; h < n_heads; h++) {
            const dp_head *const head = &s->layers[l].heads[h];
            const size_t n = due_in(s, l, h, due);
            const dp_segment *const before = extended(s, head, n);
            if (before && before->n_tokens + n > copied) copied = before->n_tokens + n;
            const size_t longest = first_segment(s, first_of_tail(s, l, head) + n, n); /* they grow */
            if (longest > largest) largest = longest;
            for (uint32_t i = 0; i < head->n_segments && head->n_stale; i++)
                if (head->segments[i].n_tokens > copied) copied = head->segments[i].n_tokens;
        }
    if (copied > largest) largest = copied;
    if (s->format.borrowed) copied = largest;
    job.scratch_bytes = dp_build_scratch_bytes(s, largest) + dp_segment_row_bytes(&s->format, copied) + 128;
    const size_t scratch_bytes = job.scratch_bytes * min_size(n_tasks, (size_t)dp_team_size(rt));
    dp_scratch *const scratch = dp_scratch_acquire(rt, tasks_bytes + sums_bytes + scratch_bytes);
    if (!scratch) return dp_no_memory(rt, "%s: no memory to cluster %zu tokens", caller, largest);
    job.tasks = dp_scratch_take(scratch, tasks_bytes);
    job.unsettled = memset(dp_scratch_take(scratch, sums_bytes), 0, sums_bytes);
    job.scratch = dp_scratch_take(scratch, scratch_bytes);

    bool ok = true;
    for (uint32_t l = first; l < last && ok; l++) {
        size_t stale = due_stale(s, l, most_stale);
        for (uint32_t h = 0; h < n_heads && ok; h++) {
            dp_head *const head = &s->layers[l].heads[h];
            ok = plan_head(&job, head, first_of_tail(s, l, head), due_in(s, l, h, due), &stale);
        }
    }
    ok = ok && settle_queries(&job, first, last, due);
    if (ok) dp_team_run(rt, build_worker, &job);
    const bool built = ok && !job.failed;
    drop_unsettled(&job, first, last, !built);
    for (size_t i = 0; i < job.n_tasks && !built; i++)
        dp_segment_free(&job.tasks[i].head->segments[job.tasks[i].segment], s->arenas[job.tasks[i].head->arena]);
    for (size_t i = 0; i < job.n_tasks && built; i++) attach(s, &job.tasks[i]);
    dp_scratch_release(rt, scratch);
    if (!ok) return dp_no_memory(rt, "%s: no memory for the index", caller);
    if (job.failed) return dp_fail(rt, DP_ERR_SYSTEM, "%s: oneDNN could not multiply matrices", caller);
    for (uint32_t l = first; l < last; l++)
        for (uint32_t h = 0; h < n_heads; h++) drop_clustered(s, l, h, due_in(s, l, h, due));
    return DP_OK;
}

/* ---- Appending ---- */

/* How many of n new tokens still belong to the sink. */
static size_t sink_share(const dp_sequence *s, const dp_head *head, size_t n)
{
    return head->sink.n < s->config.sink ? min_size(n, s->config.sink - head->sink.n) : 0;
}

/* Borrowed rows of n new tokens must have a place. */
static dp_status check_room(const dp_sequence *s, uint32_t layer, size_t n, const char *caller)
{
    const uint64_t have = s->layers[layer].n_tokens;
    const dp_view *const view = &s->layers[layer].heads[0].view;
    if (!view->n_tokens)
        return dp_fail(s->runtime, DP_ERR_INVALID, "%s: dp_borrow was not called for layer %u yet", caller, layer);
    if (n > view->n_tokens - have)
        return dp_fail(s->runtime, DP_ERR_INVALID, "%s: the borrowed memory has room for %llu tokens, not %llu",
                       caller, (unsigned long long)view->n_tokens, (unsigned long long)(have + n));
    return dp_view_check_table(view, s->runtime, have, have + n, caller);
}

/* Rows as they are given. */
typedef struct given_rows {
    const char *k, *v;
    size_t k_stride, v_stride; /* bytes from token to token */
    size_t k_row, v_row;       /* bytes of a row */
    dp_type type;
} given_rows;

static dp_status append(dp_sequence *s, uint32_t layer, size_t n_tokens, given_rows given, const char *caller)
{
    dp_runtime *const rt = s->runtime;
    const dp_sequence_config *const c = &s->config;
    if (layer >= c->n_layers) return dp_fail(rt, DP_ERR_INVALID, "%s: layer %u of %u", caller, layer, c->n_layers);
    const bool borrowed = s->format.borrowed;
    if (!n_tokens) return dp_fail(rt, DP_ERR_INVALID, "%s: n_tokens is 0", caller);
    if (!borrowed && (!given.k || !given.v)) return dp_fail(rt, DP_ERR_INVALID, "%s: k or v is NULL", caller);
    if (borrowed && (given.k || given.v))
        return dp_fail(rt, DP_ERR_INVALID, "%s: the rows are borrowed: k and v must be NULL", caller);
    given.k_row = dp_row_bytes(given.type, c->key_dim);
    given.v_row = dp_row_bytes(given.type, c->value_dim);
    if (!given.k_stride) given.k_stride = c->n_kv_heads * given.k_row;
    if (!given.v_stride) given.v_stride = c->n_kv_heads * given.v_row;
    if (given.k_stride < c->n_kv_heads * given.k_row || given.v_stride < c->n_kv_heads * given.v_row)
        return dp_fail(rt, DP_ERR_INVALID, "%s: strides of %zu and %zu bytes are shorter than a token", caller,
                       given.k_stride, given.v_stride);
    dp_layer *const l = &s->layers[layer];
    if (n_tokens > UINT32_MAX - l->n_tokens)
        return dp_fail(rt, DP_ERR_INVALID, "%s: %zu tokens on top of %llu are too many", caller, n_tokens,
                       (unsigned long long)l->n_tokens);

    if (borrowed) {
        const dp_status status = check_room(s, layer, n_tokens, caller);
        if (status) return status;
    }
    for (uint32_t h = 0; h < c->n_kv_heads; h++) {
        dp_head *const head = &l->heads[h];
        const size_t to_sink = sink_share(s, head, n_tokens);
        if ((to_sink && !dp_rows_resize(&head->sink, rt, &s->format, c->sink, dp_sequence_node(s, head->arena))) ||
            !dp_tail_reserve(s, head, n_tokens - to_sink))
            return dp_no_memory(rt, "%s: no memory for %zu tokens", caller, n_tokens);
    }
    const bool prompt = n_tokens >= DP_PROMPT_CHUNK;
    const dp_status status =
        cluster_due(s, layer, layer + 1, prompt ? due_whole_segments : due_over_limit, prompt ? SIZE_MAX : 1, caller);
    if (status) return status;
    for (uint32_t h = 0; h < c->n_kv_heads; h++) {
        dp_head *const head = &l->heads[h];
        const size_t to_sink = sink_share(s, head, n_tokens);
        if (borrowed) {
            head->sink.n += to_sink;
            head->tail.n += n_tokens - to_sink;
            continue;
        }
        const char *const k = given.k + h * given.k_row, *const v = given.v + h * given.v_row;
        dp_rows_append(&head->sink, &rt->kernels, &s->format, given.type, k, given.k_stride, v, given.v_stride, to_sink);
        dp_rows_append(&head->tail, &rt->kernels, &s->format, given.type, k + to_sink * given.k_stride, given.k_stride,
                       v + to_sink * given.v_stride, given.v_stride, n_tokens - to_sink);
    }
    l->n_tokens += n_tokens;
    return DP_OK;
}

dp_status dp_append(dp_sequence *s, uint32_t layer, size_t n_tokens, const float *k, size_t k_stride, const float *v,
                    size_t v_stride)
{
    if (!s) return dp_fail(NULL, DP_ERR_INVALID, "dp_append: sequence is NULL");
    if (s->format.borrowed) k_stride = v_stride = 0; /* without meaning */
    if (k_stride > SIZE_MAX / sizeof *k || v_stride > SIZE_MAX / sizeof *v)
        return dp_fail(s->runtime, DP_ERR_INVALID, "dp_append: strides %zu and %zu are too long", k_stride, v_stride);
    const given_rows given = {.k = (const char *)k,
                              .v = (const char *)v,
                              .k_stride = k_stride * sizeof *k,
                              .v_stride = v_stride * sizeof *v,
                              .type = DP_F32};
    return append(s, layer, n_tokens, given, "dp_append");
}

dp_status dp_append_typed(dp_sequence *s, uint32_t layer, size_t n_tokens, dp_type type, const void *k, size_t k_stride,
                          const void *v, size_t v_stride)
{
    if (!s) return dp_fail(NULL, DP_ERR_INVALID, "dp_append_typed: sequence is NULL");
    if ((unsigned)type >= DP_TYPE_COUNT)
        return dp_fail(s->runtime, DP_ERR_INVALID, "dp_append_typed: type is %d, must be a dp_type", (int)type);
    if (s->format.borrowed) k_stride = v_stride = 0; /* without meaning */
    const size_t alignment = dp_row_alignment(type);
    if (((uintptr_t)k | (uintptr_t)v | k_stride | v_stride) % alignment)
        return dp_fail(s->runtime, DP_ERR_INVALID, "dp_append_typed: k, v and the strides must be multiples of %zu bytes",
                       alignment);
    const given_rows given = {.k = k, .v = v, .k_stride = k_stride, .v_stride = v_stride, .type = type};
    return append(s, layer, n_tokens, given, "dp_append_typed");
}

dp_status dp_build_index(dp_sequence *s, uint32_t layer)
{
    if (!s) return dp_fail(NULL, DP_ERR_INVALID, "dp_build_index: sequence is NULL");
    const uint32_t n_layers = s->config.n_layers;
    if (layer != DP_ALL_LAYERS && layer >= n_layers)
        return dp_fail(s->runtime, DP_ERR_INVALID, "dp_build_index: layer %u of %u", layer, n_layers);
    const uint32_t first = layer == DP_ALL_LAYERS ? 0 : layer, last = layer == DP_ALL_LAYERS ? n_layers : layer + 1;
    const dp_status status = cluster_due(s, first, last, due_all, SIZE_MAX, "dp_build_index");
    if (status) return status;
    for (uint32_t l = first; l < last; l++)
        for (uint32_t h = 0; h < s->config.n_kv_heads; h++) {
            dp_head *const head = &s->layers[l].heads[h];
            head->pending_limit = dp_sequence_first_limit(s, l, h);
            (void)dp_tail_reserve(s, head, 0); /* a prompt's room is not needed any more */
        }
    return DP_OK;
}
