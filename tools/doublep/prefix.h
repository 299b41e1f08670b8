/* prefix.h: a prompt's beginning in a file: a snapshot of its sequence, with its tokens and the mark of its model as note. */
#ifndef DOUBLEP_TOOL_PREFIX_H
#define DOUBLEP_TOOL_PREFIX_H

#include "context.h"
#include "tokenizer.h"

/* Writes the tokens that the context has; of several sequences one with an index, where there is one. */
bool prefix_save(const model_context *context, const char *path, const tokenizer_ids *tokens, char *error,
                 size_t error_size);

/* Puts a file's tokens into all sequences of an empty context. They must be the model's own and begin the prompt. */
bool prefix_load(model_context *context, const char *path, const tokenizer_ids *prompt, char *error, size_t error_size);

#endif
