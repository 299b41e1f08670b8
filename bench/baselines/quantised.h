/* quantised.h: keys in 4 bits a dimension, each row with its own minimum and step: what Twilight (Lin et al.,
 * arXiv 2502.02770) estimates token weights from. */
#ifndef DOUBLEP_BENCH_QUANTISED_H
#define DOUBLEP_BENCH_QUANTISED_H

#include "cache.h"

typedef struct quantised_keys quantised_keys;

/* Quantises what the cache holds. NULL where there is no memory. */
quantised_keys *quantised_create(const method_cache *cache);
void quantised_free(quantised_keys *q); /* NULL is allowed */

/* The cache's layer has grown; or (restart) all layers have become shorter. */
void quantised_update(quantised_keys *q, uint32_t layer);
void quantised_restart(quantised_keys *q);

/* out[r * stride + i] = scale * q_r . (the quantised key number index[i]), for the rows r of a KV head's group, i < n. */
void quantised_logits(const quantised_keys *keys, uint32_t layer, uint32_t kv_head, const float *q,
                      const uint32_t *index, size_t n, float *out, size_t stride);

/* Bytes of one row. */
size_t quantised_row_bytes(const method_cache *cache);

#endif
