/* How much room a head's tail has. */
#ifndef DP_KV_TAIL_H
#define DP_KV_TAIL_H

#include "kv/sequence.h"

/* Appends of at least so many tokens are a prompt's: only whole segments are clustered then. */
enum { DP_PROMPT_CHUNK = 64 };

/* Makes room for n more rows, doubling up to what is ever needed; gives a prompt's room back once appends are short.
 * False where there is no memory; the rows are as they were. */
bool dp_tail_reserve(const dp_sequence *sequence, dp_head *head, size_t n);

#endif
