/* dp_decode: the stages of one step over the team. */
#include <string.h>
#include <time.h>

#include "attention/step.h"
#include "runtime/structs.h"

enum { STAGE_SCORE, STAGE_EXACT, STAGE_SELECT, STAGE_GATHER, STAGE_MERGE, STAGES };

/* Carves the step's memory; run once on an empty scratch to learn the size. */
static void carve(dp_step *step, dp_scratch *scratch)
{
    const dp_sequence *const s = step->sequence;
    const size_t rows = step->rows, n_heads = s->config.n_kv_heads;
    const bool real = scratch->base != NULL;
    step->heads = dp_scratch_take(scratch, n_heads * sizeof *step->heads);
    float *const q = dp_scratch_take(scratch, n_heads * rows * s->format.key_dim * sizeof *q);
    step->tickets = dp_scratch_take(scratch, STAGES * (size_t)s->n_arenas * sizeof *step->tickets);
    step->n_tasks = 0;
    for (size_t h = 0; h < n_heads; h++) {
        const dp_head *const head = &step->layer->heads[h];
        dp_head_step plan = {.head = head, .n_positions = step->sparse ? (size_t)head->n_panels * DP_PANEL : 0};
        const size_t positions = plan.n_positions * sizeof(float);
        if (q) plan.q = q + h * rows * s->format.key_dim;
        plan.variance = dp_scratch_take(scratch, rows * sizeof *plan.variance);
        plan.mass = dp_scratch_take(scratch, rows * positions);
        plan.error = dp_scratch_take(scratch, positions);
        plan.joint = dp_scratch_take(scratch, positions);
        plan.rank = dp_scratch_take(scratch, positions);
        plan.flags = dp_scratch_take(scratch, plan.n_positions);
        plan.reference = dp_scratch_take(scratch, rows * sizeof *plan.reference);
        plan.dropped = dp_scratch_take(scratch, rows * sizeof *plan.dropped);
        plan.exact_share = dp_scratch_take(scratch, rows * sizeof *plan.exact_share);
        plan.pieces_capacity = dp_pieces_capacity(step, head);
        plan.pieces = dp_scratch_take(scratch, plan.pieces_capacity * sizeof *plan.pieces);
        plan.estimated = dp_scratch_take(scratch, plan.n_positions * sizeof *plan.estimated);
        plan.items_capacity = dp_items_capacity(step, head);
        plan.items = dp_scratch_take(scratch, plan.items_capacity * sizeof *plan.items);
        plan.partials = dp_scratch_take(scratch, plan.items_capacity * dp_partial_floats(step) * sizeof *plan.partials);
        if (real) step->heads[h] = plan;
        if (step->sparse) step->n_tasks += dp_score_count_tasks(head);
    }
    step->tasks = dp_scratch_take(scratch, step->n_tasks * sizeof *step->tasks);
    step->task_max = dp_scratch_take(scratch, step->n_tasks * rows * sizeof *step->task_max);
    step->thread_bytes = (dp_gather_scratch_bytes(step) + 63) & ~(size_t)63;
    step->thread_scratch = dp_scratch_take(scratch, step->thread_bytes * (size_t)s->runtime->n_threads);
}

/* Collects the queries by KV head, and lists what is known before any work. */
static void plan(dp_step *step)
{
    const dp_sequence *const s = step->sequence;
    const size_t dim = s->format.key_dim, group = s->group;
    for (int i = 0; i < STAGES * s->n_arenas; i++) atomic_init(&step->tickets[i].next, 0);
    uint32_t next_task = 0;
    for (size_t h = 0; h < s->config.n_kv_heads; h++) {
        dp_head_step *const head = &step->heads[h];
        float *const q = (float *)head->q;
        for (size_t i = 0; i < step->n_queries; i++)
            memcpy(q + i * group * dim, step->q + (i * s->config.n_query_heads + h * group) * dim,
                   group * dim * sizeof *q);
        for (size_t r = 0; r < step->rows; r++)
            head->variance[r] = s->scale * s->scale * step->kernels->dot(q + r * dim, q + r * dim, dim);
        dp_pieces_exact(step, head);
        if (step->sparse) dp_score_plan(step, h, &next_task);
    }
}

/* ---- Handing out work ----
 * Every stage is a list of numbered tasks per NUMA node (the heads of one arena); a member takes those of its own node
 * first, then helps the others. */

typedef struct worker {
    dp_step *step;
    int thread, node;
    void *scratch;
} worker;

/* Heads of an arena: [first, last). */
static void arena_heads(const dp_step *step, int arena, size_t *first, size_t *last)
{
    const size_t n_heads = step->sequence->config.n_kv_heads;
    size_t f = 0, l;
    while (f < n_heads && step->heads[f].head->arena != arena) f++;
    for (l = f; l < n_heads && step->heads[l].head->arena == arena;) l++;
    *first = f;
    *last = l;
}

typedef size_t (*count_fn)(const dp_step *step, size_t kv_head);
typedef void (*task_fn)(const worker *w, size_t kv_head, size_t task);

/* The tasks of a stage as a member comes by them: of arena number `turn` from its own on, whose heads [h, last) are left
 * and have tickets from `before` on. */
typedef struct task_source {
    int stage, turn;
    count_fn count;
    size_t h, last, before;
} task_source;

static task_source start_stage(int stage, count_fn count)
{
    return (task_source){.stage = stage, .turn = -1, .count = count};
}

/* False when there is no more. */
static bool take_task(const worker *w, task_source *s, size_t *kv_head, size_t *task)
{
    dp_step *const step = w->step;
    const int n_arenas = step->sequence->n_arenas;
    for (;;) {
        if (s->h == s->last) {
            if (++s->turn >= n_arenas) return false;
            arena_heads(step, (w->node + s->turn) % n_arenas, &s->h, &s->last);
            s->before = 0;
            continue;
        }
        const int arena = (w->node + s->turn) % n_arenas;
        const size_t ticket = dp_ticket_take(&step->tickets[s->stage * n_arenas + arena]);
        while (s->h < s->last && ticket - s->before >= s->count(step, s->h)) s->before += s->count(step, s->h++);
        if (s->h == s->last) continue;
        *kv_head = s->h;
        *task = ticket - s->before;
        return true;
    }
}

static void run_stage(const worker *w, int stage, count_fn count, task_fn run)
{
    task_source source = start_stage(stage, count);
    for (size_t h, task; take_task(w, &source, &h, &task);) run(w, h, task);
}

/* Gathers items numbered from first_item(h) on. A member takes the next item before it works on one, so that the rows at
 * its start are fetched meanwhile. */
static void run_gather(const worker *w, int stage, count_fn count, count_fn first_item)
{
    task_source source = start_stage(stage, count);
    dp_gather_task now = {0}, next = {0};
    size_t h, i;
    if (take_task(w, &source, &h, &i)) now = (dp_gather_task){&w->step->heads[h], first_item(w->step, h) + i};
    for (; now.head; now = next, next.head = NULL) {
        if (take_task(w, &source, &h, &i)) next = (dp_gather_task){&w->step->heads[h], first_item(w->step, h) + i};
        dp_gather_item(w->step, now, next, w->scratch);
    }
}

static size_t count_scores(const dp_step *step, size_t h)
{
    return step->heads[h].n_tasks;
}
static void run_score(const worker *w, size_t h, size_t i)
{
    const size_t task = w->step->heads[h].first_task + i;
    dp_score_run(w->step, &w->step->tasks[task], w->step->task_max + task * w->step->rows);
}

static size_t count_exact(const dp_step *step, size_t h)
{
    return step->heads[h].n_exact_items;
}
static size_t count_rest(const dp_step *step, size_t h)
{
    return step->heads[h].n_items - step->heads[h].n_exact_items;
}
static size_t no_items(const dp_step *step, size_t h)
{
    (void)step, (void)h;
    return 0;
}

static size_t count_one(const dp_step *step, size_t h)
{
    (void)step, (void)h;
    return 1;
}
static void run_select(const worker *w, size_t h, size_t i)
{
    (void)i;
    if (w->step->sparse)
        dp_select(w->step, &w->step->heads[h]);
    else
        dp_pieces_all(w->step, &w->step->heads[h]);
}

static size_t count_rows(const dp_step *step, size_t h)
{
    (void)h;
    return step->rows;
}
static void run_merge(const worker *w, size_t h, size_t i)
{
    dp_merge_row(w->step, h, i);
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void step_worker(void *argument, int thread, int n_threads)
{
    dp_step *const step = argument;
    const worker w = {.step = step,
                      .thread = thread,
                      .node = dp_team_node(step->sequence->runtime, thread, n_threads),
                      .scratch = step->thread_scratch + (size_t)thread * step->thread_bytes};
    uint64_t t[5];
    t[0] = now_ns();
    if (step->sparse) run_stage(&w, STAGE_SCORE, count_scores, run_score);
    run_gather(&w, STAGE_EXACT, count_exact, no_items);
#pragma omp barrier
    t[1] = now_ns();
    run_stage(&w, STAGE_SELECT, count_one, run_select);
#pragma omp barrier
    t[2] = now_ns();
    run_gather(&w, STAGE_GATHER, count_rest, count_exact);
#pragma omp barrier
    t[3] = now_ns();
    run_stage(&w, STAGE_MERGE, count_rows, run_merge);
#pragma omp barrier
    t[4] = now_ns();
    if (thread == 0)
        for (int i = 0; i < 4; i++) step->ns[i] = t[i + 1] - t[i];
}

static void fill_stats(const dp_step *step, dp_attention_stats *stats)
{
    const dp_sequence *const s = step->sequence;
    dp_attention_stats_init(stats);
    double exact_share = 0;
    for (size_t h = 0; h < s->config.n_kv_heads; h++) {
        const dp_head_counts *const c = &step->heads[h].counts;
        stats->tokens_exact += c->tokens_exact;
        stats->clusters_estimated += c->clusters_estimated;
        stats->clusters_refined += c->clusters_refined;
        stats->tokens_refined += c->tokens_refined;
        stats->bytes_centroids += c->bytes_centroids;
        stats->bytes_means += c->bytes_means;
        stats->bytes_rows += c->bytes_rows;
        for (uint32_t i = 0; step->sparse && i < step->heads[h].head->n_segments; i++)
            stats->clusters += step->heads[h].head->segments[i].n_clusters;
        for (size_t r = 0; r < step->rows; r++) exact_share += step->heads[h].exact_share[r];
    }
    stats->sparse = step->sparse;
    stats->tokens = step->layer->n_tokens;
    stats->mass_exact = exact_share / (double)(s->config.n_kv_heads * step->rows);
    stats->mass_estimated = 1 - stats->mass_exact;
    stats->bytes = stats->bytes_centroids + stats->bytes_means + stats->bytes_rows;
    stats->bytes_dense = step->layer->n_tokens * s->config.n_kv_heads * (s->format.key_bytes + s->format.value_bytes);
    stats->ns_score = step->ns[0];
    stats->ns_select = step->ns[1];
    stats->ns_gather = step->ns[2];
    stats->ns_merge = step->ns[3];
}

dp_status dp_decode(dp_sequence *s, uint32_t layer, size_t n_queries, const float *q, const dp_attention_params *params,
                    float *out, float *lse, dp_attention_stats *stats)
{
    return dp_decode_observed(s, layer, n_queries, q, params, out, lse, stats, NULL, NULL);
}

dp_status dp_decode_observed(dp_sequence *s, uint32_t layer, size_t n_queries, const float *q,
                             const dp_attention_params *params, float *out, float *lse, dp_attention_stats *stats,
                             dp_observe_fn observe, void *user)
{
    if (!s) return dp_fail(NULL, DP_ERR_INVALID, "dp_decode: sequence is NULL");
    dp_runtime *const rt = s->runtime;
    if (layer >= s->config.n_layers)
        return dp_fail(rt, DP_ERR_INVALID, "dp_decode: layer %u of %u", layer, s->config.n_layers);
    if (!q || !out) return dp_fail(rt, DP_ERR_INVALID, "dp_decode: q or out is NULL");
    if (!n_queries || n_queries > DP_MAX_DECODE_QUERIES)
        return dp_fail(rt, DP_ERR_INVALID, "dp_decode: n_queries is %zu, must be in [1, %d]", n_queries,
                       DP_MAX_DECODE_QUERIES);
    if (stats && !dp_struct_size_ok(stats, sizeof *stats))
        return dp_fail(rt, DP_ERR_INVALID, "dp_decode: stats->struct_size is %u; call dp_attention_stats_init first",
                       stats->struct_size);
    dp_step step = {.sequence = s, .layer = &s->layers[layer], .kernels = &rt->kernels};
    const dp_status status = dp_params_settle(s, params, &step.params);
    if (status) return status;
    const size_t unclustered = dp_unclustered(s, step.layer);
    if (n_queries > unclustered)
        return dp_fail(rt, DP_ERR_INVALID, "dp_decode: n_queries is %zu, but only the last %zu tokens can be queried",
                       n_queries, unclustered);

    step.sparse = step.params.method == DP_DOUBLE_P && !step.layer->dense && dp_has_clusters(s, step.layer) &&
                  step.layer->n_tokens >= step.params.min_context;
    step.n_queries = n_queries;
    step.rows = n_queries * s->group;
    step.q = q;
    step.out = out;
    step.lse = lse;
    dp_scratch measured = {0};
    carve(&step, &measured);
    dp_scratch *const scratch = dp_scratch_acquire(rt, measured.used);
    if (!scratch) return dp_no_memory(rt, "dp_decode: no memory for %zu bytes of scratch", measured.used);
    carve(&step, scratch);
    plan(&step);
    dp_team_run(rt, step_worker, &step);
    if (stats) {
        dp_attention_stats full;
        fill_stats(&step, &full);
        (void)DP_STRUCT_OUT(stats, &full);
    }
    if (observe) observe(user, &step);
    dp_scratch_release(rt, scratch);
    return DP_OK;
}
