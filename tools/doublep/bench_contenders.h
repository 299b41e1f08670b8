/* bench_contenders.h: what is measured against each other: the library's attention, each kind over a sequence with the
 * index it needs, and the baselines of bench/baselines over their own cache. All hold the same tokens. */
#ifndef DOUBLEP_TOOL_BENCH_CONTENDERS_H
#define DOUBLEP_TOOL_BENCH_CONTENDERS_H

#include "bench.h"

typedef struct contenders contenders;

/* How many copies of the keys and values the methods need. */
size_t contenders_copies(const bench_settings *settings);

/* For n_layers layers of up to `capacity` tokens. NULL and a message on failure. */
contenders *contenders_create(const bench_settings *settings, dp_runtime *runtime, uint32_t n_layers, uint64_t capacity,
                              char *error, size_t error_size);
void contenders_free(contenders *c); /* NULL is allowed */

/* A prompt of `context` tokens in all layers, indexed. Leaves the times of the index in figures. */
bool contenders_fill(contenders *c, bench_source *source, uint64_t context, bench_figures *figures);

/* The next token of a layer, f32 [n_kv_heads][dim], for one method or (method = SIZE_MAX) for all; ms is the time of the
 * last of them. */
bool contenders_append(contenders *c, size_t method, uint32_t layer, const float *k, const float *v, double *ms);

/* Has a method take the memory for so many tokens more; ms is the time of that. */
bool contenders_reserve(contenders *c, size_t method, size_t n_tokens, double *ms);

/* Attention of the layer's last token by one method, and its time; stats are zero where the method has none. */
bool contenders_attend(contenders *c, size_t method, uint32_t layer, const float *q, float *out,
                       dp_attention_stats *stats, double *ms);

/* A sequence that holds all tokens; and the one of a method, or NULL. */
const dp_sequence *contenders_any_sequence(const contenders *c);
const dp_sequence *contenders_sequence(const contenders *c, size_t method);

#endif
