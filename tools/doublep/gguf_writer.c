/* gguf_writer.c: collects keys and descriptions of tensors in memory, since their counts come first in the file. */
#include "gguf_writer.h"

#include <stdlib.h>
#include <string.h>

enum { ALIGNMENT = 32 };

typedef struct section {
    FILE *stream;
    char *bytes;
    size_t size;
    uint64_t count;
} section;

struct gguf_writer {
    FILE *file;
    section keys, tensors;
    uint64_t *tensor_bytes;
    size_t current;   /* tensor whose data is being written */
    uint64_t written; /* of it */
    uint64_t offset;  /* of the next tensor to be declared */
    bool failed;
};

static void put(gguf_writer *w, FILE *stream, const void *bytes, size_t n)
{
    if (n && fwrite(bytes, 1, n, stream) != n) w->failed = true;
}

static void put_u32(gguf_writer *w, FILE *stream, uint32_t value)
{
    put(w, stream, &value, sizeof value);
}

static void put_u64(gguf_writer *w, FILE *stream, uint64_t value)
{
    put(w, stream, &value, sizeof value);
}

static void put_string(gguf_writer *w, FILE *stream, const char *data, size_t length)
{
    put_u64(w, stream, length);
    put(w, stream, data, length);
}

static void pad(gguf_writer *w, uint64_t bytes)
{
    static const char zeros[ALIGNMENT];
    put(w, w->file, zeros, (size_t)(-bytes % ALIGNMENT));
}

gguf_writer *gguf_writer_create(FILE *file)
{
    gguf_writer *w = calloc(1, sizeof *w);
    if (!w) return NULL;
    w->file = file;
    w->keys.stream = open_memstream(&w->keys.bytes, &w->keys.size);
    w->tensors.stream = open_memstream(&w->tensors.bytes, &w->tensors.size);
    if (w->keys.stream && w->tensors.stream) return w;
    gguf_writer_free(w);
    return NULL;
}

void gguf_writer_free(gguf_writer *w)
{
    if (!w) return;
    if (w->keys.stream) fclose(w->keys.stream);
    if (w->tensors.stream) fclose(w->tensors.stream);
    free(w->keys.bytes);
    free(w->tensors.bytes);
    free(w->tensor_bytes);
    free(w);
}

static void start_key(gguf_writer *w, const char *key, gguf_type type)
{
    w->keys.count++;
    put_string(w, w->keys.stream, key, strlen(key));
    put_u32(w, w->keys.stream, type);
}

static void start_array(gguf_writer *w, const char *key, gguf_type type, size_t n)
{
    start_key(w, key, GGUF_ARRAY);
    put_u32(w, w->keys.stream, type);
    put_u64(w, w->keys.stream, n);
}

void gguf_writer_u32(gguf_writer *w, const char *key, uint32_t value)
{
    start_key(w, key, GGUF_UINT32);
    put_u32(w, w->keys.stream, value);
}

void gguf_writer_f32(gguf_writer *w, const char *key, float value)
{
    start_key(w, key, GGUF_FLOAT32);
    put(w, w->keys.stream, &value, sizeof value);
}

void gguf_writer_bool(gguf_writer *w, const char *key, bool value)
{
    start_key(w, key, GGUF_BOOL);
    put(w, w->keys.stream, &(uint8_t){value}, 1);
}

void gguf_writer_string(gguf_writer *w, const char *key, const char *value)
{
    start_key(w, key, GGUF_STRING);
    put_string(w, w->keys.stream, value, strlen(value));
}

void gguf_writer_i32s(gguf_writer *w, const char *key, const int32_t *values, size_t n)
{
    start_array(w, key, GGUF_INT32, n);
    put(w, w->keys.stream, values, n * sizeof *values);
}

void gguf_writer_strings(gguf_writer *w, const char *key, const gguf_string *values, size_t n)
{
    start_array(w, key, GGUF_STRING, n);
    for (size_t i = 0; i < n; i++) put_string(w, w->keys.stream, values[i].data, values[i].length);
}

void gguf_writer_tensor(gguf_writer *w, const char *name, uint32_t n_dims, const uint64_t *dims, quant_type type)
{
    const quant_layout *layout = quant_get_layout(type);
    uint64_t *tensor_bytes = realloc(w->tensor_bytes, (w->tensors.count + 1) * sizeof *tensor_bytes);
    if (!tensor_bytes) {
        w->failed = true;
        return;
    }
    w->tensor_bytes = tensor_bytes;
    FILE *stream = w->tensors.stream;
    put_string(w, stream, name, strlen(name));
    put_u32(w, stream, n_dims);
    uint64_t n_elements = 1;
    for (uint32_t i = 0; i < n_dims; i++) {
        put_u64(w, stream, dims[i]);
        n_elements *= dims[i];
    }
    put_u32(w, stream, type);
    put_u64(w, stream, w->offset);
    const uint64_t bytes = n_elements / layout->block * layout->block_bytes;
    w->tensor_bytes[w->tensors.count++] = bytes;
    w->offset += bytes + -bytes % ALIGNMENT;
}

void gguf_writer_header(gguf_writer *w)
{
    if (fflush(w->keys.stream) != 0 || fflush(w->tensors.stream) != 0) {
        w->failed = true;
        return;
    }
    put(w, w->file, "GGUF", 4);
    put_u32(w, w->file, 3);
    put_u64(w, w->file, w->tensors.count);
    put_u64(w, w->file, w->keys.count);
    put(w, w->file, w->keys.bytes, w->keys.size);
    put(w, w->file, w->tensors.bytes, w->tensors.size);
    pad(w, 24 + w->keys.size + w->tensors.size);
}

void gguf_writer_data(gguf_writer *w, const void *data, size_t bytes)
{
    const char *from = data;
    while (bytes && !w->failed) {
        if (w->current == w->tensors.count) {
            w->failed = true;
            return;
        }
        const uint64_t wanted = w->tensor_bytes[w->current] - w->written;
        const size_t n = bytes < wanted ? bytes : (size_t)wanted;
        put(w, w->file, from, n);
        from += n;
        bytes -= n;
        w->written += n;
        if (w->written == w->tensor_bytes[w->current]) {
            pad(w, w->written);
            w->current++;
            w->written = 0;
        }
    }
}

bool gguf_writer_finish(gguf_writer *w)
{
    return !w->failed && w->current == w->tensors.count && w->written == 0 && fflush(w->file) == 0;
}
