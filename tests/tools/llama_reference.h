/* llama_reference.h: a Llama forward pass in double precision, in plain loops over the GGUF file's tensors. It shares
 * nothing with the runner but the GGUF reader: what the runner is compared with. */
#ifndef TESTS_LLAMA_REFERENCE_H
#define TESTS_LLAMA_REFERENCE_H

#include <stddef.h>
#include <stdint.h>

#include "gguf.h"

typedef struct llama_reference {
    size_t n_layers, width, n_heads, n_kv_heads, head_dim, ffn_width, n_vocab, n_tokens;
    double *keys, *values; /* [n_layers][n_tokens][n_kv_heads][head_dim]; keys are rotated */
    double *logits;        /* [n_vocab], of the last token */
} llama_reference;

/* Everything about n tokens; to be freed. Ends the program where the file is not as expected. */
llama_reference *llama_reference_run(const gguf_file *file, const int32_t *tokens, size_t n_tokens);
void llama_reference_free(llama_reference *r);

#endif
