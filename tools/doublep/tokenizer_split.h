/* tokenizer_split.h: the splitting half of the tokenizer: text to pre-tokens, by the rules that a model was trained
 * with. Internal to tokenizer*.c. */
#ifndef DOUBLEP_TOOL_TOKENIZER_SPLIT_H
#define DOUBLEP_TOOL_TOKENIZER_SPLIT_H

#include "tokenizer.h"

typedef struct tokenizer_splitter tokenizer_splitter;

/* By the name in tokenizer.ggml.pre; NULL and a message where it is not known. */
tokenizer_splitter *tokenizer_splitter_create(gguf_string name, char *error, size_t error_size);
void tokenizer_splitter_free(tokenizer_splitter *splitter);

/* True where a pre-token that is itself in the vocabulary is one token, whatever the merges say; likewise whether
 * prompts start with bos unless the file says otherwise. */
bool tokenizer_splitter_ignores_merges(const tokenizer_splitter *splitter);
bool tokenizer_splitter_adds_bos(const tokenizer_splitter *splitter);

/* Bytes of the UTF-8 character that text starts with; 0 where that is none, or not a valid one. */
size_t tokenizer_utf8_length(const char *text, size_t length);

/* Receives pre-tokens in order; together they are the text. False stops the split. */
typedef bool (*tokenizer_piece_fn)(void *user, const char *text, size_t length);

/* False, and a message, where the regular expression's matcher fails; false too where `receive` was. Runs of bytes that
 * are not UTF-8 are pre-tokens of their own. */
bool tokenizer_split(const tokenizer_splitter *splitter, const char *text, size_t length, tokenizer_piece_fn receive,
                     void *user, char *error, size_t error_size);

#endif
