/* dp_decode and dp_decode_batch: the stages of the requests' steps over one team. A dp_decode is a batch of one. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "attention/step.h"
#include "runtime/structs.h"

enum { STAGE_SCORE, STAGE_EXACT, STAGE_SELECT, STAGE_SCAN, STAGE_LIST, STAGE_GATHER, STAGE_MERGE, STAGES };

static const size_t alone = SIZE_MAX; /* request number of a dp_decode */

/* A KV head of one of the steps. */
typedef struct unit {
    dp_step *step;
    size_t kv_head;
} unit;

typedef struct batch {
    dp_runtime *runtime;
    size_t n_steps, n_units;
    int n_arenas;
    dp_step *steps;
    unit *units;          /* [n_units] those of an arena follow each other, long contexts first */
    size_t *first_unit;   /* [n_arenas + 1] */
    dp_ticket *tickets;   /* [STAGES][n_arenas] */
    char *thread_scratch; /* [n_threads][thread_bytes] */
    size_t thread_bytes;
    uint64_t ns[5]; /* time of score, select, scan, gather, merge, as the calling thread saw it */
} batch;

/* Carves a step's memory; run once on an empty scratch to learn the size. */
static void carve_step(dp_step *step, dp_scratch *scratch)
{
    const dp_sequence *const s = step->sequence;
    const size_t rows = step->rows, n_heads = s->config.n_kv_heads;
    const bool real = scratch->base != NULL;
    step->heads = dp_scratch_take(scratch, n_heads * sizeof *step->heads);
    float *const q = dp_scratch_take(scratch, n_heads * rows * s->format.key_dim * sizeof *q);
    step->n_tasks = 0;
    for (size_t h = 0; h < n_heads; h++) {
        const dp_head *const head = &step->layer->heads[h];
        dp_head_step plan = {.head = head, .n_positions = step->sparse ? (size_t)head->n_panels * DP_PANEL : 0};
        const size_t positions = plan.n_positions * sizeof(float);
        if (q) plan.q = q + h * rows * s->format.key_dim;
        plan.offset = dp_scratch_take(scratch, rows * s->format.key_dim * sizeof *plan.offset);
        plan.variance = dp_scratch_take(scratch, rows * sizeof *plan.variance);
        plan.score = dp_scratch_take(scratch, rows * positions);
        plan.mass = dp_scratch_take(scratch, rows * positions);
        const size_t capped = s->config.softcap > 0 ? rows * plan.n_positions : 0;
        plan.cap_slope = dp_scratch_take(scratch, capped * sizeof *plan.cap_slope);
        plan.spread = dp_scratch_take(scratch, capped * sizeof *plan.spread);
        plan.error = dp_scratch_take(scratch, positions);
        plan.joint = dp_scratch_take(scratch, positions);
        plan.rank = dp_scratch_take(scratch, positions);
        plan.flags = dp_scratch_take(scratch, plan.n_positions);
        plan.reference = dp_scratch_take(scratch, rows * sizeof *plan.reference);
        plan.dropped = dp_scratch_take(scratch, rows * sizeof *plan.dropped);
        plan.exact_share = dp_scratch_take(scratch, rows * sizeof *plan.exact_share);
        plan.pieces_capacity = dp_pieces_capacity(step, head);
        plan.pieces = dp_scratch_take(scratch, plan.pieces_capacity * sizeof *plan.pieces);
        const size_t scannable = step->sparse && s->format.has_codes ? head->clustered : 0;
        plan.codes = dp_scratch_take(scratch, rows * s->format.key_dim * DP_CODE_GROUP);
        plan.sum_of_codes = dp_scratch_take(scratch, rows * sizeof *plan.sum_of_codes);
        plan.code_factor = dp_scratch_take(scratch, rows * sizeof *plan.code_factor);
        plan.sign_table = dp_scratch_take(scratch, rows * 4 * s->format.key_dim);
        plan.sign_centre = dp_scratch_take(scratch, rows * sizeof *plan.sign_centre);
        plan.sign_factor = dp_scratch_take(scratch, rows * sizeof *plan.sign_factor);
        plan.deviation = dp_scratch_take(scratch, rows * sizeof *plan.deviation);
        plan.total = dp_scratch_take(scratch, rows * sizeof *plan.total);
        plan.token_limit = dp_scratch_take(scratch, rows * sizeof *plan.token_limit);
        plan.logit_limit = dp_scratch_take(scratch, rows * sizeof *plan.logit_limit);
        plan.mean_logit = dp_scratch_take(scratch, head->n_segments * rows * sizeof *plan.mean_logit);
        plan.scanned = dp_scratch_take(scratch, (scannable ? plan.n_positions : 0) * sizeof *plan.scanned);
        plan.wanted = dp_scratch_take(scratch, scannable);
        plan.estimated = dp_scratch_take(scratch, plan.n_positions * sizeof *plan.estimated);
        plan.estimates = dp_scratch_take(scratch, (head->n_segments + (size_t)1) * sizeof *plan.estimates);
        plan.items_capacity = dp_items_capacity(step, head);
        plan.items = dp_scratch_take(scratch, plan.items_capacity * sizeof *plan.items);
        plan.partials = dp_scratch_take(scratch, plan.items_capacity * dp_partial_floats(step) * sizeof *plan.partials);
        if (real) step->heads[h] = plan;
        if (step->sparse) step->n_tasks += dp_score_count_tasks(head);
    }
    step->tasks = dp_scratch_take(scratch, step->n_tasks * sizeof *step->tasks);
    step->task_max = dp_scratch_take(scratch, step->n_tasks * rows * sizeof *step->task_max);
}

/* Pages of their own for all threads, used from the same place on. A load of a row waits for a store whose address has the same
 * last bits: dense attention at 128K tokens, two threads, takes 19.5 ms from here on, 19.9 to 21.1 from other places, and up to
 * 22.5 wherever the memory happens to be. */
static void take_thread_scratch(batch *b, dp_scratch *scratch)
{
    enum { PAGE = 4096, START = 3072 };
    b->thread_bytes = (b->thread_bytes + PAGE - 1) / PAGE * PAGE;
    const uintptr_t taken =
        (uintptr_t)dp_scratch_take(scratch, 2 * PAGE + b->thread_bytes * (size_t)dp_team_size(b->runtime));
    b->thread_scratch = (char *)((taken + PAGE - 1) / PAGE * PAGE + START);
}

/* Likewise, what the batch has besides. */
static void carve_batch(batch *b, dp_scratch *scratch)
{
    b->units = dp_scratch_take(scratch, b->n_units * sizeof *b->units);
    b->first_unit = dp_scratch_take(scratch, ((size_t)b->n_arenas + 1) * sizeof *b->first_unit);
    b->tickets = dp_scratch_take(scratch, STAGES * (size_t)b->n_arenas * sizeof *b->tickets);
    take_thread_scratch(b, scratch);
}

/* Collects the queries by KV head, and lists what is known before any work. */
static void plan_step(dp_step *step)
{
    const dp_sequence *const s = step->sequence;
    const size_t dim = s->format.key_dim, group = s->group;
    uint32_t next_task = 0;
    for (size_t h = 0; h < s->config.n_kv_heads; h++) {
        dp_head_step *const head = &step->heads[h];
        float *const q = (float *)head->q;
        for (size_t i = 0; i < step->n_queries; i++)
            memcpy(q + i * group * dim, step->q + (i * s->config.n_query_heads + h * group) * dim,
                   group * dim * sizeof *q);
        for (size_t r = 0; r < step->rows; r++)
            head->variance[r] =
                s->scale * s->scale *
                dp_queries_offset(&head->head->queries, step->kernels, dim, q + r * dim, head->offset + r * dim);
        dp_pieces_exact(step, head);
        if (step->sparse) dp_score_plan(step, h, &next_task);
    }
}

static int bits_of(uint64_t n)
{
    int bits = 0;
    for (; n; n >>= 1) bits++;
    return bits;
}

/* Lists the units. Long contexts come first, by powers of two: their stages should not begin when the others are done. */
static void plan_batch(batch *b)
{
    for (int i = 0; i < STAGES * b->n_arenas; i++) atomic_init(&b->tickets[i].next, 0);
    size_t n = 0;
    for (int arena = 0; arena < b->n_arenas; arena++) {
        b->first_unit[arena] = n;
        for (int bits = 64; bits >= 0; bits--)
            for (size_t i = 0; i < b->n_steps; i++) {
                dp_step *const step = &b->steps[i];
                if (bits_of(step->layer->n_tokens) != bits) continue;
                for (size_t h = 0; h < step->sequence->config.n_kv_heads; h++)
                    if (step->layer->heads[h].arena == arena) b->units[n++] = (unit){.step = step, .kv_head = h};
            }
    }
    b->first_unit[b->n_arenas] = n;
}

/* ---- Handing out work ----
 * Every stage is a list of numbered tasks per NUMA node (the units of one arena); a member takes those of its own node
 * first, then helps the others. */

typedef struct worker {
    batch *batch;
    int node, n_threads;
    void *scratch;
} worker;

typedef size_t (*count_fn)(const dp_step *step, size_t kv_head);
typedef void (*task_fn)(const dp_step *step, size_t kv_head, size_t task);

/* The tasks of a stage as a member comes by them: of arena number `turn` from its own on, with `tasks`, whose units
 * [unit, last) are left and have tickets from `before` on. The member has tickets [ticket, end). */
typedef struct task_source {
    int stage, turn;
    count_fn count;
    size_t unit, last, before, tasks, ticket, end;
} task_source;

static task_source start_stage(int stage, count_fn count)
{
    return (task_source){.stage = stage, .turn = -1, .count = count};
}

static size_t count_tasks(const batch *b, const task_source *s)
{
    size_t n = 0;
    for (size_t u = s->unit; u < s->last; u++) n += s->count(b->units[u].step, b->units[u].kv_head);
    return n;
}

/* Neighbouring tasks at a time, fewer and fewer towards the end: their rows mostly follow one another in memory, and where a
 * member's rows do not, it waits (dense, 128K tokens, two threads, 128 KiB to 512 KiB a task: 6 us for each task that does
 * not go on where the last one ended). */
static void take_tickets(const worker *w, task_source *s, dp_ticket *ticket)
{
    enum { TURNS = 4 }; /* of each member, if all are as fast */
    const size_t taken = atomic_load_explicit(&ticket->next, memory_order_relaxed);
    const size_t share = taken < s->tasks ? (s->tasks - taken) / (TURNS * (size_t)w->n_threads) : 0;
    s->ticket = dp_tickets_take(ticket, share ? share : 1);
    s->end = s->ticket + (share ? share : 1);
}

/* False when there is no more. */
static bool take_task(const worker *w, task_source *s, unit *of, size_t *task)
{
    const batch *const b = w->batch;
    for (;;) {
        if (s->unit == s->last && ++s->turn >= b->n_arenas) return false;
        const int arena = (w->node + s->turn) % b->n_arenas;
        if (s->unit == s->last) {
            s->unit = b->first_unit[arena];
            s->last = b->first_unit[arena + 1];
            s->tasks = count_tasks(b, s);
            s->before = s->ticket = s->end = 0;
            continue;
        }
        if (s->ticket == s->end) take_tickets(w, s, &b->tickets[s->stage * b->n_arenas + arena]);
        const size_t ticket = s->ticket++;
        for (size_t n; s->unit < s->last; s->unit++, s->before += n) {
            n = s->count(b->units[s->unit].step, b->units[s->unit].kv_head);
            if (ticket - s->before < n) break;
        }
        if (s->unit == s->last) continue;
        *of = b->units[s->unit];
        *task = ticket - s->before;
        return true;
    }
}

static void run_stage(const worker *w, int stage, count_fn count, task_fn run)
{
    task_source source = start_stage(stage, count);
    unit u;
    for (size_t task; take_task(w, &source, &u, &task);) run(u.step, u.kv_head, task);
}

/* The next item, numbered from first_item(head) on; one without a head when there is no more. */
static dp_gather_task take_item(const worker *w, task_source *source, count_fn first_item)
{
    unit u;
    size_t i;
    if (!take_task(w, source, &u, &i)) return (dp_gather_task){0};
    return (dp_gather_task){u.step, &u.step->heads[u.kv_head], first_item(u.step, u.kv_head) + i};
}

/* Gathers items. A member takes the next item before it works on one, so that the rows at its start are fetched
 * meanwhile. */
static void run_gather(const worker *w, int stage, count_fn count, count_fn first_item)
{
    task_source source = start_stage(stage, count);
    dp_gather_task next, now = take_item(w, &source, first_item);
    for (; now.head; now = next) {
        next = take_item(w, &source, first_item);
        dp_gather_item(now, next, w->scratch);
    }
}

static size_t count_scores(const dp_step *step, size_t h)
{
    return step->heads[h].n_tasks;
}
static void run_score(const dp_step *step, size_t h, size_t i)
{
    const size_t task = step->heads[h].first_task + i;
    dp_score_run(step, &step->tasks[task], step->task_max + task * step->rows);
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
static void run_select(const dp_step *step, size_t h, size_t i)
{
    (void)i;
    if (step->sparse) dp_select(step, &step->heads[h]);
}
static void run_list(const dp_step *step, size_t h, size_t i)
{
    (void)i;
    if (step->sparse) {
        dp_sum_dropped(step, &step->heads[h]);
        dp_pieces_selected(step, &step->heads[h]);
    } else {
        dp_pieces_all(step, &step->heads[h]);
    }
}

static size_t count_scans(const dp_step *step, size_t h)
{
    return step->sparse ? dp_scan_count_tasks(&step->heads[h]) : 0;
}
static void run_scans(const worker *w)
{
    task_source source = start_stage(STAGE_SCAN, count_scans);
    unit u;
    for (size_t task; take_task(w, &source, &u, &task);)
        dp_scan_run(u.step, &u.step->heads[u.kv_head], task, w->scratch);
}

static size_t count_rows(const dp_step *step, size_t h)
{
    (void)h;
    return step->rows;
}
static void run_merge(const dp_step *step, size_t h, size_t i)
{
    dp_merge_row(step, h, i);
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void batch_worker(void *argument, int thread, int n_threads)
{
    batch *const b = argument;
    const worker w = {.batch = b,
                      .node = dp_team_node(b->runtime, thread, n_threads),
                      .n_threads = n_threads,
                      .scratch = b->thread_scratch + (size_t)thread * b->thread_bytes};
    uint64_t t[6];
    t[0] = now_ns();
    run_stage(&w, STAGE_SCORE, count_scores, run_score);
    run_gather(&w, STAGE_EXACT, count_exact, no_items);
#pragma omp barrier
    t[1] = now_ns();
    run_stage(&w, STAGE_SELECT, count_one, run_select);
#pragma omp barrier
    t[2] = now_ns();
    run_scans(&w);
#pragma omp barrier
    run_stage(&w, STAGE_LIST, count_one, run_list);
#pragma omp barrier
    t[3] = now_ns();
    run_gather(&w, STAGE_GATHER, count_rest, count_exact);
#pragma omp barrier
    t[4] = now_ns();
    run_stage(&w, STAGE_MERGE, count_rows, run_merge);
#pragma omp barrier
    t[5] = now_ns();
    if (thread == 0)
        for (int i = 0; i < 5; i++) b->ns[i] = t[i + 1] - t[i];
}

static void fill_stats(const batch *b, const dp_step *step, dp_attention_stats *stats)
{
    const dp_sequence *const s = step->sequence;
    const dp_row_format *const f = &s->format;
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
        stats->bytes_codes += c->bytes_codes;
        stats->bytes_rows += c->bytes_rows;
        for (size_t i = 0; i < step->heads[h].n_items; i++)
            stats->bytes_means += step->heads[h].items[i].n_slopes * f->key_dim * (f->value_dim + sizeof(float));
        for (uint32_t i = 0; step->sparse && i < step->heads[h].head->n_segments; i++)
            stats->clusters += step->heads[h].head->segments[i].n_clusters;
        for (size_t r = 0; r < step->rows; r++) exact_share += step->heads[h].exact_share[r];
    }
    stats->sparse = step->sparse;
    stats->tokens = step->layer->n_tokens;
    stats->mass_exact = exact_share / (double)(s->config.n_kv_heads * step->rows);
    stats->mass_estimated = 1 - stats->mass_exact;
    stats->bytes = stats->bytes_centroids + stats->bytes_means + stats->bytes_codes + stats->bytes_rows;
    stats->bytes_dense = step->layer->n_tokens * s->config.n_kv_heads * (f->key_bytes + f->value_bytes);
    stats->ns_score = b->ns[0];
    stats->ns_select = b->ns[1];
    stats->ns_scan = b->ns[2];
    stats->ns_gather = b->ns[3];
    stats->ns_merge = b->ns[4];
}

/* ---- Calls ---- */

dp_status dp_step_refuse(const dp_step *step, const char *format, ...)
{
    char text[DP_MESSAGE_SIZE];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (step->request == alone) return dp_fail(step->runtime, DP_ERR_INVALID, "dp_decode: %s", text);
    return dp_fail(step->runtime, DP_ERR_INVALID, "dp_decode_batch: request %zu: %s", step->request, text);
}

/* Checks a request and settles what the step is to do. */
static dp_status prepare(dp_step *step, const dp_decode_request *r)
{
    dp_sequence *const s = r->sequence;
    step->sequence = s;
    if (!s) return dp_step_refuse(step, "sequence is NULL");
    if (s->runtime != step->runtime) return dp_step_refuse(step, "the sequence is of another runtime");
    if (r->layer >= s->config.n_layers) return dp_step_refuse(step, "layer %u of %u", r->layer, s->config.n_layers);
    if (!r->q || !r->out) return dp_step_refuse(step, "q or out is NULL");
    if (!r->n_queries || r->n_queries > DP_MAX_DECODE_QUERIES)
        return dp_step_refuse(step, "n_queries is %zu, must be in [1, %d]", r->n_queries, DP_MAX_DECODE_QUERIES);
    if (r->stats && !dp_struct_size_ok(r->stats, sizeof *r->stats))
        return dp_step_refuse(step, "stats->struct_size is %u; call dp_attention_stats_init first",
                              r->stats->struct_size);
    const dp_status status = dp_params_settle(step, r->params);
    if (status) return status;
    step->layer = &s->layers[r->layer];
    const size_t unclustered = dp_unclustered(s, step->layer);
    if (r->n_queries > unclustered)
        return dp_step_refuse(step, "n_queries is %zu, but only the last %zu tokens can be queried", r->n_queries,
                              unclustered);
    step->kernels = &s->runtime->kernels;
    step->sparse = step->params.method == DP_DOUBLE_P && !step->layer->dense && dp_has_clusters(s, step->layer) &&
                   step->layer->n_tokens >= step->params.min_context;
    step->n_queries = r->n_queries;
    step->rows = r->n_queries * s->group;
    step->q = r->q;
    step->out = r->out;
    step->lse = r->lse;
    return DP_OK;
}

/* Request i; callers of an older version have shorter structs. */
static dp_decode_request request_at(const dp_decode_request *requests, size_t i)
{
    dp_decode_request r;
    dp_decode_request_init(&r);
    (void)DP_STRUCT_IN(&r, (const void *)((const char *)requests + i * requests->struct_size));
    return r;
}

static dp_status run(dp_runtime *rt, bool single, size_t n, const dp_decode_request *requests, dp_observe_fn observe,
                     void *user)
{
    batch b = {.runtime = rt, .n_steps = n};
    /* All steps on an empty scratch: whether they can be done, and how much memory they take. */
    dp_scratch measured = {0};
    (void)dp_scratch_take(&measured, n * sizeof *b.steps);
    for (size_t i = 0; i < n; i++) {
        const dp_decode_request r = request_at(requests, i);
        dp_step step = {.runtime = rt, .request = single ? alone : i};
        const dp_status status = prepare(&step, &r);
        if (status) return status;
        carve_step(&step, &measured);
        b.n_units += step.sequence->config.n_kv_heads;
        b.n_arenas = step.sequence->n_arenas;
        const size_t gather = dp_gather_scratch_bytes(&step), scan = dp_scan_scratch_bytes(&step);
        const size_t bytes = ((gather > scan ? gather : scan) + 63) & ~(size_t)63;
        if (bytes > b.thread_bytes) b.thread_bytes = bytes;
    }
    carve_batch(&b, &measured);
    dp_scratch *const scratch = dp_scratch_acquire(rt, measured.used);
    if (!scratch)
        return dp_no_memory(rt, "%s: no memory for %zu bytes of scratch", single ? "dp_decode" : "dp_decode_batch",
                            measured.used);

    b.steps = dp_scratch_take(scratch, n * sizeof *b.steps);
    for (size_t i = 0; i < n; i++) {
        const dp_decode_request r = request_at(requests, i);
        b.steps[i] = (dp_step){.runtime = rt, .request = single ? alone : i};
        (void)prepare(&b.steps[i], &r);
        carve_step(&b.steps[i], scratch);
        plan_step(&b.steps[i]);
    }
    carve_batch(&b, scratch);
    plan_batch(&b);
    dp_team_run(rt, batch_worker, &b);
    for (size_t i = 0; i < n; i++) {
        const dp_decode_request r = request_at(requests, i);
        if (!r.stats) continue;
        dp_attention_stats full;
        fill_stats(&b, &b.steps[i], &full);
        (void)DP_STRUCT_OUT(r.stats, &full);
    }
    if (observe) observe(user, &b.steps[0]);
    dp_scratch_release(rt, scratch);
    return DP_OK;
}

void dp_decode_request_init(dp_decode_request *request)
{
    memset(request, 0, sizeof *request);
    request->struct_size = sizeof *request;
    request->n_queries = 1;
}

dp_status dp_decode_batch(dp_runtime *rt, size_t n_requests, const dp_decode_request *requests)
{
    if (!rt) return dp_fail(NULL, DP_ERR_INVALID, "dp_decode_batch: runtime is NULL");
    if (!n_requests) return DP_OK;
    if (!requests) return dp_fail(rt, DP_ERR_INVALID, "dp_decode_batch: requests is NULL");
    const uint32_t size = requests->struct_size;
    for (size_t i = 0; i < n_requests; i++) {
        const void *const r = (const char *)requests + i * size;
        if (dp_struct_size(r) != size || !dp_struct_size_ok(r, sizeof *requests) || size % _Alignof(dp_decode_request))
            return dp_fail(rt, DP_ERR_INVALID,
                           "dp_decode_batch: request %zu: struct_size is %u; call dp_decode_request_init first", i,
                           dp_struct_size(r));
    }
    return run(rt, false, n_requests, requests, NULL, NULL);
}

dp_status dp_decode_observed(dp_sequence *s, uint32_t layer, size_t n_queries, const float *q,
                             const dp_attention_params *params, float *out, float *lse, dp_attention_stats *stats,
                             dp_observe_fn observe, void *user)
{
    if (!s) return dp_fail(NULL, DP_ERR_INVALID, "dp_decode: sequence is NULL");
    const dp_decode_request request = {.struct_size = sizeof request,
                                       .sequence = s,
                                       .layer = layer,
                                       .n_queries = n_queries,
                                       .q = q,
                                       .params = params,
                                       .out = out,
                                       .lse = lse,
                                       .stats = stats};
    return run(s->runtime, true, 1, &request, observe, user);
}

dp_status dp_decode(dp_sequence *s, uint32_t layer, size_t n_queries, const float *q, const dp_attention_params *params,
                    float *out, float *lse, dp_attention_stats *stats)
{
    return dp_decode_observed(s, layer, n_queries, q, params, out, lse, stats, NULL, NULL);
}
