/* prefix.c: see prefix.h. The note is the model's mark, then the token ids. */
#include "prefix.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <zlib.h>

enum { MARK_BYTES = sizeof(uint32_t) };

/* What tells models apart: shape and some of the weights. */
static uint32_t mark_of(const model *m)
{
    const uint32_t shape[] = {m->shape.n_layers, m->shape.width, m->shape.n_heads, m->shape.n_vocab};
    uLong sum = crc32_z(0, (const Bytef *)shape, sizeof(shape));
    sum = crc32_z(sum, (const Bytef *)m->output_norm, m->shape.width * sizeof(float));
    sum = crc32_z(sum, m->embedding->data, (z_size_t)m->embedding->bytes);
    for (uint32_t l = 0; l < m->shape.n_layers; l++)
        sum = crc32_z(sum, (const Bytef *)m->layers[l].ffn_norm, m->shape.width * sizeof(float));
    return (uint32_t)sum;
}

static bool no_memory(char *error, size_t error_size)
{
    snprintf(error, error_size, "out of memory");
    return false;
}

bool prefix_save(const model_context *context, const char *path, const tokenizer_ids *tokens, char *error,
                 size_t error_size)
{
    const uint32_t mark = mark_of(model_context_model(context));
    const size_t bytes = tokens->count * sizeof(*tokens->ids);
    char *const note = malloc(MARK_BYTES + bytes);
    if (!note)
        return no_memory(error, error_size);
    memcpy(note, &mark, MARK_BYTES);
    if (bytes)
        memcpy(note + MARK_BYTES, tokens->ids, bytes);
    const bool done = model_context_save(context, path, note, MARK_BYTES + bytes, error, error_size);
    free(note);
    return done;
}

static bool begins(const model_context *context, const char *path, const tokenizer_ids *prompt, const char *note,
                   size_t note_bytes, char *error, size_t error_size)
{
    const uint32_t mark = mark_of(model_context_model(context));
    const uint64_t n = model_context_tokens(context, 0);
    if (note_bytes < MARK_BYTES || note_bytes - MARK_BYTES != n * sizeof(*prompt->ids)) {
        snprintf(error, error_size, "%s: not written by --save-prefix", path);
    } else if (memcmp(note, &mark, MARK_BYTES) != 0) {
        snprintf(error, error_size, "%s: of another model", path);
    } else if (n > prompt->count) {
        snprintf(error, error_size, "%s: has %llu tokens, the prompt only %zu", path, (unsigned long long)n, prompt->count);
    } else {
        for (size_t i = 0; i < n; i++) {
            int32_t id;
            memcpy(&id, note + MARK_BYTES + i * sizeof(id), sizeof(id));
            if (id == prompt->ids[i])
                continue;
            snprintf(error, error_size, "%s: the prompt differs from it at token %zu of %llu", path, i,
                     (unsigned long long)n);
            return false;
        }
        return true;
    }
    return false;
}

bool prefix_load(model_context *context, const char *path, const tokenizer_ids *prompt, char *error, size_t error_size)
{
    const size_t most = MARK_BYTES + prompt->count * sizeof(*prompt->ids);
    size_t note_bytes = 0;
    char *const note = malloc(most);
    if (!note)
        return no_memory(error, error_size);
    const bool done = model_context_load(context, path, note, most, &note_bytes, error, error_size) &&
                      begins(context, path, prompt, note, note_bytes, error, error_size);
    free(note);
    return done;
}
