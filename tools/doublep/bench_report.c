/* bench_report.c: the figures of a run as a table and as JSON. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "bench.h"
#include "options.h"

static const char *const stage_names[BENCH_STAGES] = {"scores_ms", "select_ms", "scan_ms", "gather_ms",
                                                        "merge_ms"};

static double gbps(const bench_method_figures *f)
{
    return f->ms.median > 0 ? f->bytes / f->ms.median * 1e-6 : 0;
}

static double limit_share(const bench_method_figures *f)
{
    return f->ms.median > 0 ? f->limit_ms / f->ms.median : 0;
}

/* The dense method's figures, or NULL. */
static const bench_method_figures *dense_figures(const bench_settings *s, const bench_figures *f)
{
    const size_t dense = bench_dense(s);
    return dense < s->methods.count ? &f->methods[dense] : NULL;
}

/* ---- Table -------------------------------------------------------------------------------------------------------- */

void bench_print_machine(const bench_machine *machine)
{
    const dp_runtime_info *const info = &machine->info;
    printf("machine     %s%s, %d thread%s, L3 %llu KiB\n", dp_isa_name(info->isa),
           info->bf16_instructions ? " with BF16 instructions" : "", info->n_threads, info->n_threads == 1 ? "" : "s",
           (unsigned long long)info->l3_bytes / 1024);
    printf("counters    %s\n", machine->counters.kind);
}

static void print_bandwidth(const bench_machine *machine)
{
    printf("bandwidth   stream %.2f GB/s; gather", machine->stream_gbps);
    for (size_t i = 0; i < BENCH_RUN_LENGTHS; i++)
        printf("%s %zu B: %.2f", i ? "," : "", bench_run_bytes(i), machine->gather_gbps[i]);
    printf(" GB/s\n");
}

static void print_methods(const bench_settings *s, const bench_figures *f)
{
    const bench_method_figures *const dense = dense_figures(s, f);
    printf("\n%-20s %9s %9s %9s %8s %9s %7s %9s %6s %9s\n", "method", "median ms", "p10", "p90", "x dense", "MB read",
           "GB/s", "limit ms", "share", "rel.error");
    for (size_t m = 0; m < s->methods.count; m++) {
        const bench_method_figures *const x = &f->methods[m];
        printf("%-20s %9.3f %9.3f %9.3f ", s->methods.list[m].label, x->ms.median, x->ms.p10, x->ms.p90);
        if (dense)
            printf("%8.2f ", dense->ms.median / x->ms.median);
        else
            printf("%8s ", "-");
        printf("%9.2f %7.2f %9.3f %5.1f%% ", x->bytes * 1e-6, gbps(x), x->limit_ms, 100 * limit_share(x));
        if (x->rel_error >= 0)
            printf("%9.4f\n", x->rel_error);
        else
            printf("%9s\n", "-");
    }
    printf("\n%-20s %9s %9s %9s %9s %9s   %9s %9s %9s %9s %9s %9s\n", "method", "scores ms", "select", "scan", "gather",
           "merge", "centr. MB", "means MB", "codes MB", "rows MB", "run bytes", "refined");
    for (size_t m = 0; m < s->methods.count; m++) {
        const bench_method_figures *const x = &f->methods[m];
        printf("%-20s", s->methods.list[m].label);
        const bool baseline = x->stages_ms[3] <= 0; /* its bytes are those of its index and of rows */
        for (size_t i = 0; i < BENCH_STAGES; i++)
            baseline ? printf(" %9s", "-") : printf(" %9.3f", x->stages_ms[i]);
        printf("   %9.3f ", x->bytes_centroids * 1e-6);
        baseline ? printf("%9s %9s ", "-", "-") : printf("%9.3f %9.3f ", x->bytes_means * 1e-6, x->bytes_codes * 1e-6);
        printf("%9.3f ", x->bytes_rows * 1e-6);
        if (x->clusters > 0)
            printf("%9.0f %8.2f%%\n", x->run_bytes, 100 * x->clusters_refined / x->clusters);
        else
            printf("%9s %9s\n", "-", "-");
    }
}

static void print_counters(const bench_settings *s, const bench_machine *machine, const bench_figures *f)
{
    if (machine->counters.n == 0)
        return;
    printf("\n%-20s", "per step");
    for (size_t c = 0; c < machine->counters.n; c++)
        printf(" %17s", machine->counters.names[c]);
    printf("\n");
    for (size_t m = 0; m < s->methods.count; m++) {
        printf("%-20s", s->methods.list[m].label);
        for (size_t c = 0; c < machine->counters.n; c++)
            printf(" %17.1f", f->methods[m].counts[c]);
        printf("\n");
    }
}

void bench_print(const bench_settings *s, const bench_machine *machine, const bench_figures *f)
{
    bench_attention look = f->attention;
    const bench_spread held = bench_spread_of(look.tokens_90, look.n_heads);
    printf("\n%s: %u query heads, %u KV heads, d %u, %s; %llu tokens, %u layers, %zu steps\n", s->shape.name,
           s->shape.n_query_heads, s->shape.n_kv_heads, s->shape.dim, kv_type_name(s->type),
           (unsigned long long)f->context, f->n_layers, f->steps);
    print_bandwidth(machine);
    printf("inputs      %s\n", f->label);
    printf("attention   90 %% of a head's mass lies in %.0f (p10) / %.0f (median) / %.0f (p90) tokens; sinks hold %.0f %%, the "
           "last tokens %.0f %%\n", held.p10, held.median, held.p90, 100 * look.sink_share, 100 * look.window_share);
    print_methods(s, f);
    print_counters(s, machine, f);
    if (f->build_ms > 0)
        printf("\nindex       %.0f ms a layer, %.0f tokens/s; storing keys and values: %.0f ms\n", f->build_ms,
               f->build_tokens_per_s, f->store_ms);
    printf("growth      %zu tokens: append %.4f ms per token and layer, %.2f %% of the time; step of all layers: median "
           "%.3f ms, worst %.3f ms\n", f->append.tokens, f->append.append_ms, 100 * f->append.share,
           f->append.median_step_ms, f->append.worst_step_ms);
    printf("            of a step at most %.3f ms are appending, %.3f ms attention; taking their memory before: %.1f ms\n",
           f->append.worst_append_ms, f->append.worst_attention_ms, f->append.reserve_ms);
    if (f->append.preempted_steps > 0 && f->append.worst_undisturbed_step_ms >= 0)
        printf("            the system took a core away in %zu steps; worst of the others: %.3f ms\n",
               f->append.preempted_steps, f->append.worst_undisturbed_step_ms);
    if (f->memory.clusters > 0)
        printf("memory      %.3f x the plain size, %.1f tokens a cluster\n",
               (double)f->memory.reserved_bytes / (double)f->memory.plain_bytes,
               (double)f->memory.clustered_tokens / (double)f->memory.clusters);
    fflush(stdout);
}

/* ---- JSON --------------------------------------------------------------------------------------------------------- */

static void set_real(json_t *object, const char *name, double value)
{
    json_object_set_new(object, name, isfinite(value) ? json_real(value) : json_null());
}

static json_t *json_machine(const bench_machine *machine)
{
    json_t *const object = json_object(), *const gather = json_object(), *const names = json_array();
    for (size_t i = 0; i < BENCH_RUN_LENGTHS; i++) {
        char length[32];
        snprintf(length, sizeof(length), "%zu", bench_run_bytes(i));
        set_real(gather, length, machine->gather_gbps[i]);
    }
    for (size_t c = 0; c < machine->counters.n; c++)
        json_array_append_new(names, json_string(machine->counters.names[c]));
    json_object_set_new(object, "isa", json_string(dp_isa_name(machine->info.isa)));
    json_object_set_new(object, "threads", json_integer(machine->info.n_threads));
    json_object_set_new(object, "l3_bytes", json_integer((json_int_t)machine->info.l3_bytes));
    set_real(object, "stream_gbps", machine->stream_gbps);
    json_object_set_new(object, "gather_gbps", gather);
    json_object_set_new(object, "counters", json_pack("{s:s, s:o}", "kind", machine->counters.kind, "names", names));
    return object;
}

static json_t *json_method(const bench_settings *s, const bench_machine *machine, const bench_figures *f, size_t m)
{
    const bench_method_figures *const x = &f->methods[m], *const dense = dense_figures(s, f);
    json_t *const object = json_object(), *const stages = json_object(), *const counts = json_object();
    json_object_set_new(object, "name", json_string(s->methods.list[m].label));
    json_object_set_new(object, "settings", eval_method_params(&s->methods.list[m]));
    set_real(object, "ms_median", x->ms.median);
    set_real(object, "ms_p10", x->ms.p10);
    set_real(object, "ms_p90", x->ms.p90);
    if (dense)
        set_real(object, "speedup", dense->ms.median / x->ms.median);
    set_real(object, "bytes", x->bytes);
    set_real(object, "bytes_centroids", x->bytes_centroids);
    set_real(object, "bytes_means", x->bytes_means);
    set_real(object, "bytes_codes", x->bytes_codes);
    set_real(object, "bytes_rows", x->bytes_rows);
    set_real(object, "bytes_dense", x->bytes_dense);
    set_real(object, "run_bytes", x->run_bytes);
    set_real(object, "gbps", gbps(x));
    set_real(object, "limit_ms", x->limit_ms);
    set_real(object, "limit_share", limit_share(x));
    for (size_t i = 0; i < BENCH_STAGES; i++)
        set_real(stages, stage_names[i], x->stages_ms[i]);
    json_object_set_new(object, "stages", stages);
    set_real(object, "rel_error", x->rel_error >= 0 ? x->rel_error : NAN);
    set_real(object, "rel_error_max", x->rel_error >= 0 ? x->rel_error_max : NAN);
    set_real(object, "clusters", x->clusters);
    set_real(object, "clusters_estimated", x->clusters_estimated);
    set_real(object, "clusters_refined", x->clusters_refined);
    set_real(object, "tokens_refined", x->tokens_refined);
    set_real(object, "tokens_exact", x->tokens_exact);
    for (size_t c = 0; c < machine->counters.n; c++)
        set_real(counts, machine->counters.names[c], x->counts[c]);
    json_object_set_new(object, "counters", counts);
    return object;
}

static json_t *json_context(const bench_settings *s, const bench_machine *machine, const bench_figures *f)
{
    json_t *const object = json_object(), *const methods = json_array(), *const held = json_array();
    json_object_set_new(object, "context", json_integer((json_int_t)f->context));
    json_object_set_new(object, "layers", json_integer(f->n_layers));
    json_object_set_new(object, "steps", json_integer((json_int_t)f->steps));
    json_object_set_new(object, "inputs", json_string(f->label));
    for (size_t m = 0; m < s->methods.count; m++)
        json_array_append_new(methods, json_method(s, machine, f, m));
    json_object_set_new(object, "methods", methods);
    json_t *const build = json_object();
    set_real(build, "ms", f->build_ms > 0 ? f->build_ms : NAN);
    set_real(build, "tokens_per_s", f->build_ms > 0 ? f->build_tokens_per_s : NAN);
    set_real(build, "store_ms", f->store_ms);
    json_object_set_new(object, "build", build);
    json_t *const append = json_object();
    set_real(append, "ms_per_token", f->append.append_ms);
    set_real(append, "worst_step_ms", f->append.worst_step_ms);
    set_real(append, "reserve_ms", f->append.reserve_ms);
    set_real(append, "worst_append_ms", f->append.worst_append_ms);
    set_real(append, "worst_attention_ms", f->append.worst_attention_ms);
    set_real(append, "worst_undisturbed_step_ms",
             f->append.worst_undisturbed_step_ms >= 0 ? f->append.worst_undisturbed_step_ms : NAN);
    json_object_set_new(append, "preempted_steps", json_integer((json_int_t)f->append.preempted_steps));
    set_real(append, "median_step_ms", f->append.median_step_ms);
    set_real(append, "share", f->append.share);
    json_object_set_new(append, "tokens", json_integer((json_int_t)f->append.tokens));
    json_object_set_new(object, "append", append);
    for (uint32_t h = 0; h < f->attention.n_heads; h++)
        json_array_append_new(held, json_real(f->attention.tokens_90[h]));
    json_t *const attention = json_object();
    json_object_set_new(attention, "tokens_with_90_percent_by_head", held);
    set_real(attention, "sink_share", f->attention.sink_share);
    set_real(attention, "window_share", f->attention.window_share);
    json_object_set_new(object, "attention", attention);
    set_real(object, "memory_ratio", (double)f->memory.reserved_bytes / (double)f->memory.plain_bytes);
    return object;
}

json_t *bench_json(const bench_settings *s, const bench_machine *machine, const bench_figures *figures, size_t n)
{
    /* What was measured at the largest context stands at the top; the sweep has all contexts. */
    json_t *const object = json_context(s, machine, &figures[n - 1]), *const sweep = json_array();
    json_object_set_new(object, "version", json_string(DP_VERSION_STRING));
    json_object_set_new(object, "machine", json_machine(machine));
    json_object_set_new(object, "shape", json_pack("{s:s, s:i, s:i, s:i, s:s}", "name", s->shape.name, "query_heads",
                                                   (int)s->shape.n_query_heads, "kv_heads", (int)s->shape.n_kv_heads,
                                                   "dim", (int)s->shape.dim, "kv", kv_type_name(s->type)));
    for (size_t i = 0; i < n; i++)
        json_array_append_new(sweep, json_context(s, machine, &figures[i]));
    json_object_set_new(object, "sweep", sweep);
    return object;
}
