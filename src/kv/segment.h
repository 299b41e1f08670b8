/* A segment: a run of consecutive tokens of one KV head in cluster order, with its part of the index. Immutable once
 * built, so that sequences share it: each has this struct, all the same memory. All keys come first, then all values: dense
 * attention reads two streams, and a cluster is a run in each (with a cluster's values right after its keys a dense step of
 * 128K tokens takes 26.1 ms, not 23.2; where there are codes, what else is read is single tokens). Where the caller keeps
 * the rows there are the numbers of its tokens only; and after these rows changed the segment is stale, without index or
 * clusters, until it is built anew: its tokens are read in their order. Rows and index are stored in files as they are: who
 * changes what they hold, or how, changes DP_SNAPSHOT_VERSION. */
#ifndef DP_KV_SEGMENT_H
#define DP_KV_SEGMENT_H

#include <stdatomic.h>
#include <stdint.h>

#include "kv/view.h"
#include "memory/arena.h"

typedef struct dp_segment {
    uint64_t first_token;
    uint32_t n_tokens;
    uint32_t n_clusters; /* 0: stale */
    uint32_t room;       /* clusters that there is room for: the layout is theirs, and k-means may leave some empty */
    uint32_t n_panels;   /* of DP_PANEL centroids; the last is padded with clusters of size 0 */
    float *mean_key;     /* [key_dim], of the segment's tokens: the centroids' origin */
    int8_t *panels;      /* centroids less mean_key, laid out as score_panels wants them */
    uint16_t *size;      /* bf16 [n_panels * DP_PANEL] tokens in the cluster; with known queries, how many of them
                              count: exp(entropy of the tokens' weights). See index/build.h */
    uint16_t *spread;    /* bf16 likewise: dispersion, mean over tokens and dimensions of (k - centroid)^2,
                              rounding to int8 included */
    uint16_t *limit;     /* bf16 likewise: sqrt(2 log size): up to so many standard deviations a cluster's mass grows
                              like a normal distribution's, see cluster_logits in simd/kernels.h */
    int8_t *mean_values; /* [n_clusters][value_dim], in units of */
    float *mean_step;    /* [n_clusters] */
    bool has_slope;      /* long segments only: it would outweigh a short one's means */
    int8_t *slope;       /* [key_dim][value_dim] mean over tokens, clusters of one left out, of (k - centroid)(v - mean
                              value)', keys in the queries' metric; row i in units of */
    float *slope_step;   /* [key_dim] */
    uint8_t *codes;      /* where the format has codes: keys less their cluster's centroid, in four bits, in cluster
                              order and in groups of DP_CODE_GROUP tokens as code_logits wants them, in units of */
    uint8_t *code_step;  /* [n_tokens] in a byte, with */
    uint8_t *code_base;  /* [n_clusters] the exponent of step_base */
    uint8_t *signs;      /* of the same, as signs_exceed wants them, each cluster from group dp_segment_sign_group on */
    uint32_t *offset;    /* [n_clusters + 1] first row of the cluster, in rows of the segment */
    uint16_t *token;     /* [n_tokens] token number less first_token, in cluster order */
    atomic_size_t *holders; /* sequences that have the segment; the last part, and alone not of the segment itself */
    char *rows;             /* [n_tokens] keys, then [n_tokens] values, in cluster order; NULL where they are borrowed */
    char *index;            /* all of the above */
    size_t row_bytes, index_bytes; /* pieces of the arena, the two one after the other where they come from a file */
} dp_segment;

enum { DP_MAX_SEGMENT_TOKENS = 65536 }; /* numbered in 16 bits */
enum { DP_HOLDERS_BYTES = 64 }; /* that `holders` takes at the end of the index */

/* Bytes of the index (all but rows) and of the rows. */
size_t dp_segment_index_bytes(const dp_row_format *format, size_t n_tokens, size_t n_clusters);
size_t dp_segment_row_bytes(const dp_row_format *format, size_t n_tokens);

/* A segment with room for n_tokens in n_clusters, from the arena; false where there is no memory. */
bool dp_segment_alloc(dp_segment *segment, dp_arena *arena, const dp_row_format *format, uint64_t first_token,
                      size_t n_tokens, size_t n_clusters);

/* The same without memory of its own, only its shape, and then with rows and index that are pieces of the arena. */
dp_segment dp_segment_shaped(const dp_row_format *format, uint64_t first_token, size_t n_tokens, size_t n_clusters);
void dp_segment_bind(dp_segment *segment, const dp_row_format *format, char *rows, char *index);

/* What one process can know of a segment that another one has written: whether all that is used as an index is in range. */
bool dp_segment_is_sound(const dp_segment *segment);

/* The same segment for another sequence; one holder less, the last one's leaving gives the memory back. Stale ones have
 * none. */
dp_segment dp_segment_share(const dp_segment *segment);
void dp_segment_free(dp_segment *segment, dp_arena *arena);

/* Copies the rows of the segment's first n tokens in token order: k[n], v[n]. Our own rows only. */
void dp_segment_unpack(const dp_segment *segment, const dp_row_format *format, size_t n, char *k, char *v);

/* Bytes of the arena that the segment takes. */
static inline size_t dp_segment_bytes(const dp_segment *s)
{
    return dp_arena_piece_bytes(s->row_bytes) + dp_arena_piece_bytes(s->index_bytes);
}

static inline uint32_t dp_segment_size(const dp_segment *s, uint32_t cluster)
{
    return s->offset[cluster + 1] - s->offset[cluster];
}

/* Bytes of a group's codes. */
static inline size_t dp_code_bytes(const dp_row_format *f)
{
    return f->key_dim * DP_CODE_GROUP / 2;
}

/* The same of signs, and how many groups a cluster has. Clusters begin a group of their own each, at a place that needs no table: between the numbers of two
 * clusters that follow each other, by this rule, there is room for the groups of the first. */
static inline size_t dp_sign_bytes(const dp_row_format *f)
{
    return f->key_dim * DP_SIGN_GROUP / 8;
}
static inline size_t dp_segment_sign_groups(const dp_segment *s, uint32_t cluster)
{
    return (dp_segment_size(s, cluster) + DP_SIGN_GROUP - 1) / DP_SIGN_GROUP;
}
static inline size_t dp_segment_sign_group(const dp_segment *s, uint32_t cluster)
{
    return s->offset[cluster] / DP_SIGN_GROUP + cluster;
}

static inline bool dp_segment_stale(const dp_segment *s)
{
    return !s->n_clusters;
}

/* Keys and values of a cluster. Our own rows only. */
static inline const char *dp_segment_keys(const dp_segment *s, const dp_row_format *f, uint32_t cluster)
{
    return s->rows + s->offset[cluster] * f->key_bytes;
}

static inline const char *dp_segment_values(const dp_segment *s, const dp_row_format *f, uint32_t cluster)
{
    return s->rows + s->n_tokens * f->key_bytes + s->offset[cluster] * f->value_bytes;
}

static inline dp_run dp_segment_run(const dp_segment *s, const dp_row_format *f, uint32_t cluster)
{
    if (f->borrowed) return (dp_run){.tokens = s->token + s->offset[cluster], .first = (uint32_t)s->first_token};
    return (dp_run){.k = dp_segment_keys(s, f, cluster), .v = dp_segment_values(s, f, cluster)};
}

#endif
