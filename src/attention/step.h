/* One request of an attention call: what its stages share. Reading order of a sparse call: decode.c (checks, memory), pipeline.c (the
 * stages), score.c (estimated masses), select.c (which clusters), scan.c (which of their tokens), pieces.c (work lists), gather.c
 * (exact and estimated contributions), merge.c (one softmax over everything). A dense call has the work lists of all tokens and
 * starts at gather.c. */
#ifndef DP_ATTENTION_STEP_H
#define DP_ATTENTION_STEP_H

#include <stdbool.h>
#include <string.h>

#include "kv/sequence.h"
#include "memory/scratch.h"
#include "runtime/team.h"

/* Rows that are read together. Query rows before first_row do not see them (causality among the call's own tokens). */
typedef struct dp_piece {
    dp_run run;
    uint32_t n;
    uint32_t first_row;
} dp_piece;

enum { DP_PIECE_ROWS = 256 }; /* longest piece */

typedef struct dp_cluster_ref {
    uint32_t segment, cluster;
    uint32_t position;    /* of the cluster in the head's arrays */
    uint32_t first_token; /* of the cluster, counted over the head's clustered tokens in cluster order */
    uint32_t sign_groups, code_groups, keys; /* that the scan has read; no keys: all of its tokens by their codes */
} dp_cluster_ref;

/* A unit of work of about even bytes: a range of a head's pieces, or of its estimated clusters. Its result goes to
 * its own partial, so that who computes it does not matter. */
typedef struct dp_item {
    uint32_t first, last;
    uint32_t segment;  /* of the first estimated cluster */
    uint32_t n_slopes; /* of segments that were read with their estimated clusters */
    bool estimated;
} dp_item;

/* A segment's estimated clusters: those of the head's list from number `first` to the next segment's; and the position of its
 * cluster 0 in the head's arrays. */
typedef struct dp_estimates {
    uint32_t first, position;
} dp_estimates;

/* A part of the centroid scan. */
typedef struct dp_score_task {
    uint32_t kv_head, segment, first_panel, n_panels;
    uint32_t position; /* of the segment's first cluster in the head's arrays */
} dp_score_task;

typedef struct dp_head_counts {
    uint64_t tokens_exact, clusters_estimated, clusters_refined, tokens_refined;
    uint64_t bytes_centroids, bytes_means, bytes_codes, bytes_rows;
} dp_head_counts;

/* A KV head's part of the call. What the pointers point to is a slot of the pipeline's, of use until the head is through. */
typedef struct dp_head_step {
    const dp_head *head;
    uint32_t first_task, n_tasks; /* its score tasks */
    float *q;           /* [rows][key_dim] the queries of this head, query-major */
    float *offset;      /* [rows][key_dim] q - q0 in the queries' metric */
    float *variance;    /* [rows] scale^2 |q - q0|^2 in the queries' metric: times a dispersion, the variance of a
                           cluster's logits */
    size_t n_positions; /* clusters, padding included: panels * DP_PANEL */
    float *score;       /* [rows][n_positions] q.(centroid - mean key) */
    float *mass;        /* [rows][n_positions] first the estimated logits, then the masses in units of exp(reference) */
    float *cap_slope;   /* [rows][n_positions] with a soft cap: its slope at the centroids' logits */
    uint16_t *spread;   /* [rows][n_positions] with a soft cap: bf16, the dispersions times that slope squared */
    float *error;       /* [n_positions] expected squared errors of the row at work */
    float *joint, *rank; /* [n_positions] sum of the rows' errors in units of their budgets; the same per token */
    uint8_t *flags;      /* [n_positions] SELECT_* */
    float *reference;    /* [rows] */
    float *dropped;      /* [rows] mass of the dropped clusters, for keep_dropped */
    dp_piece *pieces;
    size_t n_pieces, pieces_capacity;
    int8_t
        *codes; /* [rows][key_dim / 4][DP_CODE_GROUP][4] the queries for the scan, see dp_code_queries, in units of */
    float *code_factor;               /* [rows] scale included */
    int32_t *sum_of_codes;            /* [rows] */
    uint8_t *sign_table;              /* [rows] the queries for the scan of the signs, see dp_sign_queries, with */
    float *sign_centre, *sign_factor; /* [rows] likewise */
    float *deviation;                 /* [rows] times the square root of a dispersion, that of a cluster's logits */
    float *total;                     /* [rows] T, in units of exp(reference) */
    float *token_limit;               /* [rows] mass above which a scanned token is read */
    float *logit_limit;               /* [rows] the logit that has this mass, before a soft cap */
    float *mean_logit;                /* [n_segments][rows] of the mean keys */
    dp_cluster_ref *scanned;          /* clusters to be looked at */
    size_t n_scanned;
    uint8_t *wanted;         /* [clustered tokens] by first_token: 1 where a token of a scanned cluster is to be read */
    uint16_t *estimated;     /* clusters that contribute by their mean value (work memory before): their numbers in */
    dp_estimates *estimates; /* [n_segments + 1] the segments */
    size_t n_estimated;
    dp_item *items;
    size_t n_exact_items; /* sink, window, pending: the first items, known before selection */
    size_t n_items, items_capacity;
    float *partials;     /* [items_capacity][rows][2 + value_dim]: maximum, sum, accumulated values */
    dp_head_counts counts;
} dp_head_step;

/* A cluster that is kept contributes by its mean value; SELECT_REFINE: by all its tokens instead. SELECT_LOOK: of those that are
 * also SELECT_REACHED a scan looks whether any of their tokens may matter, and if so sets SELECT_SCAN: the cluster contributes
 * by those of its tokens that do, and by its mean value for the rest. */
enum {
    SELECT_ESTIMATE = 1,
    SELECT_REFINE = 2,
    SELECT_LOOK = 4,
    SELECT_SCAN = 8,
    SELECT_REACHED = 16,
    SELECT_READ = SELECT_REFINE | SELECT_SCAN
};

/* The first of the marks from number i on that is not 0, or n: few are. */
static inline size_t dp_next_mark(const uint8_t *marks, size_t i, size_t n)
{
    for (uint64_t eight; i + sizeof eight <= n; i += sizeof eight) {
        memcpy(&eight, marks + i, sizeof eight);
        if (eight) break;
    }
    while (i < n && !marks[i]) i++;
    return i;
}

typedef struct dp_step {
    dp_runtime *runtime;
    size_t request; /* number in its batch, for messages */
    dp_sequence *sequence;
    const dp_layer *layer;
    const dp_kernels *kernels;
    dp_attention_params params;
    bool sparse;
    size_t n_queries, rows; /* rows = n_queries * group: query rows per KV head */
    const float *q;
    float *out, *lse;
    dp_head_step *heads;
    dp_score_task *tasks;
    float *task_max; /* [n_tasks][rows] */
    size_t n_tasks;
    double *exact_share; /* [n_kv_heads][rows] share of the kept mass that is exact */
} dp_step;

static inline size_t dp_partial_floats(const dp_step *step)
{
    return step->rows * (2 + step->sequence->format.value_dim);
}

/* decode.c: dp_decode, and the same with a look at the finished step (selection flags, masses, work lists of all heads)
 * before its memory is released: for measurement. */
typedef void (*dp_observe_fn)(void *user, const dp_step *step);
dp_status dp_decode_observed(dp_sequence *sequence, uint32_t layer, size_t n_queries, const float *q,
                             const dp_attention_params *params, float *out, float *lse, dp_attention_stats *stats,
                             dp_observe_fn observe, void *user);

/* params.c: checks a call's parameters, and fills step->params. */
dp_status dp_params_settle(dp_step *step, const dp_attention_params *params);

/* decode.c: DP_ERR_INVALID with a message that says whose argument it is. */
dp_status dp_step_refuse(const dp_step *step, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* pieces.c */
size_t dp_pieces_capacity(const dp_step *step, const dp_head *head);
size_t dp_items_capacity(const dp_step *step, const dp_head *head);
void dp_pieces_exact(const dp_step *step, dp_head_step *head);    /* all that is not in clusters, and its items */
void dp_pieces_all(const dp_step *step, dp_head_step *head);      /* every cluster: dense attention */
void dp_pieces_selected(const dp_step *step, dp_head_step *head); /* by flags */

/* score.c */
uint32_t dp_score_count_tasks(const dp_head *head);
void dp_score_plan(const dp_step *step, size_t kv_head);
void dp_score_run(const dp_step *step, const dp_score_task *task, float *task_max);

/* select.c */
void dp_select(const dp_step *step, dp_head_step *head);
void dp_sum_dropped(const dp_step *step, dp_head_step *head); /* once the scan is over */

/* scan.c */
void dp_scan_plan(const dp_step *step, dp_head_step *head);
size_t dp_scan_count_tasks(const dp_head_step *head);
size_t dp_scan_scratch_bytes(const dp_step *step);
void dp_scan_run(const dp_step *step, const dp_head_step *head, size_t task, float *scratch);

/* gather.c */
size_t dp_gather_scratch_bytes(const dp_step *step);
typedef struct dp_gather_task {
    const dp_step *step;
    const dp_head_step *head; /* NULL: none */
    size_t item;
} dp_gather_task;
void dp_gather_item(dp_gather_task task, dp_gather_task next, void *scratch);

/* merge.c */
void dp_merge_row(const dp_step *step, size_t kv_head, size_t row);

#endif
