/* pages.h: Quest's index (Tang et al., arXiv 2406.10774): pages of consecutive tokens with the minimum and the maximum of
 * their keys in every dimension, which bound any query's logits from above.
 *
 * The first `sink` and the last `window` tokens belong to no page that can be chosen; nor do tokens before the window
 * that do not fill a page yet. They are always read. */
#ifndef DOUBLEP_BENCH_PAGES_H
#define DOUBLEP_BENCH_PAGES_H

#include "cache.h"

typedef struct page_index page_index;

/* Indexes what the cache holds. NULL where there is no memory. */
page_index *pages_create(const method_cache *cache, uint32_t page, uint32_t sink, uint32_t window);
void pages_free(page_index *p); /* NULL is allowed */

/* The cache's layer has grown by a token; or (restart) all layers have become shorter. */
void pages_update(page_index *p, uint32_t layer);
void pages_restart(page_index *p);

/* Pages of a layer, and where they lie: page i has the tokens first + i * page and on, the last ends before `end`. */
size_t pages_count(const page_index *p, uint32_t layer);
uint64_t pages_first(const page_index *p, uint32_t layer);
uint64_t pages_end(const page_index *p, uint32_t layer);

/* Chooses for every query head the share of the pages with the highest bounds; a KV head's set is the union over its
 * query heads. */
void pages_choose(page_index *p, uint32_t layer, const float *q, float share);

/* The latest choice of a KV head: [pages_count], and the bounds that it came from: [group] rows of *stride. */
const uint8_t *pages_chosen(const page_index *p, uint32_t kv_head);
const float *pages_bounds(const page_index *p, uint32_t kv_head, size_t *stride);

/* Bytes of the layer's minima and maxima. */
uint64_t pages_bytes(const page_index *p, uint32_t layer);

#endif
