/* Building a segment: clustering, outliers, statistics, rows in cluster order. */
#ifndef DP_INDEX_BUILD_H
#define DP_INDEX_BUILD_H

#include "kv/sequence.h"
#include "memory/scratch.h"

/* Tokens of a whole segment that begins at a token, tokens per cluster there, and clusters for its n tokens, single tokens
 * included. */
size_t dp_build_segment_tokens(const dp_sequence_config *config, uint64_t first_token);
size_t dp_build_cluster_tokens(const dp_sequence_config *config, uint64_t first_token);
size_t dp_build_clusters(const dp_sequence_config *config, uint64_t first_token, size_t n_tokens);

/* Whether a head's last segment, of n_tokens from first_token on, takes `more` tokens in, where a segment may be so long: it is
 * built anew with them if it does not fill a panel of centroids. Without that, short appends and many calls of dp_build_index
 * would leave a trail of panels that are mostly padding. */
bool dp_build_extends(const dp_sequence_config *config, uint64_t first_token, size_t n_tokens, size_t more);

/* Bytes of scratch that dp_build_segment needs for up to n_tokens, wherever they begin. */
size_t dp_build_scratch_bytes(const dp_sequence *sequence, size_t n_tokens);

/* The statistics of a cluster, with x = L'k and y0 of the head's queries (kv/queries.h; x = k and y0 = 0 without): token
 * weights a_t = exp(scale y0.x_t) / sum, from which centroid and mean value sum_t a_t k_t, sum_t a_t v_t, and size
 * exp(-sum_t a_t log a_t), which makes the estimate size * exp(scale q.centroid) exact at q = q0; the dispersion weighs
 * all tokens alike: a token that the mean query ignores may be the one that a query looks for.
 *
 * Fills a segment, zeros so far, that was allocated for its tokens with dp_build_clusters clusters (it may end with fewer) from rows
 * in token order, k and v at the segment's first token. Runs on the calling thread. False where oneDNN fails. */
bool dp_build_segment(const dp_sequence *sequence, const dp_queries *queries, dp_segment *segment, const char *k,
                      const char *v, dp_scratch *scratch);

#endif
