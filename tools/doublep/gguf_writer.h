/* gguf_writer.h: writing GGUF files (version 3): keys and tensors are declared, then the header is written, then the
 * tensors' data in the order of their declaration. */
#ifndef DOUBLEP_TOOL_GGUF_WRITER_H
#define DOUBLEP_TOOL_GGUF_WRITER_H

#include <stdio.h>

#include "gguf.h"

typedef struct gguf_writer gguf_writer;

gguf_writer *gguf_writer_create(FILE *file); /* NULL: no memory */
void gguf_writer_free(gguf_writer *w);       /* NULL is allowed; leaves the file open */

/* Metadata. Failures are kept for gguf_writer_finish. */
void gguf_writer_u32(gguf_writer *w, const char *key, uint32_t value);
void gguf_writer_f32(gguf_writer *w, const char *key, float value);
void gguf_writer_bool(gguf_writer *w, const char *key, bool value);
void gguf_writer_string(gguf_writer *w, const char *key, const char *value);
void gguf_writer_i32s(gguf_writer *w, const char *key, const int32_t *values, size_t n);
void gguf_writer_strings(gguf_writer *w, const char *key, const gguf_string *values, size_t n);

/* Declares a tensor; dims[0] is the length of a row, a multiple of the type's block. */
void gguf_writer_tensor(gguf_writer *w, const char *name, uint32_t n_dims, const uint64_t *dims, quant_type type);

/* After all declarations. */
void gguf_writer_header(gguf_writer *w);

/* Data of the declared tensors, in order, in pieces of any size; the padding between them is the writer's. */
void gguf_writer_data(gguf_writer *w, const void *data, size_t bytes);

/* True where everything was written, the data being just what was declared, and has reached the system. */
bool gguf_writer_finish(gguf_writer *w);

#endif
