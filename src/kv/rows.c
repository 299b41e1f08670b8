/* Rows in token order. */
#include "kv/rows.h"

#include <string.h>

#include "memory/pages.h"
#include "runtime/runtime.h"

size_t dp_row_bytes(dp_type type, size_t dim)
{
    return type == DP_INT8 ? dim + sizeof(float) : type == DP_F32 ? dim * sizeof(float) : dim * sizeof(uint16_t);
}

size_t dp_row_alignment(dp_type type)
{
    return type == DP_F32 || type == DP_INT8 ? sizeof(float) : sizeof(uint16_t);
}

bool dp_rows_resize(dp_rows *rows, dp_runtime *runtime, const dp_row_format *format, size_t capacity, int node)
{
    if (format->borrowed) return true;
    const size_t row = format->key_bytes + format->value_bytes;
    const size_t bytes = dp_pages_round(runtime, (capacity ? capacity : 1) * row);
    if (bytes == rows->bytes) return true;
    char *const base = dp_pages_alloc(runtime, bytes, node);
    if (!base) return false;
    capacity = bytes / row;
    dp_rows moved = {.k = base, .v = base + capacity * format->key_bytes, .capacity = capacity, .bytes = bytes};
    dp_rows_copy(&moved, format, rows);
    dp_pages_free(runtime, rows->k, rows->bytes);
    *rows = moved;
    return true;
}

void dp_rows_free(dp_rows *rows, dp_runtime *runtime)
{
    dp_pages_free(runtime, rows->k, rows->bytes);
    *rows = (dp_rows){0};
}

void dp_rows_copy(dp_rows *rows, const dp_row_format *format, const dp_rows *from)
{
    if (from->n && !format->borrowed) {
        memcpy(rows->k + rows->n * format->key_bytes, from->k, from->n * format->key_bytes);
        memcpy(rows->v + rows->n * format->value_bytes, from->v, from->n * format->value_bytes);
    }
    rows->n += from->n;
}

/* Stores a row that is given in another type, or in the same. */
static void store_row(const dp_kernels *kernels, dp_type to, void *row, dp_type from, const void *given, size_t dim)
{
    float wide[DP_MAX_DIM];
    if (from == to) {
        memcpy(row, given, dp_row_bytes(to, dim));
    } else if (from == DP_F32) {
        kernels->from_f32[to](row, given, dim);
    } else {
        kernels->to_f32[from](wide, given, dim);
        kernels->from_f32[to](row, wide, dim);
    }
}

void dp_rows_append(dp_rows *rows, const dp_kernels *kernels, const dp_row_format *format, dp_type type, const char *k,
                    size_t k_stride, const char *v, size_t v_stride, size_t n)
{
    for (size_t i = 0; i < n && !format->borrowed; i++) {
        store_row(kernels, format->type, rows->k + (rows->n + i) * format->key_bytes, type, k + i * k_stride,
                  format->key_dim);
        store_row(kernels, format->type, rows->v + (rows->n + i) * format->value_bytes, type, v + i * v_stride,
                  format->value_dim);
    }
    rows->n += n;
}

void dp_rows_drop(dp_rows *rows, const dp_row_format *format, size_t n)
{
    rows->n -= n;
    if (format->borrowed) return;
    memmove(rows->k, rows->k + n * format->key_bytes, rows->n * format->key_bytes);
    memmove(rows->v, rows->v + n * format->value_bytes, rows->n * format->value_bytes);
}
