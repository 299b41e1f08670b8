/* model.h: a Llama-architecture model, loaded from a GGUF file: its shape, tokenizer and weights (linear.h), expanded to f32.
 *
 * What is supported: RMSNorm, rotary embedding of interleaved pairs (linear scaling, and the per-pair factors of
 * Llama 3), grouped-query attention, SwiGLU, tied and untied output. A file that asks for more is refused at load, with
 * a message that says what. Read-only once loaded: any number of contexts (context.h) may share it. */
#ifndef DOUBLEP_TOOL_MODEL_H
#define DOUBLEP_TOOL_MODEL_H

#include <stddef.h>
#include <stdint.h>

#include "gguf.h"
#include "linear.h"
#include "tokenizer.h"

typedef struct model_shape {
    uint32_t n_layers;
    uint32_t width; /* of the residual stream */
    uint32_t n_heads, n_kv_heads;
    uint32_t key_dim, value_dim; /* of one head */
    uint32_t ffn_width;
    uint32_t n_vocab;
    uint32_t n_context; /* tokens that the model was trained for */
    uint32_t rope_dims; /* the first so many elements of a key are rotated */
    double rope_base;
    double rope_position_scale; /* 1 / the factor of linear scaling */
    float norm_epsilon;
} model_shape;

typedef struct model_layer {
    float *attention_norm, *ffn_norm; /* [width] */
    linear_weights *qkv;     /* queries, keys and values, one below the other */
    linear_weights *output;  /* of the attention */
    linear_weights *gate_up; /* gate and up, one below the other */
    linear_weights *down;
} model_layer;

typedef struct model {
    gguf_file *file;
    model_shape shape;
    tokenizer *tokenizer;
    const gguf_tensor *embedding; /* [n_vocab][width], in the file's type: rows are expanded as they are needed */
    float *output_norm;
    double *rope_frequencies; /* [rope_dims / 2], radians per position */
    linear_weights *logits;   /* [n_vocab][width] */
    model_layer *layers;
    uint64_t weight_bytes; /* of all weights that the model holds in memory */
} model;

/* NULL and a message on failure. */
model *model_load(const char *path, char *error, size_t error_size);
void model_free(model *m); /* NULL is allowed */

/* Floats in one token's queries, keys and values. */
static inline size_t model_q_width(const model_shape *s)
{
    return (size_t)s->n_heads * s->key_dim;
}
static inline size_t model_k_width(const model_shape *s)
{
    return (size_t)s->n_kv_heads * s->key_dim;
}
static inline size_t model_v_width(const model_shape *s)
{
    return (size_t)s->n_kv_heads * s->value_dim;
}

#endif
