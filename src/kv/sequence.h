/* The sequence: layers of KV heads, each with its sink, segments and tail. */
#ifndef DP_KV_SEQUENCE_H
#define DP_KV_SEQUENCE_H

#include "kv/queries.h"
#include "kv/rows.h"
#include "kv/segment.h"
#include "memory/arena.h"
#include "runtime/runtime.h"

/* One KV head of one layer. Tokens are in this order: sink, segments, tail. */
typedef struct dp_head {
    dp_rows sink;         /* the first tokens */
    dp_segment *segments; /* clustered tokens */
    uint32_t n_segments, segments_capacity;
    uint32_t n_stale;       /* of the segments */
    uint32_t n_panels;      /* over all segments */
    dp_rows tail;           /* pending tokens and the window */
    uint64_t clustered;     /* tokens in segments, stale ones left out */
    uint32_t pending_limit; /* short appends cluster when so many tokens wait outside the window */
    dp_queries queries;
    dp_view view;           /* where the rows are that the caller keeps */
    int arena;              /* index of the sequence's arena: one per NUMA node */
} dp_head;

typedef struct dp_layer {
    uint64_t n_tokens;
    bool dense;           /* dp_sequence_set_dense */
    dp_head *heads;       /* [n_kv_heads] */
} dp_layer;

struct dp_sequence {
    dp_runtime *runtime;
    dp_sequence_config config;
    dp_row_format format;
    float scale;
    uint32_t group; /* query heads per KV head */
    dp_layer *layers;
    dp_head *heads; /* [n_layers * n_kv_heads], layers point into it */
    dp_arena **arenas; /* [n_arenas], shared with forks */
    int n_arenas;
};

/* The NUMA node of an arena, as pages.h names nodes. */
int dp_sequence_node(const dp_sequence *sequence, int arena);

/* The last tokens of a layer that are in token order in all its heads: those that can be queried. */
size_t dp_unclustered(const dp_sequence *sequence, const dp_layer *layer);

bool dp_has_clusters(const dp_sequence *sequence, const dp_layer *layer);

/* Gives a segment's memory back, and takes it out of the head's counts: it is to be dropped or replaced. */
void dp_head_release(const dp_sequence *sequence, dp_head *head, dp_segment *segment);

/* After how many waiting tokens a head is clustered for the first time while decoding. Heads and layers are spread
 * over three quarters of pending_tokens, so that they take turns from then on: two heads at once, for two threads (0.009 ms a
 * token and layer of 8 heads, 0.012 one by one). */
uint32_t dp_sequence_first_limit(const dp_sequence *sequence, uint32_t layer, uint32_t kv_head);

#endif
