/* bench_run.c: the measurement for one context: fills the caches, times the steps, then lets the index grow. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "bench.h"
#include "bench_contenders.h"
#include "machine.h"
#include "progress.h"

typedef struct samples {
    double *ms, *stages_ms[BENCH_STAGES]; /* [steps] */
    double error_sum, error_max;
    bench_method_figures sums;
} samples;

typedef struct bench_state {
    const bench_settings *settings;
    bench_machine *machine;
    dp_runtime *runtime;
    bench_source *source;
    contenders *contenders;
    uint32_t n_layers;
    uint64_t n_tokens, step; /* in each layer */
    float *k, *v, *q, *outputs[BENCH_METHODS];
    char *flush; /* memory that is read between timed calls */
    size_t flush_bytes;
    samples samples[BENCH_METHODS];
    char *error;
    size_t error_size;
} bench_state;

static bool fail(bench_state *s, const char *reason)
{
    snprintf(s->error, s->error_size, "%s", reason);
    return false;
}

/* ---- Memory ----------------------------------------------------------------------------------------- */

static uint64_t layer_bytes(const bench_settings *settings, uint64_t tokens)
{
    return tokens * settings->shape.n_kv_heads * 2 * dp_row_bytes(settings->type, settings->shape.dim);
}

/* Enough layers that one is out of the cache long before its turn comes again, in memory that is there. */
static bool choose_layers(bench_state *s, uint64_t context)
{
    static const uint64_t wanted_bytes = 2ull << 30;
    const bench_settings *const settings = s->settings;
    const uint64_t copies = contenders_copies(settings);
    const uint64_t bytes = layer_bytes(settings, context + settings->steps + settings->growth);
    const uint64_t most = s->machine->memory_bytes / (copies * bytes * 6 / 5);
    uint64_t n = settings->n_layers;
    if (n == 0) {
        n = wanted_bytes / bytes;
        n = n < 2 ? 2 : n > 8 ? 8 : n;
        n = n > most && most > 0 ? most : n;
    }
    if (n > most) {
        snprintf(s->error, s->error_size,
                 "%llu tokens in %llu layers need %llu MiB of memory, %llu MiB are free to use",
                 (unsigned long long)context, (unsigned long long)n,
                 (unsigned long long)(n * copies * (bytes * 6 / 5) >> 20),
                 (unsigned long long)s->machine->memory_bytes >> 20);
        return false;
    }
    s->n_layers = (uint32_t)n;
    return true;
}

static bool create_buffers(bench_state *s)
{
    const bench_settings *const settings = s->settings;
    const bench_shape *const shape = &settings->shape;
    const size_t kv_width = (size_t)shape->n_kv_heads * shape->dim, q_width = (size_t)shape->n_query_heads * shape->dim;
    const size_t n_samples = settings->steps + s->n_layers;
    const size_t cache = s->machine->info.l3_bytes > (16u << 20) ? s->machine->info.l3_bytes : 16u << 20;
    s->flush_bytes = 2 * cache;
    s->flush = malloc(s->flush_bytes);
    s->k = malloc(kv_width * sizeof(*s->k));
    s->v = malloc(kv_width * sizeof(*s->v));
    s->q = malloc(q_width * sizeof(*s->q));
    bool done = s->flush && s->k && s->v && s->q;
    for (size_t m = 0; m < settings->methods.count; m++) {
        samples *const own = &s->samples[m];
        s->outputs[m] = calloc(q_width, sizeof(*s->outputs[m]));
        own->ms = calloc(n_samples, sizeof(*own->ms));
        done = done && s->outputs[m] && own->ms;
        for (size_t i = 0; i < BENCH_STAGES; i++) {
            own->stages_ms[i] = calloc(n_samples, sizeof(*own->stages_ms[i]));
            done = done && own->stages_ms[i];
        }
    }
    if (!done)
        return fail(s, "out of memory");
    memset(s->flush, 1, s->flush_bytes);
    return true;
}

static void destroy(bench_state *s)
{
    contenders_free(s->contenders);
    for (size_t m = 0; m < s->settings->methods.count; m++) {
        free(s->outputs[m]);
        free(s->samples[m].ms);
        for (size_t i = 0; i < BENCH_STAGES; i++)
            free(s->samples[m].stages_ms[i]);
    }
    free(s->k);
    free(s->v);
    free(s->q);
    free(s->flush);
    if (s->source)
        s->source->destroy(s->source);
}

/* ---- Steps ------------------------------------------------------------------------------------------------------------ */

/* What is between two attention calls of a model: other memory, more than the cache holds, read by the same threads. */
static void flush_caches(const bench_state *s)
{
    (void)machine_flush(s->flush, s->flush_bytes, s->machine->info.n_threads);
}

static double relative_error(const bench_shape *shape, const float *out, const float *want)
{
    double sum = 0;
    for (size_t h = 0; h < shape->n_query_heads; h++) {
        double error = 0, size = 0;
        for (size_t j = h * shape->dim; j < (h + 1) * shape->dim; j++) {
            error += (double)(out[j] - want[j]) * (double)(out[j] - want[j]);
            size += (double)want[j] * (double)want[j];
        }
        sum += size > 0 ? sqrt(error / size) : error > 0;
    }
    return sum / shape->n_query_heads;
}

static void add_stats(samples *own, size_t at, const dp_attention_stats *stats)
{
    bench_method_figures *const sums = &own->sums;
    const uint64_t ns[BENCH_STAGES] = {stats->ns_score, stats->ns_select, stats->ns_scan, stats->ns_gather,
                                      stats->ns_merge};
    for (size_t i = 0; i < BENCH_STAGES; i++)
        own->stages_ms[i][at] = (double)ns[i] * 1e-6;
    sums->bytes += (double)stats->bytes;
    sums->bytes_centroids += (double)stats->bytes_centroids;
    sums->bytes_means += (double)stats->bytes_means;
    sums->bytes_codes += (double)stats->bytes_codes;
    sums->bytes_rows += (double)stats->bytes_rows;
    sums->bytes_dense += (double)stats->bytes_dense;
    sums->clusters += (double)stats->clusters;
    sums->clusters_estimated += (double)stats->clusters_estimated;
    sums->clusters_refined += (double)stats->clusters_refined;
    sums->tokens_refined += (double)stats->tokens_refined;
    sums->tokens_exact += (double)stats->tokens_exact;
}

/* All methods on one layer, the token in place; `at` is the sample's number. Each attends once more before the caches are
 * flushed: where the kernel of a virtual machine marks pages now and then, to see which are in use (Linux: DAMON), the next
 * access to each can take 160 us. At a model's pace these are few, here, where other memory is read for seconds between two
 * steps of a layer, half of them. */
static bool time_methods(bench_state *s, uint32_t layer, size_t at)
{
    const size_t n_methods = s->settings->methods.count;
    const counters *const counters = &s->machine->counters;
    double before[COUNTERS_MAX], after[COUNTERS_MAX];
    const size_t dense = bench_dense(s->settings);
    for (size_t i = 0; i < n_methods; i++) {
        const size_t m = (at + i) % n_methods; /* who is first changes from step to step */
        samples *const own = &s->samples[m];
        dp_attention_stats stats;
        if (!contenders_attend(s->contenders, m, layer, s->q, s->outputs[m], &stats, &own->ms[at]))
            return false;
        flush_caches(s);
        counters_read(counters, before);
        if (!contenders_attend(s->contenders, m, layer, s->q, s->outputs[m], &stats, &own->ms[at]))
            return false;
        counters_read(counters, after);
        add_stats(own, at, &stats);
        for (size_t c = 0; c < counters->n; c++)
            own->sums.counts[c] += after[c] - before[c];
    }
    for (size_t m = 0; dense < n_methods && m < n_methods; m++) {
        const double error = relative_error(&s->settings->shape, s->outputs[m], s->outputs[dense]);
        s->samples[m].error_sum += error;
        s->samples[m].error_max = fmax(s->samples[m].error_max, error);
    }
    return true;
}

/* The next token of a layer, for one method or for all, and its query. */
static bool append_token(bench_state *s, size_t method, uint32_t layer, double *ms)
{
    s->source->rows(s->source, layer, s->n_tokens, 1, s->k, s->v);
    s->source->query(s->source, layer, s->step, s->n_tokens, s->q);
    return contenders_append(s->contenders, method, layer, s->k, s->v, ms);
}

static bool run_steps(bench_state *s, bench_figures *figures)
{
    const size_t n_tokens = (s->settings->steps + s->n_layers - 1) / s->n_layers;
    double ms = 0;
    figures->steps = n_tokens * s->n_layers;
    progress bar;
    progress_start(&bar, "steps");
    /* The first token is for warming up: scratch memory, the team, pages. */
    for (size_t t = 0; t < n_tokens + 1; t++) {
        for (uint32_t l = 0; l < s->n_layers; l++) {
            if (!append_token(s, SIZE_MAX, l, &ms))
                return false;
            if (t == 0) {
                for (size_t m = 0; m < s->settings->methods.count; m++) {
                    dp_attention_stats stats;
                    if (!contenders_attend(s->contenders, m, l, s->q, s->outputs[m], &stats, &ms))
                        return false;
                }
            } else if (!time_methods(s, l, (t - 1) * s->n_layers + l)) {
                return false;
            }
            progress_show(&bar, t * s->n_layers + l + 1, (n_tokens + 1) * s->n_layers);
        }
        s->n_tokens++;
        s->step++;
    }
    progress_end(&bar);
    return true;
}

/* How often the system took a core from a thread of this process that had more to do. */
static long preemptions(void)
{
    struct rusage usage;
    return getrusage(RUSAGE_SELF, &usage) == 0 ? usage.ru_nivcsw : 0;
}

/* Decoding as a model does it, token after token through all layers with the last method, which knows how many will come. */
static bool run_growth(bench_state *s, bench_growth *growth)
{
    const size_t n = s->settings->growth, method = s->settings->methods.count - 1;
    double append_sum = 0, decode_sum = 0, worst_undisturbed = -1, worst_append = 0, worst_attention = 0;
    size_t preempted = 0;
    double *const steps_ms = calloc(n, sizeof(*steps_ms));
    double reserve_ms = 0;
    bool ok = (steps_ms || fail(s, "out of memory")) && contenders_reserve(s->contenders, method, n, &reserve_ms);
    progress bar;
    progress_start(&bar, "growth");
    for (size_t t = 0; ok && t < n; t++) {
        const long before = preemptions();
        double append_all = 0;
        for (uint32_t l = 0; ok && l < s->n_layers; l++) {
            double append_ms = 0, decode_ms = 0;
            dp_attention_stats stats;
            ok = append_token(s, method, l, &append_ms) &&
                 contenders_attend(s->contenders, method, l, s->q, s->outputs[method], &stats, &decode_ms);
            append_all += append_ms;
            decode_sum += decode_ms;
            steps_ms[t] += append_ms + decode_ms;
        }
        append_sum += append_all;
        worst_append = fmax(worst_append, append_all);
        worst_attention = fmax(worst_attention, steps_ms[t] - append_all);
        if (preemptions() != before)
            preempted++;
        else
            worst_undisturbed = fmax(worst_undisturbed, steps_ms[t]);
        s->n_tokens++;
        s->step++;
        progress_show(&bar, t + 1, n);
    }
    progress_end(&bar);
    if (ok) {
        *growth = (bench_growth){.tokens = n, .reserve_ms = reserve_ms, .append_ms = append_sum / (double)(n * s->n_layers),
                                 .preempted_steps = preempted, .worst_undisturbed_step_ms = worst_undisturbed,
                                 .worst_append_ms = worst_append, .worst_attention_ms = worst_attention};
        growth->share = append_sum / (append_sum + decode_sum);
        growth->median_step_ms = bench_spread_of(steps_ms, n).median;
        growth->worst_step_ms = steps_ms[n - 1]; /* they are sorted now */
    }
    free(steps_ms);
    return ok;
}

/* ---- Figures ------------------------------------------------------------------------------------------------------------ */

/* All in runs: a segment's centroids, mean values, refined clusters' codes, rows. */
static double limit_ms(const bench_state *s, const bench_method_figures *f)
{
    const double segment = bench_run_bytes(BENCH_RUN_LENGTHS - 1); /* some 50 KiB */
    const double mean_value = (double)s->settings->shape.dim * 2;
    if (f->clusters == 0)
        return f->bytes / s->machine->stream_gbps * 1e-6;
    return (f->bytes_centroids / bench_gather_gbps(s->machine, segment) + f->bytes_means / bench_gather_gbps(s->machine, mean_value) +
            f->bytes_codes / bench_gather_gbps(s->machine, f->bytes_codes / fmax(f->clusters_refined, 1)) +
            f->bytes_rows / bench_gather_gbps(s->machine, f->run_bytes)) * 1e-6;
}

static void settle_method(const bench_state *s, size_t method, size_t n, bench_method_figures *f)
{
    const samples *const own = &s->samples[method];
    *f = own->sums;
    double *const means[] = {&f->bytes,    &f->bytes_centroids,    &f->bytes_means,      &f->bytes_codes,    &f->bytes_rows,
                             &f->bytes_dense, &f->clusters, &f->clusters_estimated, &f->clusters_refined, &f->tokens_refined, &f->tokens_exact};
    for (size_t i = 0; i < sizeof(means) / sizeof(means[0]); i++)
        *means[i] /= (double)n;
    for (size_t c = 0; c < COUNTERS_MAX; c++)
        f->counts[c] /= (double)n;
    f->ms = bench_spread_of(own->ms, n);
    for (size_t i = 0; i < BENCH_STAGES; i++)
        f->stages_ms[i] = bench_spread_of(own->stages_ms[i], n).median;
    f->rel_error = f->rel_error_max = -1;
    if (bench_dense(s->settings) < s->settings->methods.count) {
        f->rel_error = own->error_sum / (double)n;
        f->rel_error_max = own->error_max;
    }
    /* Keys and values are a run each: of a refined cluster, but where its codes were read: then of every token; and of the
     * sink and the window of a head. */
    const double runs = 2 * (f->bytes_codes > 0 ? f->tokens_refined : f->clusters_refined) + 4 * s->settings->shape.n_kv_heads;
    f->run_bytes = f->bytes_rows / runs;
    f->limit_ms = limit_ms(s, f);
}

/* The attention of one step in the middle of the layers. */
static bool look(bench_state *s, bench_figures *figures)
{
    const uint32_t layer = s->n_layers / 2;
    const dp_sequence *const sequence = contenders_any_sequence(s->contenders);
    dp_sequence_config config;
    if (!sequence) /* baselines alone */
        return true;
    dp_sequence_config_init(&config);
    s->source->query(s->source, layer, s->step, s->n_tokens - 1, s->q);
    return bench_look_attention(sequence, layer, &s->settings->shape, s->q, config.sink, config.window,
                                &figures->attention) || fail(s, "the keys could not be read back");
}

static bool run(bench_state *s, uint64_t context, bench_figures *figures)
{
    const bench_settings *const settings = s->settings;
    if (!choose_layers(s, context))
        return false;
    figures->context = context;
    figures->n_layers = s->n_layers;
    s->source = settings->n_traces > 0
        ? bench_trace_create(settings->traces, settings->n_traces, &settings->shape, s->n_layers, context, s->error,
                             s->error_size)
        : bench_synthetic_create(&settings->shape, s->n_layers, context);
    if (!s->source)
        return settings->n_traces > 0 ? false : fail(s, "out of memory");
    snprintf(figures->label, sizeof(figures->label), "%s", s->source->label);
    s->contenders = contenders_create(settings, s->runtime, s->n_layers,
                                      context + settings->steps + s->n_layers + settings->growth + 1, s->error,
                                      s->error_size);
    if (!s->contenders || !create_buffers(s) || !contenders_fill(s->contenders, s->source, context, figures))
        return false;
    s->n_tokens = context;
    if (!bench_measure_machine(s->machine, settings->buffer_bytes, s->flush, s->flush_bytes))
        return fail(s, "no memory to measure the bandwidth with");
    if (!run_steps(s, figures))
        return false;
    for (size_t m = 0; m < settings->methods.count; m++)
        settle_method(s, m, figures->steps, &figures->methods[m]);
    if (!look(s, figures) || !run_growth(s, &figures->append))
        return false;
    const dp_sequence *const last = contenders_sequence(s->contenders, settings->methods.count - 1);
    dp_memory_init(&figures->memory);
    return !last || dp_sequence_memory(last, &figures->memory) == DP_OK || fail(s, "the memory could not be counted");
}

bool bench_run(const bench_settings *settings, bench_machine *machine, dp_runtime *runtime, uint64_t context,
               bench_figures *figures, char *error, size_t error_size)
{
    bench_state s = {.settings = settings, .machine = machine, .runtime = runtime, .error = error,
                     .error_size = error_size};
    memset(figures, 0, sizeof(*figures));
    const bool done = run(&s, context, figures);
    destroy(&s);
    return done;
}
