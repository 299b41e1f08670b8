/* Where rows are. Those that the caller keeps are found by token: a view says where the rows of one KV head lie. A run is
 * rows that are read together, whoever keeps them. */
#ifndef DP_KV_VIEW_H
#define DP_KV_VIEW_H

#include <stdint.h>

#include "kv/rows.h"

typedef struct dp_view {
    const char *k, *v;       /* of token 0, or of the first token of block 0 */
    size_t k_token, v_token; /* bytes from a token to the next in its block, */
    size_t k_block, v_block; /* and from a block to the next */
    const int32_t *table;    /* the blocks of tokens 0 .. block_tokens - 1, and so on; NULL: token after token */
    uint32_t block_tokens, n_blocks;
    uint64_t n_tokens; /* that there is room for; 0: the caller has not said where yet */
} dp_view;

/* borrow.c: that the blocks of tokens from .. to - 1 are of the pool. Else DP_ERR_INVALID, and a message. */
dp_status dp_view_check_table(const dp_view *view, dp_runtime *runtime, uint64_t from, uint64_t to, const char *caller);

static inline void dp_view_row(const dp_view *view, uint32_t token, const void **key, const void **value)
{
    if (!view->table) {
        *key = view->k + token * view->k_token;
        *value = view->v + token * view->v_token;
        return;
    }
    const size_t block = (size_t)view->table[token / view->block_tokens], within = token % view->block_tokens;
    *key = view->k + block * view->k_block + within * view->k_token;
    *value = view->v + block * view->v_block + within * view->v_token;
}

typedef struct dp_run {
    const char *k, *v;      /* our own rows follow each other; NULL: the caller's, */
    const uint16_t *tokens; /* of tokens first + tokens[i]; NULL: first + i */
    uint32_t first;
} dp_run;

/* Rows of tokens that follow each other: the caller's; or of those whose first is first_token, whoever keeps them. */
static inline dp_run dp_run_in_order(uint64_t first_token)
{
    return (dp_run){.first = (uint32_t)first_token};
}

static inline dp_run dp_rows_run(const dp_rows *rows, uint64_t first_token)
{
    return (dp_run){.k = rows->k, .v = rows->v, .first = (uint32_t)first_token};
}

/* The run from its row number n on. */
static inline dp_run dp_run_from(dp_run run, const dp_row_format *format, size_t n)
{
    if (run.k) {
        run.k += n * format->key_bytes;
        run.v += n * format->value_bytes;
    } else if (run.tokens) {
        run.tokens += n;
    } else {
        run.first += (uint32_t)n;
    }
    return run;
}

/* Where the first n rows of a run are. */
static inline void dp_run_list(const dp_run *run, const dp_row_format *format, const dp_view *view, size_t n,
                               dp_row *keys, dp_row *values)
{
    if (run->k) {
        const char *k = run->k, *v = run->v;
        for (size_t i = 0; i < n; i++, k += format->key_bytes, v += format->value_bytes) {
            keys[i] = dp_row_at(k);
            values[i] = dp_row_at(v);
        }
        return;
    }
    for (size_t i = 0; i < n; i++) {
        const void *k, *v;
        dp_view_row(view, run->first + (run->tokens ? run->tokens[i] : (uint32_t)i), &k, &v);
        keys[i] = dp_row_at(k);
        values[i] = dp_row_at(v);
    }
}

#endif
