/* bench.h: what the parts of `doublep bench` share: its settings, and the figures that a run yields.
 *
 * The measurement: layers of KV far larger than the last-level cache, visited in turn; in every step a token is
 * appended to a layer and each method attends from its query, one method right after the other, so that ratios come from
 * the same moments; before each timed call a buffer larger than the cache is read by the same threads, as a model's
 * weights are between the attention of two layers. */
#ifndef DOUBLEP_TOOL_BENCH_H
#define DOUBLEP_TOOL_BENCH_H

#include <jansson.h>

#include "bench_counters.h"
#include "bench_source.h"
#include "doublep/doublep.h"
#include "eval_methods.h"

enum {
    BENCH_METHODS = 8,
    BENCH_CONTEXTS = 16,
    BENCH_TRACES = 64,
    BENCH_STAGES = 5,
    BENCH_RUN_LENGTHS = 5, /* gather is measured for runs of 256 B, 1, 4, 16 and 64 KiB */
};

static inline size_t bench_run_bytes(size_t i)
{
    return (size_t)256 << 2 * i;
}

typedef struct bench_settings {
    bench_shape shape; /* n_query_heads = 0: not given */
    uint64_t contexts[BENCH_CONTEXTS];
    size_t n_contexts;
    dp_type type;
    eval_methods methods; /* at most BENCH_METHODS */
    int n_threads;
    dp_pinning pinning;
    const char *traces[BENCH_TRACES];
    size_t n_traces;
    size_t steps, growth;
    size_t buffer_bytes; /* per thread, for measuring the bandwidth; 0: more than the cache holds */
    uint32_t n_layers; /* 0: by size */
    const char *json, *svg, *from;
} bench_settings;

typedef struct bench_machine {
    dp_runtime_info info;
    double stream_gbps, gather_gbps[BENCH_RUN_LENGTHS];
    counters counters;
    uint64_t memory_bytes; /* that may be used */
} bench_machine;

/* Of one number over the steps. */
typedef struct bench_spread {
    double p10, median, p90;
} bench_spread;

typedef struct bench_method_figures {
    bench_spread ms;
    double stages_ms[BENCH_STAGES]; /* medians: scores, select, scan, gather, merge */
    double rel_error, rel_error_max; /* negative: no dense output to compare with */
    /* Means over the steps. */
    double bytes, bytes_centroids, bytes_means, bytes_codes, bytes_rows, bytes_dense;
    double clusters, clusters_estimated, clusters_refined, tokens_refined, tokens_exact;
    double run_bytes;  /* of rows that lie together */
    double limit_ms;   /* what its bytes take at the bandwidth measured for such runs */
    double counts[COUNTERS_MAX];
} bench_method_figures;

typedef struct bench_growth {
    size_t tokens;
    double reserve_ms; /* of taking the memory for these tokens before they come */
    double append_ms;  /* mean per token and layer */
    double share;      /* of append in all the time */
    double median_step_ms, worst_step_ms; /* append and attention of one token, all layers */
    size_t preempted_steps;               /* during which the system took a core from one of the threads */
    double worst_undisturbed_step_ms;     /* of the other steps; negative: none */
    double worst_append_ms, worst_attention_ms; /* the parts of a token's step, each at its worst, all layers */
} bench_growth;

/* How the true attention is spread: tokens that hold 90 % of a query head's mass, and the shares of sinks and window. */
typedef struct bench_attention {
    uint32_t n_heads;
    double tokens_90[1024];
    double sink_share, window_share;
} bench_attention;

typedef struct bench_figures {
    uint64_t context;
    uint32_t n_layers;
    size_t steps;
    char label[256];
    bench_method_figures methods[BENCH_METHODS];
    double build_ms, build_tokens_per_s; /* of one layer */
    double store_ms;                     /* keeping the keys and values of one layer, without the index */
    bench_growth append;
    bench_attention attention;
    dp_memory memory;
} bench_figures;

/* bench_options.c: exits with a message for bad arguments. */
void bench_options_parse(int argc, char **argv, bench_settings *settings);

/* The number of the first dense method; that of all methods where there is none. */
size_t bench_dense(const bench_settings *settings);

/* bench.c: measures stream_gbps and gather_gbps with so many bytes per thread (0: more than the cache holds), the latter after
 * reading `flush` each time, and keeps the higher of old and new; false where memory runs out. */
bool bench_measure_machine(bench_machine *machine, size_t bytes, const char *flush, size_t flush_bytes);

/* bench_run.c: all figures for one context, and the machine's bandwidth once more right before the steps; false and a
 * message on failure. */
bool bench_run(const bench_settings *settings, bench_machine *machine, dp_runtime *runtime, uint64_t context,
               bench_figures *figures, char *error, size_t error_size);

/* bench_stats.c */
bench_spread bench_spread_of(double *values, size_t n); /* sorts them */
double bench_gather_gbps(const bench_machine *machine, double run_bytes); /* between the measured lengths */

/* bench_look.c: the attention of a query over keys, f32 [n_heads][dim], in one layer of a sequence. */
bool bench_look_attention(const dp_sequence *sequence, uint32_t layer, const bench_shape *shape, const float *q,
                          uint32_t sink, uint32_t window, bench_attention *attention);

/* bench_report.c */
void bench_print_machine(const bench_machine *machine);
void bench_print(const bench_settings *settings, const bench_machine *machine, const bench_figures *figures);
json_t *bench_json(const bench_settings *settings, const bench_machine *machine, const bench_figures *figures, size_t n);

/* bench_plot.c: step time against context, drawn by gnuplot from the JSON. */
bool bench_plot(const json_t *figures, const char *path, char *error, size_t error_size);

#endif
