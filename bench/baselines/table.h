/* table.h: the row kernels over tables of rows that follow each other, whole or by index. */
#ifndef DOUBLEP_BENCH_TABLE_H
#define DOUBLEP_BENCH_TABLE_H

#include "simd/kernels.h"

/* The rows rows[i] or, with an index, rows[index[i]], i < n. */
typedef struct row_table {
    dp_type type;
    const void *rows; /* [..][dim] */
    size_t dim;
    const uint32_t *index; /* NULL: all in order */
    size_t n;
} row_table;

/* key_logits and weighted_values over the n rows. */
void table_logits(const dp_kernels *kernels, const row_table *table, const float *q, size_t heads, float scale,
                  float *out, size_t out_stride);
void table_values(const dp_kernels *kernels, const row_table *table, const float *w, size_t w_stride, size_t heads,
                  float *acc);

#endif
