/* FLASH_ATTN_EXT through the library. */
#ifndef DP_LLAMACPP_ATTENTION_H
#define DP_LLAMACPP_ATTENTION_H

#include <stdbool.h>

#include "ggml.h"

/* Memory of one backend, kept from step to step. */
typedef struct attention_scratch {
    float *floats;
    uint32_t *group_of;                 /* of every row of every stream */
    struct stream_step *steps;          /* of every stream */
    struct dp_decode_request *requests; /* of every sequence of every stream, as are the next */
    struct dp_attention_stats *stats;
    size_t n_floats, n_rows, n_steps, n_requests, n_stats; /* room */
} attention_scratch;

void attention_scratch_free(attention_scratch *scratch);

/* The shapes and types of the node are such that it may be computed here. */
bool attention_supports(const struct ggml_tensor *node);

/* Computes the node, or returns false and leaves it to the CPU backend. Either way the lists of its layer are up to
 * date afterwards. */
bool attention_compute(const struct ggml_tensor *node, attention_scratch *scratch);

#endif
