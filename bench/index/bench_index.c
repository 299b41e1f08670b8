/* bench_index.c: what the index of one layer costs: against the dense prefill attention of that layer, and against FAISS's
 * k-means over the same keys with as many clusters and iterations.
 *
 * Our time is that of the whole index (dp_build_index: clusters, statistics, mean values, rows in cluster order); FAISS's is
 * that of its k-means alone, in the faster of two forms: threads inside a segment, or segments in parallel. Both work
 * on segments of the same tokens; single-token clusters are off, so that both have the same clusters. The keys are the
 * synthetic ones of `doublep bench`. Prefill is timed for the last 512 tokens of the context and taken to grow with
 * the number of tokens that a query sees.
 *
 *     bench_index [--json] [TOKENS [THREADS]] */
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "attention/step.h"
#include "bench.h"
#include "clock.h"
#include "runtime/structs.h"

#ifdef HAVE_FAISS
#include "faiss_kmeans.h"
#endif

enum { PREFILL_TOKENS = 512, ROUNDS = 3 /* medians; all take turns */ };
static const bench_shape shape = {"llama-3.1-8b", 32, 8, 128};

typedef struct figures {
    double build_ms[ROUNDS], default_build_ms[ROUNDS], inertia, prefill_ms;
    double faiss_ms[2][ROUNDS], faiss_inertia; /* threads inside, segments in parallel; 0: no FAISS */
} figures;

static void die(const char *reason)
{
    fprintf(stderr, "bench_index: %s\n", reason);
    exit(1);
}

static double ms_since(uint64_t start)
{
    return (double)(clock_ns() - start) * 1e-6;
}

/* All of a context's keys and values come in one append, so that the segments are what dp_build_index makes. */
static dp_sequence *fill(dp_runtime *runtime, size_t n, float outlier_share, const float *k, const float *v)
{
    dp_sequence_config config;
    dp_sequence *sequence = NULL;
    dp_sequence_config_init(&config);
    config.n_layers = 1;
    config.n_query_heads = shape.n_query_heads;
    config.n_kv_heads = shape.n_kv_heads;
    config.key_dim = config.value_dim = shape.dim;
    config.outlier_share = outlier_share;
    if (dp_sequence_create(runtime, &config, &sequence) != DP_OK)
        die("no memory for the sequence");
    if (dp_append(sequence, 0, n, k, 0, v, 0) != DP_OK)
        die("no memory for the keys and values");
    return sequence;
}

static double time_build(dp_sequence *sequence)
{
    const uint64_t start = clock_ns();
    if (dp_build_index(sequence, 0) != DP_OK)
        die("the index cannot be built");
    return ms_since(start);
}

static double time_prefill(dp_sequence *sequence, size_t n)
{
    const size_t queries = n < PREFILL_TOKENS ? n : PREFILL_TOKENS, width = (size_t)shape.n_query_heads * shape.dim;
    float *const q = calloc(queries * width, sizeof(*q)), *const out = malloc(queries * width * sizeof(*out));
    if (!q || !out)
        die("out of memory");
    for (size_t i = 0; i < queries * width; i++) /* dense attention takes as long for any query */
        q[i] = (float)(i * 2654435761u % 1000) * 1e-3f - 0.5f;
    double ms = 0;
    for (int pass = 0; pass < 2; pass++) { /* the first allocates */
        const uint64_t start = clock_ns();
        if (dp_prefill(sequence, 0, queries, q, out, NULL) != DP_OK)
            die("prefill failed");
        ms = ms_since(start);
    }
    free(q);
    free(out);
    /* The last queries see about n tokens each, all queries n / 2 on average. */
    return ms / (double)queries * (double)n / 2 * (double)n / ((double)n - (double)queries / 2);
}

/* Sum of squared distances to the clusters' means. */
static double sum_inertia(const dp_sequence *sequence)
{
    double sum = 0;
    for (uint32_t h = 0; h < shape.n_kv_heads; h++) {
        const dp_head *const head = &sequence->layers[0].heads[h];
        for (uint32_t i = 0; i < head->n_segments; i++)
            for (uint32_t c = 0; c < head->segments[i].n_clusters; c++) {
                float spread; /* rounding of the centroids to int8 included */
                sequence->runtime->kernels.to_f32[DP_BF16](&spread, head->segments[i].spread + c, 1);
                sum += (double)dp_segment_size(&head->segments[i], c) * (double)spread * shape.dim;
            }
    }
    return sum;
}

/* ---- FAISS ------------------------------------------------------------------------------------------------------------ */

#ifdef HAVE_FAISS
typedef struct problem {
    size_t n, n_means;
    float *x, *centroids;
} problem;

/* The segments of all heads, with their keys as the sequence stores them. */
static problem *collect(const dp_sequence *sequence, size_t *n_problems)
{
    size_t n = 0, capacity = 0;
    for (uint32_t h = 0; h < shape.n_kv_heads; h++)
        capacity += sequence->layers[0].heads[h].n_segments;
    problem *const list = calloc(capacity + 1, sizeof(*list));
    for (uint32_t h = 0; list && h < shape.n_kv_heads; h++) {
        const dp_head *const head = &sequence->layers[0].heads[h];
        for (uint32_t i = 0; i < head->n_segments; i++) {
            const dp_segment *const segment = &head->segments[i];
            problem *const p = &list[n++];
            *p = (problem){.n = segment->n_tokens, .n_means = segment->n_clusters};
            p->x = malloc(p->n * shape.dim * sizeof(*p->x));
            p->centroids = malloc(p->n_means * shape.dim * sizeof(*p->centroids));
            if (!p->x || !p->centroids ||
                dp_sequence_read(sequence, 0, h, segment->first_token, p->n, p->x, NULL) != DP_OK)
                die("no memory for FAISS");
        }
    }
    if (!list)
        die("out of memory");
    *n_problems = n;
    return list;
}

static double time_faiss(const problem *list, size_t n, int iterations, int n_threads, bool segments_in_parallel)
{
    int failed = 0;
    const uint64_t start = clock_ns();
    omp_set_num_threads(n_threads); /* those that FAISS takes inside, unless it is in a team of its own already */
#pragma omp parallel for schedule(dynamic) reduction(| : failed) num_threads(n_threads) if (segments_in_parallel)
    for (size_t i = 0; i < n; i++) {
        if (segments_in_parallel)
            omp_set_num_threads(1);
        failed |= faiss_kmeans(list[i].x, list[i].n, shape.dim, list[i].n_means, iterations, list[i].centroids);
    }
    if (failed)
        die("FAISS failed");
    return ms_since(start);
}

static double sum_faiss_inertia(const problem *list, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        const double part = faiss_inertia(list[i].x, list[i].n, shape.dim, list[i].n_means, list[i].centroids);
        if (part < 0)
            die("FAISS failed");
        sum += part;
    }
    return sum;
}

static void free_problems(problem *list, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        free(list[i].x);
        free(list[i].centroids);
    }
    free(list);
}

static void run_faiss(const dp_sequence *sequence, figures *f, int round, int n_threads)
{
    size_t n;
    problem *const list = collect(sequence, &n);
    const int iterations = (int)sequence->config.iterations;
    f->faiss_ms[0][round] = time_faiss(list, n, iterations, n_threads, false);
    f->faiss_ms[1][round] = time_faiss(list, n, iterations, n_threads, true);
    f->faiss_inertia = sum_faiss_inertia(list, n);
    free_problems(list, n);
}
#endif

/* ---------------------------------------------------------------------------------------------------------------------- */

static double median(double *ms)
{
    return bench_spread_of(ms, ROUNDS).median;
}

static void print(figures *f, size_t n, int n_threads, bool json)
{
    const double build = median(f->build_ms), by_default = median(f->default_build_ms);
    const double inside = median(f->faiss_ms[0]), parallel = median(f->faiss_ms[1]), faiss = fmin(inside, parallel);
    if (json) {
        printf("{\"tokens\": %zu, \"threads\": %d, \"build_ms\": %.3f, \"tokens_per_s\": %.0f, \"prefill_ms\": %.0f, "
               "\"share_of_prefill\": %.5f, \"without_outliers\": {\"build_ms\": %.3f, \"inertia\": %.7g}, \"faiss\": ",
               n, n_threads, by_default, (double)n / by_default * 1e3, f->prefill_ms, by_default / f->prefill_ms, build,
               f->inertia);
        if (faiss > 0)
            printf("{\"ms\": %.3f, \"inertia\": %.7g, \"times_ours\": %.3f, \"inertia_ratio\": %.5f}}\n", faiss,
                   f->faiss_inertia, faiss / build, f->inertia / f->faiss_inertia);
        else
            puts("null}");
        return;
    }
    printf("one layer of 8 KV heads, d 128, bf16; %zu tokens, %d threads; synthetic keys; medians of %d\n", n, n_threads,
           ROUNDS);
    printf("index, as it is by default      %10.0f ms  %9.0f tokens/s\n", by_default, (double)n / by_default * 1e3);
    printf("dense prefill of the layer      %10.0f ms (from its last %d tokens): the index takes %.2f %% of it\n",
           f->prefill_ms, PREFILL_TOKENS, 100 * by_default / f->prefill_ms);
    printf("index without single tokens     %10.0f ms  inertia %.5g\n", build, f->inertia);
    if (faiss > 0)
        printf("FAISS k-means                   %10.0f ms  inertia %.5g (threads inside: %.0f ms, segments in parallel: %.0f ms)\n"
               "                                %10.2f times our time, our inertia is %.4f of its\n",
               faiss, f->faiss_inertia, inside, parallel, faiss / build, f->inertia / f->faiss_inertia);
    else
        puts("FAISS k-means                   not built: FAISS is not installed");
}

int main(int argc, char **argv)
{
    const bool json = argc > 1 && strcmp(argv[1], "--json") == 0;
    const size_t n = argc > 1 + json ? (size_t)strtoul(argv[1 + json], NULL, 10) : 32768;
    const int threads = argc > 2 + json ? atoi(argv[2 + json]) : 0;
    if (n < 1024 || n > 1u << 24 || threads < 0 || threads > 1024)
        die("usage: bench_index [--json] [TOKENS [THREADS]], 1024 to 16777216 tokens");
    dp_runtime_config config;
    dp_runtime *runtime = NULL;
    dp_runtime_config_init(&config);
    config.n_threads = threads;
    if (dp_runtime_create(&config, &runtime) != DP_OK)
        die("no runtime");
    const size_t floats = n * shape.n_kv_heads * shape.dim;
    float *const k = malloc(floats * sizeof(*k)), *const v = malloc(floats * sizeof(*v));
    bench_source *const source = bench_synthetic_create(&shape, 1, n);
    if (!k || !v || !source)
        die("out of memory");

    source->rows(source, 0, 0, n, k, v);

    figures f = {0};
    dp_sequence_config defaults;
    dp_sequence_config_init(&defaults);
    for (int round = 0; round < ROUNDS; round++) {
        dp_sequence *sequence = fill(runtime, n, defaults.outlier_share, k, v);
        if (round == 0)
            f.prefill_ms = time_prefill(sequence, n);
        f.default_build_ms[round] = time_build(sequence);
        dp_sequence_free(sequence);
        sequence = fill(runtime, n, 0, k, v);
        f.build_ms[round] = time_build(sequence);
        f.inertia = sum_inertia(sequence);
#ifdef HAVE_FAISS
        run_faiss(sequence, &f, round, runtime->n_threads);
#endif
        dp_sequence_free(sequence);
    }
    print(&f, n, runtime->n_threads, json);
    source->destroy(source);
    dp_runtime_free(runtime);
    free(k);
    free(v);
    return 0;
}
