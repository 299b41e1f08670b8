/* trace.c: see trace.h. */
#include "trace.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static const char magic[8] = "DPTRACE1";

/* ---- Writing ------------------------------------------------------------------------------------------------------ */

struct trace_writer {
    FILE *file;
    char *path;
    trace_header header;
    int number[TRACE_MAX_LAYERS]; /* of a layer among those recorded, or -1 */
    uint16_t *converted;
    size_t capacity;
    bool failed; /* memory or the disk: told at the end */
    int reason;
};

trace_writer *trace_writer_create(const char *path, const model_shape *shape, const bool *layers, char *error,
                                  size_t error_size)
{
    trace_writer *const w = calloc(1, sizeof(*w));
    if (!w || !(w->path = strdup(path))) {
        snprintf(error, error_size, "out of memory");
        free(w);
        return NULL;
    }
    memcpy(w->header.magic, magic, sizeof(magic));
    w->header.n_query_heads = shape->n_heads;
    w->header.n_kv_heads = shape->n_kv_heads;
    w->header.dim = shape->key_dim;
    for (uint32_t i = 0; i < TRACE_MAX_LAYERS; i++)
        w->number[i] = i < shape->n_layers && (!layers || layers[i]) ? (int)w->header.n_layers++ : -1;
    if (shape->key_dim != shape->value_dim || shape->n_layers > TRACE_MAX_LAYERS)
        snprintf(error, error_size, "models with different dimensions of keys and values, or more than %d layers, are not "
                 "recorded", TRACE_MAX_LAYERS);
    else if (!(w->file = fopen(path, "wb")) || fwrite(&w->header, sizeof(w->header), 1, w->file) != 1)
        snprintf(error, error_size, "%s: %s", path, strerror(errno));
    else
        return w;
    if (w->file)
        fclose(w->file);
    free(w->path);
    free(w);
    return NULL;
}

/* To nearest even; NaN stays NaN. */
static uint16_t to_bf16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static bool write_bytes(trace_writer *w, const void *data, size_t bytes)
{
    return fwrite(data, 1, bytes, w->file) == bytes;
}

/* Rows of keys, or of values, one below the other. */
static bool write_rows(trace_writer *w, const float *rows, size_t n, size_t stride)
{
    const size_t width = (size_t)w->header.n_kv_heads * w->header.dim;
    if (n * width > w->capacity) {
        uint16_t *const larger = realloc(w->converted, n * width * sizeof(*larger));
        if (!larger)
            return false;
        w->converted = larger;
        w->capacity = n * width;
    }
    for (size_t t = 0; t < n; t++)
        for (size_t j = 0; j < width; j++)
            w->converted[t * width + j] = to_bf16(rows[t * stride + j]);
    return write_bytes(w, w->converted, n * width * sizeof(*w->converted));
}

static bool record(trace_writer *w, const model_attention_call *call)
{
    trace_record r = {.kind = TRACE_ROWS,
                      .layer = (uint32_t)w->number[call->layer],
                      .position = call->position,
                      .n_tokens = (uint32_t)call->n_tokens,
                      .prompt = call->prefill};
    if (!write_bytes(w, &r, sizeof(r)) || !write_rows(w, call->k, call->n_tokens, call->kv_stride) ||
        !write_rows(w, call->v, call->n_tokens, call->kv_stride))
        return false;
    if (call->prefill)
        return true;
    r.kind = TRACE_QUERY;
    bool done = write_bytes(w, &r, sizeof(r));
    for (size_t t = 0; done && t < call->n_tokens; t++)
        done = write_bytes(w, call->q + t * call->q_stride, (size_t)w->header.n_query_heads * w->header.dim * sizeof(float));
    return done;
}

dp_status trace_writer_attend(void *user, const model_attention_call *call)
{
    trace_writer *const w = user;
    if (!w->failed && call->sequence_index == 0 && w->number[call->layer] >= 0 && !record(w, call)) {
        w->failed = true;
        w->reason = errno ? errno : ENOMEM;
    }
    return model_attention(call);
}

bool trace_writer_finish(trace_writer *w, char *error, size_t error_size)
{
    if (!w)
        return true;
    if (fclose(w->file) != 0 && !w->failed) {
        w->failed = true;
        w->reason = errno;
    }
    const bool done = !w->failed;
    if (!done)
        snprintf(error, error_size, "%s: %s", w->path, strerror(w->reason));
    free(w->converted);
    free(w->path);
    free(w);
    return done;
}

/* ---- Reading ------------------------------------------------------------------------------------------------------ */

static bool grow(void **items, size_t n, size_t *capacity, size_t item_bytes)
{
    if (n < *capacity)
        return true;
    const size_t larger = *capacity ? 2 * *capacity : 64;
    void *const moved = realloc(*items, larger * item_bytes);
    if (!moved)
        return false;
    *items = moved;
    *capacity = larger;
    return true;
}

/* Takes one record in; the message says what is wrong with it. */
static const char *take(trace *t, const trace_record *r, const char *data)
{
    const trace_header *const h = &t->header;
    trace_layer *const layer = &t->layers[r->layer];
    const size_t width = (size_t)h->n_kv_heads * h->dim;
    if (r->kind == TRACE_ROWS) {
        if (r->position != layer->n_tokens || (r->prompt && layer->n_prompt != layer->n_tokens))
            return "tokens are not in order";
        if (!grow((void **)&layer->rows, layer->n_rows, &layer->rows_capacity, sizeof(*layer->rows)))
            return "out of memory";
        const uint16_t *const k = (const uint16_t *)data;
        layer->rows[layer->n_rows++] = (trace_rows){layer->n_tokens, r->n_tokens, k, k + r->n_tokens * width};
        layer->n_tokens += r->n_tokens;
        layer->n_prompt += r->prompt ? r->n_tokens : 0;
        return NULL;
    }
    for (uint32_t i = 0; i < r->n_tokens; i++) {
        if (!grow((void **)&layer->queries, layer->n_queries, &layer->queries_capacity, sizeof(*layer->queries)))
            return "out of memory";
        layer->queries[layer->n_queries++] = (const float *)data + (size_t)i * h->n_query_heads * h->dim;
    }
    return NULL;
}

static const char *read_records(trace *t)
{
    const trace_header *const h = &t->header;
    const uint64_t kv_bytes = 2ull * h->n_kv_heads * h->dim * sizeof(uint16_t);
    const uint64_t q_bytes = (uint64_t)h->n_query_heads * h->dim * sizeof(float);
    size_t at = sizeof(*h);
    while (at < t->map_bytes) {
        trace_record r;
        if (t->map_bytes - at < sizeof(r))
            return "is cut off";
        memcpy(&r, (const char *)t->map + at, sizeof(r));
        at += sizeof(r);
        if ((r.kind != TRACE_ROWS && r.kind != TRACE_QUERY) || r.layer >= h->n_layers || r.n_tokens == 0)
            return "has a damaged record";
        const uint64_t bytes = r.n_tokens * (r.kind == TRACE_ROWS ? kv_bytes : q_bytes);
        if (bytes > t->map_bytes - at)
            return "is cut off";
        const char *const wrong = take(t, &r, (const char *)t->map + at);
        if (wrong)
            return wrong;
        at += bytes;
    }
    for (uint32_t l = 0; l < h->n_layers; l++)
        if (t->layers[l].n_prompt == 0 || t->layers[l].n_queries == 0 ||
            t->layers[l].n_queries != t->layers[l].n_tokens - t->layers[l].n_prompt)
            return "lacks a prompt or decoded tokens";
    return NULL;
}

static const char *read_header(trace *t)
{
    trace_header *const h = &t->header;
    if (t->map_bytes < sizeof(*h) || memcmp(t->map, magic, sizeof(magic)) != 0)
        return "is not a recording of `doublep run --record`";
    memcpy(h, t->map, sizeof(*h));
    if (h->n_layers == 0 || h->n_layers > TRACE_MAX_LAYERS || h->n_kv_heads == 0 || h->n_query_heads == 0 ||
        h->n_query_heads > 1024 || h->n_query_heads % h->n_kv_heads != 0 || h->dim < 8 || h->dim > 512 || h->dim % 8 != 0)
        return "has a damaged header";
    t->layers = calloc(h->n_layers, sizeof(*t->layers));
    return t->layers ? read_records(t) : "out of memory";
}

trace *trace_open(const char *path, char *error, size_t error_size)
{
    trace *const t = calloc(1, sizeof(*t));
    struct stat status;
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    if (!t || file < 0 || fstat(file, &status) != 0) {
        snprintf(error, error_size, "%s: %s", path, strerror(errno));
        if (file >= 0)
            close(file);
        free(t);
        return NULL;
    }
    t->map_bytes = (size_t)status.st_size;
    t->map = t->map_bytes ? mmap(NULL, t->map_bytes, PROT_READ, MAP_PRIVATE, file, 0) : MAP_FAILED;
    close(file);
    const char *wrong = "cannot be mapped into memory, or is empty";
    if (t->map == MAP_FAILED)
        t->map = NULL;
    else
        wrong = read_header(t);
    if (!wrong)
        return t;
    snprintf(error, error_size, "%s: %s", path, wrong);
    trace_close(t);
    return NULL;
}

void trace_close(trace *t)
{
    if (!t)
        return;
    for (uint32_t l = 0; t->layers && l < t->header.n_layers; l++) {
        free(t->layers[l].rows);
        free(t->layers[l].queries);
    }
    free(t->layers);
    if (t->map)
        munmap(t->map, t->map_bytes);
    free(t);
}

bool trace_token(const trace *t, uint32_t layer, uint64_t token, const uint16_t **k, const uint16_t **v)
{
    const trace_layer *const l = &t->layers[layer];
    const size_t width = (size_t)t->header.n_kv_heads * t->header.dim;
    size_t low = 0, high = l->n_rows;
    if (token >= l->n_tokens)
        return false;
    while (high - low > 1) {
        const size_t middle = (low + high) / 2;
        if (l->rows[middle].first <= token)
            low = middle;
        else
            high = middle;
    }
    *k = l->rows[low].k + (token - l->rows[low].first) * width;
    *v = l->rows[low].v + (token - l->rows[low].first) * width;
    return true;
}
