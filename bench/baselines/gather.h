/* gather.h: exact attention over chosen rows, and rows that stand for others with known logits, under one softmax: what
 * all baselines end in. Rows that are listed for a KV head serve all its query heads. */
#ifndef DOUBLEP_BENCH_GATHER_H
#define DOUBLEP_BENCH_GATHER_H

#include "cache.h"

typedef struct gather gather;

gather *gather_create(const method_cache *cache);
void gather_free(gather *g); /* NULL is allowed */

/* Empties the lists. The lists that follow must live until gather_run is done. All return false where there is no
 * memory. */
void gather_begin(gather *g);

/* Rows of the cache's type that follow each other. */
bool gather_run_of_rows(gather *g, uint32_t kv_head, const char *k, const char *v, size_t n);

/* Rows number index[0 .. n) of k and v. */
bool gather_rows(gather *g, uint32_t kv_head, const char *k, const char *v, const uint32_t *index, size_t n);

/* bf16 values number index[0 .. n) with logits[r * stride + index[i]] for query head r of the group. */
bool gather_estimates(gather *g, uint32_t kv_head, const uint16_t *values, const uint32_t *index, size_t n,
                      const float *logits, size_t stride);

/* q[n_query_heads][key_dim] to out[n_query_heads][value_dim], in parallel; a head without rows gets zeros. */
bool gather_run(gather *g, const float *q, float *out);

/* Bytes of the rows that are listed: keys and values, or estimates' values alone. */
uint64_t gather_row_bytes(const gather *g);
uint64_t gather_estimate_bytes(const gather *g);

#endif
