/* trace.h: recordings of a model's attention: the keys, values and decode queries of chosen layers, as
 * `doublep run --record` writes them and `doublep bench --trace` replays them.
 *
 * A file is, in the machine's (little-endian) order: trace_header, then records, each a trace_record and its data:
 *   TRACE_ROWS   keys bf16 [n_tokens][n_kv_heads][dim], rotated, then values bf16 of the same form
 *   TRACE_QUERY  queries f32 [n_tokens][n_query_heads][dim], rotated, of tokens whose rows came just before */
#ifndef DOUBLEP_TOOL_TRACE_H
#define DOUBLEP_TOOL_TRACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "context.h"

enum { TRACE_MAX_LAYERS = 512, TRACE_ROWS = 1, TRACE_QUERY = 2 };

typedef struct trace_header {
    char magic[8]; /* "DPTRACE1" */
    uint32_t n_query_heads, n_kv_heads, dim;
    uint32_t n_layers; /* recorded */
} trace_header;

typedef struct trace_record {
    uint32_t kind;
    uint32_t layer; /* 0 .. n_layers - 1: the n-th of those recorded */
    uint64_t position;
    uint32_t n_tokens;
    uint32_t prompt; /* 1: of the prompt; 0: decoded */
} trace_record;

/* ---- Writing ---- */

typedef struct trace_writer trace_writer;

/* layers: whether to record layer i of the model; NULL: all of them. NULL and a message on failure. */
trace_writer *trace_writer_create(const char *path, const model_shape *shape, const bool *layers, char *error,
                                  size_t error_size);

/* A model_attention_fn (user is a trace_writer): records, then attends in the library. Of several sequences the first
 * is recorded. */
dp_status trace_writer_attend(void *user, const model_attention_call *call);

/* Closes the file; false and a message where something could not be written. NULL is allowed. */
bool trace_writer_finish(trace_writer *writer, char *error, size_t error_size);

/* ---- Reading ---- */

typedef struct trace_rows {
    uint64_t first; /* token of the layer */
    uint32_t n_tokens;
    const uint16_t *k, *v;
} trace_rows;

typedef struct trace_layer {
    trace_rows *rows; /* in token order, without gaps */
    size_t n_rows, rows_capacity;
    const float **queries; /* of the decoded tokens */
    size_t n_queries, queries_capacity;
    uint64_t n_tokens, n_prompt; /* all, and the prompt's */
} trace_layer;

typedef struct trace {
    trace_header header;
    trace_layer *layers;
    void *map;
    size_t map_bytes;
} trace;

/* NULL and a message on failure: every layer must have a prompt and at least one decoded token. */
trace *trace_open(const char *path, char *error, size_t error_size);
void trace_close(trace *t); /* NULL is allowed */

/* The key and value rows of a token, all KV heads, bf16; false beyond the end. */
bool trace_token(const trace *t, uint32_t layer, uint64_t token, const uint16_t **k, const uint16_t **v);

#endif
