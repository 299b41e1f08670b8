/* context.h: running a model: the forward pass over a prompt and over single tokens, with libdoublep's sequences as its
 * KV cache and its attention.
 *
 * A context holds a runtime and one or more sequences. A prompt goes into all of them at once (its attention is
 * computed once, densely); after that each sequence is decoded on its own, so that several kinds of attention can be
 * compared from one and the same state. A context is used by one thread at a time. */
#ifndef DOUBLEP_TOOL_CONTEXT_H
#define DOUBLEP_TOOL_CONTEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "doublep/doublep.h"
#include "model.h"

enum { MODEL_MAX_SEQUENCES = 4 };

typedef struct model_context model_context;

/* One call of attention in one layer, after the tokens' keys and values were appended. */
typedef struct model_attention_call {
    dp_sequence *sequence; /* in a prompt: the first of all that got the tokens */
    uint32_t sequence_index;
    uint32_t layer;
    bool prefill;
    uint64_t position;  /* of the first token */
    size_t n_tokens;    /* of this chunk */
    size_t n_queries;   /* only the last so many need an output: 0 or 1 in the last layer of a prompt */
    const float *q;     /* [n_tokens][n_heads][key_dim], rotated */
    size_t q_stride;    /* n_heads * key_dim */
    const float *k, *v; /* of token t: at k + t * kv_stride ([n_kv_heads][key_dim], rotated), v + t * kv_stride */
    size_t kv_stride;
    const dp_attention_params *params; /* decoding only; NULL: the library's defaults */
    float *out;                        /* [n_queries][n_heads][value_dim] */
    dp_attention_stats *stats;         /* decoding only; NULL in a prompt */
} model_attention_call;

/* Attention in the library: dp_prefill or dp_decode. */
dp_status model_attention(const model_attention_call *call);

/* A caller's own attention: it may look at the operands and call model_attention, or write `out` itself. An error
 * other than DP_OK ends the pass. */
typedef dp_status (*model_attention_fn)(void *user, const model_attention_call *call);

typedef struct model_context_config {
    dp_runtime_config runtime;
    uint32_t chunk;       /* tokens of a prompt that go through the layers together; default 512, 1 to 65536 */
    uint32_t n_sequences; /* default 1, at most MODEL_MAX_SEQUENCES */
    dp_sequence_config sequences[MODEL_MAX_SEQUENCES]; /* shape filled in from the model; index and type: as you like */
    bool dense[MODEL_MAX_SEQUENCES]; /* all layers of the sequence are always dense: it needs no index */
    bool f32_steps; /* decoding multiplies by the weights in f32, as prompts do, not by those in int8 (linear.h) */
    model_attention_fn attention; /* NULL: model_attention */
    void *user;
} model_context_config;

void model_context_config_init(model_context_config *config, const model *m);

/* Sets the calling thread's number of OpenMP threads to the runtime's, for oneDNN. NULL and a message on failure. */
model_context *model_context_create(const model *m, const model_context_config *config, char *error, size_t error_size);
void model_context_free(model_context *context); /* NULL is allowed */

/* Empties all sequences, for another prompt. */
bool model_context_reset(model_context *context, char *error, size_t error_size);

/* A snapshot of the tokens of one sequence, of one with an index where there is one; and a snapshot's tokens in place of what
 * all sequences have. The note as in dp_sequence_save and dp_load_options. After a failure reset or free the context. */
bool model_context_save(const model_context *context, const char *path, const void *note, size_t note_bytes, char *error,
                        size_t error_size);
bool model_context_load(model_context *context, const char *path, void *note, size_t note_size, size_t *note_bytes,
                        char *error, size_t error_size);

/* Replaces the attention of the config: from the next pass on. */
void model_context_set_attention(model_context *context, model_attention_fn attention, void *user);

const model *model_context_model(const model_context *context);
dp_runtime *model_context_runtime(const model_context *context);
uint32_t model_context_n_sequences(const model_context *context);
dp_sequence *model_context_sequence(const model_context *context, uint32_t i);
uint64_t model_context_tokens(const model_context *context, uint32_t i);

/* What the calls did; they add to it. */
typedef struct model_counters {
    uint64_t tokens;
    uint64_t total_ns, linear_ns, append_ns, attention_ns; /* append: storing, and growing the index */
    uint64_t linear_flops;    /* 2 m n k of every product */
    uint64_t attention_flops; /* prompts only: q K^T and weights V over the causal triangle */
    /* Decoding only, summed over tokens and layers. */
    uint64_t attention_calls, sparse_calls;
    uint64_t bytes, bytes_centroids, bytes_means, bytes_codes, bytes_rows, bytes_dense;
    uint64_t tokens_exact, clusters, clusters_estimated, clusters_refined, tokens_refined;
    uint64_t score_ns, select_ns, scan_ns, gather_ns, merge_ns;
    double mass_estimated; /* sum of shares: divide by attention_calls */
} model_counters;

typedef void (*model_progress_fn)(void *user, size_t done, size_t total);

/* Appends a prompt to all sequences, which must be equally long. logits: NULL, or [n_vocab], of the last token.
 * progress and counters may be NULL. */
bool model_prefill(model_context *context, const int32_t *tokens, size_t n_tokens, float *logits,
                   model_progress_fn progress, void *user, model_counters *counters, char *error, size_t error_size);

/* Clusters what a prompt left waiting in sequence i. */
bool model_build_index(model_context *context, uint32_t i, char *error, size_t error_size);

/* Appends 1 to DP_MAX_DECODE_QUERIES tokens to sequence i, with attention by params (NULL: the library's defaults).
 * logits: [n_tokens][n_vocab], or NULL. */
bool model_decode(model_context *context, uint32_t i, const int32_t *tokens, size_t n_tokens,
                  const dp_attention_params *params, float *logits, model_counters *counters, char *error,
                  size_t error_size);

#endif
