/* Rows in token order: the keys and values of one KV head that are not clustered (sink, window, pending). Rows that the
 * caller keeps are only counted here. */
#ifndef DP_KV_ROWS_H
#define DP_KV_ROWS_H

#include <stdbool.h>
#include <stddef.h>

#include "doublep/doublep.h"
#include "simd/kernels.h"

/* How the rows of a sequence look. */
typedef struct dp_row_format {
    dp_type type;
    size_t key_dim, value_dim;     /* elements */
    size_t key_bytes, value_bytes; /* of a row */
    bool borrowed;                 /* the caller keeps them */
    bool has_codes;                /* segments keep their keys in four bits, too */
} dp_row_format;

/* Bytes of a row of dim elements, and what its address is a multiple of. */
size_t dp_row_bytes(dp_type type, size_t dim);
size_t dp_row_alignment(dp_type type);

typedef struct dp_rows {
    char *k, *v; /* [n] rows each; NULL where they are borrowed */
    size_t n, capacity;
    size_t bytes; /* taken from the system */
} dp_rows;

/* Makes room for `capacity` rows; a capacity below the present one gives memory back. Returns false and changes
 * nothing where there is no memory. */
bool dp_rows_resize(dp_rows *rows, dp_runtime *runtime, const dp_row_format *format, size_t capacity, int node);
void dp_rows_free(dp_rows *rows, dp_runtime *runtime);

/* Appends rows that are like these already; there must be room. */
void dp_rows_copy(dp_rows *rows, const dp_row_format *format, const dp_rows *from);

/* Appends n rows of a type; there must be room. Strides in bytes. */
void dp_rows_append(dp_rows *rows, const dp_kernels *kernels, const dp_row_format *format, dp_type type, const char *k,
                    size_t k_stride, const char *v, size_t v_stride, size_t n);

/* Drops the first n rows. */
void dp_rows_drop(dp_rows *rows, const dp_row_format *format, size_t n);

#endif
