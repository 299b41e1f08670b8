/* tokenizer.h: byte-level BPE from a GGUF file's metadata (tokenizer.ggml.model = gpt2), with the pre-tokenisers
 * smollm, gpt-2 and llama-bpe. Any bytes can be encoded, and decode(encode(x)) is x. */
#ifndef DOUBLEP_TOOL_TOKENIZER_H
#define DOUBLEP_TOOL_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gguf.h"

typedef struct tokenizer tokenizer;

/* A growing list of token ids; start with {0} and end with tokenizer_ids_free. */
typedef struct tokenizer_ids {
    int32_t *ids;
    size_t count, capacity;
} tokenizer_ids;

bool tokenizer_ids_push(tokenizer_ids *list, int32_t id); /* false: no memory, the list is as it was */
void tokenizer_ids_free(tokenizer_ids *list);

/* NULL and a message on failure. Copies what it needs: the file may be closed afterwards. Read-only once created, so
 * any number of threads may use it. */
tokenizer *tokenizer_create(const gguf_file *file, char *error, size_t error_size);
void tokenizer_free(tokenizer *t); /* NULL is allowed */

/* Appends the tokens of text[0 .. length) to out, without bos or eos. With parse_special, the texts of control tokens
 * become those tokens; user-defined tokens always do. False and a message where memory ran out, or a byte has no token
 * in the vocabulary; out then holds what it held before. */
bool tokenizer_encode(const tokenizer *t, const char *text, size_t length, bool parse_special, tokenizer_ids *out,
                      char *error, size_t error_size);

/* The bytes of a token (not terminated; may be part of a UTF-8 character); NULL and length 0 for an id out of range. */
const char *tokenizer_decode(const tokenizer *t, int32_t id, size_t *length);

/* True for control tokens (bos, eos, ...), whose text is not part of what the model says. */
bool tokenizer_is_control(const tokenizer *t, int32_t id);

int32_t tokenizer_vocab_size(const tokenizer *t);
int32_t tokenizer_bos(const tokenizer *t); /* -1 where there is none, as for the next two */
int32_t tokenizer_eos(const tokenizer *t);
int32_t tokenizer_eot(const tokenizer *t);   /* end of a turn of a chat */
bool tokenizer_add_bos(const tokenizer *t); /* a prompt starts with bos */

#endif
