/* tokenizer_bpe.h: the merging half of the tokenizer: pieces (byte strings) with their ids, and ranked merges of pairs
 * of ids. Internal to tokenizer*.c. */
#ifndef DOUBLEP_TOOL_TOKENIZER_BPE_H
#define DOUBLEP_TOOL_TOKENIZER_BPE_H

#include "tokenizer.h"

/* Byte strings by id: id i is bytes[offset[i] .. offset[i + 1]). */
typedef struct tokenizer_texts {
    char *bytes;
    size_t *offset;
    int32_t count;
} tokenizer_texts;

typedef struct tokenizer_bpe tokenizer_bpe;

/* Both capacities are fixed. `texts` must outlive the result. NULL: no memory. */
tokenizer_bpe *tokenizer_bpe_create(const tokenizer_texts *texts, uint64_t n_merges);
void tokenizer_bpe_free(tokenizer_bpe *bpe);

/* Makes id findable by its text; the first of equal texts stays. */
void tokenizer_bpe_add_piece(tokenizer_bpe *bpe, int32_t id);

/* The id of a piece, -1 where there is none. */
int32_t tokenizer_bpe_find(const tokenizer_bpe *bpe, const char *text, size_t length);

/* Adds a merge of two pieces, ranked after all earlier ones; the first of equal pairs stays. */
void tokenizer_bpe_add_merge(tokenizer_bpe *bpe, int32_t left, int32_t right, int32_t merged);

/* Working memory for tokenizer_bpe_encode; start with {0}. */
typedef struct tokenizer_scratch {
    struct tokenizer_symbol *symbols;
    uint64_t *heap;
    size_t capacity;
} tokenizer_scratch;

void tokenizer_scratch_free(tokenizer_scratch *scratch);

/* Appends the tokens of one pre-token, length below 2^31, whose bytes all have a piece: the pair of the lowest rank is
 * merged, the leftmost first, until none is left. O(n log n). False: no memory. */
bool tokenizer_bpe_encode(const tokenizer_bpe *bpe, const char *text, size_t length, tokenizer_scratch *scratch,
                          tokenizer_ids *out);

#endif
