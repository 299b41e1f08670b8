/* A list: cells of llama.cpp's cache that together are what a query sees, in order of writing, and a copy of their keys
 * and values in a dp_sequence. llama.cpp keeps the tokens of several sequences in any order in one cache, and only the
 * mask says which cells a query sees; a list stands for one sequence of one layer. */
#ifndef DP_LLAMACPP_LIST_H
#define DP_LLAMACPP_LIST_H

#include "doublep/doublep.h"
#include "ggml.h"

/* A row of an f16 mask: a cell is seen or it is not. */
enum { MASK_SEEN = 0x0000, MASK_HIDDEN = 0xFC00 };

typedef struct cell_list {
    uint32_t *cell; /* [n_cells] */
    uint16_t *mask; /* [n_cells] the mask of a query that sees these cells and no other */
    uint32_t n, n_cells;
    uint32_t end;          /* no cell is at or beyond it */
    uint32_t copied;       /* first tokens of the sequence that are still those of the list */
    dp_sequence *sequence; /* one layer; NULL until the first copy */
    uint64_t used;         /* when it last served, to find the one to give up */
} cell_list;

/* What the copies of a layer have in common. */
typedef struct list_shape {
    enum ggml_type k_type, v_type;
    uint32_t query_heads, kv_heads, key_dim, value_dim;
    float scale, softcap;
    bool dense; /* no index is wanted */
    uint32_t layer;
} list_shape;

/* Keys and values of one stream as the attention node shows them. */
typedef struct list_rows {
    const char *k, *v;
    size_t k_row, k_head, v_row, v_head; /* bytes from token to token, from head to head */
} list_rows;

/* The runtime of all copies in the process, which is created when the plugin is registered; false after an error of
 * dp_runtime_create, and then it may be tried again. Its calls run on as many threads as dp_limit_threads allows. */
bool list_create_runtime(void);
dp_runtime *list_runtime(void);

cell_list *list_create(uint32_t n_cells);
void list_free(cell_list *list);

/* Forgets all but the first n tokens. */
void list_truncate(cell_list *list, uint32_t n);

/* Forgets a cell that is being overwritten, and what was written after it. */
void list_forget(cell_list *list, uint32_t cell);

/* Makes a list the first n tokens of another; the index is shared. */
void list_fork(cell_list *list, const cell_list *from, uint32_t n);

/* Adds a cell that is not in the list. */
void list_push(cell_list *list, uint32_t cell);

/* Tokens at the start of the list that a query with this mask sees. */
uint32_t list_common(const cell_list *list, const uint16_t *mask, uint32_t n_kv);

/* The query sees the list and nothing else. */
bool list_equals(const cell_list *list, const uint16_t *mask, uint32_t n_kv);

/* Sees to it that there is a copy, of the list's first tokens or none: what queries are shown to. False where there is no
 * memory for it, or the limit forbids it. */
bool list_open(cell_list *list, const list_shape *shape);

/* Brings the copy, which is there, up to date; the last `fresh` tokens come as decoding adds them, 0 while a prompt is read.
 * False where there is no memory for it, or the limit forbids it: it is of fewer tokens then, and can be gone on with. */
bool list_copy(cell_list *list, const list_shape *shape, const list_rows *rows, uint32_t fresh);

#endif
