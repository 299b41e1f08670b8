/* The kernels' contracts in double precision, element by element, written for clarity. Compiled without vectorisation,
 * so that a fault of the compiler's vectoriser cannot hide on both sides of a comparison. */
#ifndef TESTS_KERNELS_ORACLE_H
#define TESTS_KERNELS_ORACLE_H

#include <stddef.h>
#include <stdint.h>

#include "doublep/types.h"

/* A sum and the sum of its terms' magnitudes: rounding errors are relative to the latter. */
typedef struct oracle_sum {
    double value, magnitude;
} oracle_sum;

double oracle_element(const void *row, size_t i, dp_type type);     /* by arithmetic on the fields */
/* Element j of a row of d elements of any type, int8 with its step, and such a row of x; int8: one that is not finite has a step of
 * NaN. */
size_t oracle_row_bytes(size_t d, dp_type type);
double oracle_row_element(const void *row, size_t j, size_t d, dp_type type);
void oracle_store_row(void *row, const float *x, size_t d, dp_type type);
uint16_t oracle_round(float x, dp_type type);                       /* to f16 or bf16, nearest even; x is not NaN */
void oracle_store(void *row, size_t i, float x, dp_type type);      /* rounded to the type; NaN is stored as a NaN */

/* sum_j x[j * x_step] * row[j], j < n. */
oracle_sum oracle_dot(const float *x, size_t x_step, const void *row, size_t row_step, size_t n, dp_type type);

double oracle_exp(float x, float max); /* exp(x - m) as exp_sum defines it: the difference is a float */

double oracle_soft_cap(float x, float add, float cap);

typedef struct oracle_cluster {
    double y, mass, growth, error;
} oracle_cluster;
double oracle_cluster_logit(float x, float spread, float limit, float base, float scale, float variance);
oracle_cluster oracle_cluster_mass(float x, float size, float spread, float max, float variance);

#endif
