/* bench_source.h: where the benchmark's keys, values and queries come from: made up (bench_synthetic.c) or recorded from
 * a model (bench_trace.c). A source is read in any order of tokens; queries come step by step. */
#ifndef DOUBLEP_TOOL_BENCH_SOURCE_H
#define DOUBLEP_TOOL_BENCH_SOURCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct bench_shape {
    char name[32];
    uint32_t n_query_heads, n_kv_heads, dim; /* keys and values have the same dimension */
} bench_shape;

typedef struct bench_source bench_source;

struct bench_source {
    char label[256]; /* says in all outputs what this is */
    bool synthetic;
    bench_shape shape;
    uint32_t n_layers;
    /* Keys and values of tokens first .. first + n - 1 of a layer, f32 [n][n_kv_heads][dim], keys rotated. */
    void (*rows)(bench_source *source, uint32_t layer, uint64_t first, size_t n, float *k, float *v);
    /* The query of decode step `step` (0, 1, 2, ... in turn for each layer) at a position, f32 [n_query_heads][dim]. */
    void (*query)(bench_source *source, uint32_t layer, uint64_t step, uint64_t position, float *q);
    void (*destroy)(bench_source *source);
};

/* Keys in clusters around a common mean, attention sinks, local bias, outliers, values, and queries that vary slowly
 * and are sharp or diffuse by head; the same for the same arguments. `context`: tokens before the first step. NULL
 * where memory runs out. */
bench_source *bench_synthetic_create(const bench_shape *shape, uint32_t n_layers, uint64_t context);

/* A source from recordings (trace.h), tiled to the context, layers and heads that are asked for. shape->dim and the
 * group size must be the recordings'. NULL and a message on failure. */
bench_source *bench_trace_create(const char *const *paths, size_t n_paths, const bench_shape *shape, uint32_t n_layers,
                                 uint64_t context, char *error, size_t error_size);

/* The shape of a recording, and the tokens of its prompt. */
bool bench_trace_shape(const char *path, bench_shape *shape, uint64_t *n_tokens, char *error, size_t error_size);

#endif
