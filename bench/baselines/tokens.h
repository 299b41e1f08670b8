/* tokens.h: a choice among single tokens: of a list of candidates per KV head those that the smallest set with the share
 * p of the softmax mass has, for any query head of the group. */
#ifndef DOUBLEP_BENCH_TOKENS_H
#define DOUBLEP_BENCH_TOKENS_H

#include "gather.h"

typedef struct token_choice token_choice;

token_choice *tokens_create(const method_cache *cache);
void tokens_free(token_choice *t); /* NULL is allowed */

/* Logits of the candidates [first, first + n) of a KV head: out[r * stride + i], r < group, i < n; called in parallel. */
typedef void (*tokens_logits_fn)(void *user, uint32_t kv_head, const uint32_t *index, size_t n, float *out,
                                 size_t stride);

/* The KV head's list of candidates, to be filled: tokens in ascending order, at most the cache's capacity, the first
 * `sink` and the last `window` of the layer's among them, and where to say how many. */
uint32_t *tokens_candidates(token_choice *t, uint32_t kv_head, size_t **n);

/* Chooses: the tokens before `first` and from `end` on are taken in any case, and count. Adds the rows of what was
 * chosen to the gather's lists. */
bool tokens_choose(token_choice *t, uint32_t layer, float p, uint64_t first, uint64_t end, tokens_logits_fn logits,
                   void *user, gather *g);

/* Marks the latest choice as a method's `mark` does. */
void tokens_mark(const token_choice *t, uint8_t *kept, size_t stride);

#endif
