/* Sequences that borrow their rows beside ones with rows of their own, and the memory that the rows are borrowed from. */
#ifndef TESTS_UNIT_BORROWED_H
#define TESTS_UNIT_BORROWED_H

#include "kv/sequence.h"
#include "unit.h"

enum { PACKED, PADDED, HEADS_FIRST, PAGED, PAGED_HEADS_FIRST, LAYOUTS };

typedef struct store {
    dp_borrowed_rows rows;
    char *memory, *copy; /* copy: what was written there, to see that nobody else did */
    size_t bytes;
    int32_t *table;
} store;

size_t below(rng *r, size_t n);

/* Memory for n tokens; what is not written yet is NaN in every type. Blocks are in no order, and some of nobody. */
store store_create(rng *r, const dp_row_format *f, size_t n_heads, size_t n, int layout, uint32_t block);

/* Fails where somebody else wrote to it. */
void store_free(store *s);

/* Writes token t of the cache. */
void store_put(store *s, const dp_row_format *f, const dp_kernels *kernels, const cache *c, size_t t);

typedef struct pair {
    rng r;
    cache c;
    dp_runtime *rt;
    dp_sequence_config config;
    dp_sequence *own, *borrowing;
    store store;
    size_t n, n_heads;
} pair;

/* Two empty sequences for the cache and config of the pair; the caller's memory is still to come. */
void pair_begin(pair *p, uint32_t n_heads);

/* All of it: four query heads, two KV heads, 64 dimensions, bf16, pages of 16 tokens. */
pair pair_create(uint64_t seed, size_t n_tokens, uint32_t segment_tokens);
void pair_free(pair *p);

const dp_row_format *pair_format(const pair *p);

/* Moves the caller's memory, to any layout. */
void pair_move(pair *p, int layout, uint32_t block);

/* The same to both. */
void pair_grow(pair *p, size_t n, size_t chunk);
void pair_build(pair *p);
void pair_truncate(pair *p, size_t n);

void check_same_reads(const pair *p);

/* Attention of the last n tokens by both, as prefill or decode; returns whether it was sparse. */
bool check_same_bits(pair *p, size_t n, bool prefill, bool dense);

uint64_t clustered(const dp_sequence *s); /* tokens */

#endif
