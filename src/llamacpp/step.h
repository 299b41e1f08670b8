/* One stream of a node of attention: its rows, sorted by the sequences that they belong to, and the lists of those. */
#ifndef DP_LLAMACPP_STEP_H
#define DP_LLAMACPP_STEP_H

#include "llamacpp/cache.h"

enum { GROUPS = CACHE_LISTS }; /* sequences in a step, at most */

/* Queries of one sequence: rows of the node in order. */
typedef struct query_group {
    uint32_t n, first, last; /* rows */
    cell_list *list;
} query_group;

typedef struct stream_step {
    cache_layer *layer;
    cache_stream *stream;
    const struct ggml_tensor *node;
    int64_t index; /* of the stream in the node */
    uint32_t n_rows, n_kv;
    const int64_t *cell; /* [n_rows] the cell of each row's token, NULL where that is not known */
    int64_t first_cell;  /* of the stream, in the numbers of `cell` */
    list_rows rows;
    uint32_t *group_of; /* [n_rows] */
    query_group groups[GROUPS];
    uint32_t n_groups;
} stream_step;

/* Sorts the rows into groups and gives each a list, which holds what its last row sees; false where none can. */
bool step_settle(stream_step *step);

/* Every row of the group sees the list up to its own token. */
bool step_causal(const stream_step *step, uint32_t group);

/* The next row of the group after `row`. */
uint32_t step_next_row(const stream_step *step, uint32_t group, uint32_t row);

#endif
