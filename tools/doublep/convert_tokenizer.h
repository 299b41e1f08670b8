/* convert_tokenizer.h: tokenizer.json (byte-level BPE) to GGUF metadata. Internal to convert*.c. */
#ifndef DOUBLEP_TOOL_CONVERT_TOKENIZER_H
#define DOUBLEP_TOOL_CONVERT_TOKENIZER_H

#include "convert_config.h"
#include "gguf_writer.h"

/* Writes the tokenizer.ggml.* keys; false and a message where folder/tokenizer.json is not a byte-level BPE tokenizer
 * with one of the pre-tokenisers that tokenizer.h names, or does not fit the config. */
bool convert_tokenizer(const char *folder, const convert_config *config, gguf_writer *w, char *error,
                       size_t error_size);

#endif
