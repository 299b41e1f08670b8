/* dp_decode and dp_decode_batch: checks, memory and figures of the requests' steps. A dp_decode is a batch of one. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "attention/pipeline.h"
#include "runtime/structs.h"

static const size_t alone = SIZE_MAX; /* request number of a dp_decode */

/* Carves what a step keeps to its end; run once on an empty scratch to learn the size. */
static void carve_step(dp_step *step, dp_scratch *scratch)
{
    const size_t n_heads = step->sequence->config.n_kv_heads;
    step->heads = dp_scratch_take(scratch, n_heads * sizeof *step->heads);
    step->n_tasks = 0;
    for (size_t h = 0; h < n_heads; h++) {
        const dp_head *const head = &step->layer->heads[h];
        const uint32_t first = (uint32_t)step->n_tasks, n = step->sparse ? dp_score_count_tasks(head) : 0;
        if (scratch->base) step->heads[h] = (dp_head_step){.head = head, .first_task = first, .n_tasks = n};
        step->n_tasks += n;
    }
    step->tasks = dp_scratch_take(scratch, step->n_tasks * sizeof *step->tasks);
    step->task_max = dp_scratch_take(scratch, step->n_tasks * step->rows * sizeof *step->task_max);
    step->exact_share = dp_scratch_take(scratch, n_heads * step->rows * sizeof *step->exact_share);
}

static uint64_t mean_ns(const dp_pipeline *p, int part)
{
    return atomic_load_explicit(&p->ns[part], memory_order_relaxed) / (uint64_t)p->n_members;
}

static void fill_stats(const dp_pipeline *p, const dp_step *step, dp_attention_stats *stats)
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
        for (uint32_t i = 0; step->sparse && i < step->heads[h].head->n_segments; i++)
            stats->clusters += step->heads[h].head->segments[i].n_clusters;
        for (size_t r = 0; r < step->rows; r++) exact_share += step->exact_share[h * step->rows + r];
    }
    stats->sparse = step->sparse;
    stats->tokens = step->layer->n_tokens;
    stats->mass_exact = exact_share / (double)(s->config.n_kv_heads * step->rows);
    stats->mass_estimated = 1 - stats->mass_exact;
    stats->bytes = stats->bytes_centroids + stats->bytes_means + stats->bytes_codes + stats->bytes_rows;
    stats->bytes_dense = step->layer->n_tokens * s->config.n_kv_heads * (f->key_bytes + f->value_bytes);
    stats->ns_score = mean_ns(p, DP_TIME_SCORE);
    stats->ns_select = mean_ns(p, DP_TIME_SELECT);
    stats->ns_scan = mean_ns(p, DP_TIME_SCAN);
    stats->ns_gather = mean_ns(p, DP_TIME_GATHER);
    stats->ns_merge = mean_ns(p, DP_TIME_MERGE);
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
    if (!step->layer->n_tokens) return dp_step_refuse(step, "layer %u has no tokens: dp_append comes first", r->layer);
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
    dp_pipeline p = {.runtime = rt, .n_steps = n};
    /* All steps on an empty scratch: whether they can be done, and how much memory they take. */
    dp_scratch measured = {0};
    (void)dp_scratch_take(&measured, n * sizeof *p.steps);
    for (size_t i = 0; i < n; i++) {
        const dp_decode_request r = request_at(requests, i);
        dp_step step = {.runtime = rt, .request = single ? alone : i};
        const dp_status status = prepare(&step, &r);
        if (status) return status;
        carve_step(&step, &measured);
        for (size_t h = 0; h < step.sequence->config.n_kv_heads; h++) {
            dp_head_step head = {.head = &step.layer->heads[h]};
            dp_scratch slot = {0};
            dp_pipeline_carve_head(&step, &head, &slot);
            if (slot.used > p.slot_bytes) p.slot_bytes = slot.used;
        }
        p.n_units += step.sequence->config.n_kv_heads;
        p.n_arenas = step.sequence->n_arenas;
        const size_t gather = dp_gather_scratch_bytes(&step), scan = dp_scan_scratch_bytes(&step);
        const size_t bytes = ((gather > scan ? gather : scan) + 63) & ~(size_t)63;
        if (bytes > p.thread_bytes) p.thread_bytes = bytes;
    }
    p.keeps_slots = observe != NULL;
    p.n_slots = p.keeps_slots || p.n_units < (size_t)dp_team_size(rt) ? p.n_units : (size_t)dp_team_size(rt);
    dp_pipeline_carve(&p, &measured);
    dp_scratch *const scratch = dp_scratch_acquire(rt, measured.used);
    if (!scratch)
        return dp_no_memory(rt, "%s: no memory for %zu bytes of scratch", single ? "dp_decode" : "dp_decode_batch",
                            measured.used);

    p.steps = dp_scratch_take(scratch, n * sizeof *p.steps);
    for (size_t i = 0; i < n; i++) {
        const dp_decode_request r = request_at(requests, i);
        p.steps[i] = (dp_step){.runtime = rt, .request = single ? alone : i};
        (void)prepare(&p.steps[i], &r);
        carve_step(&p.steps[i], scratch);
    }
    dp_pipeline_carve(&p, scratch);
    dp_pipeline_run(&p);
    for (size_t i = 0; i < n; i++) {
        const dp_decode_request r = request_at(requests, i);
        if (!r.stats) continue;
        dp_attention_stats full;
        fill_stats(&p, &p.steps[i], &full);
        (void)DP_STRUCT_OUT(r.stats, &full);
    }
    if (observe) observe(user, &p.steps[0]);
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
