/* rows.h: the operations of a layer that work on single rows: normalisation, residual sums, SwiGLU. */
#ifndef DOUBLEP_TOOL_ROWS_H
#define DOUBLEP_TOOL_ROWS_H

#include <stddef.h>

/* So few rows are done before a team of threads has started. */
enum { ROWS_SERIAL = 4 };

/* y = x / sqrt(mean of x^2 + epsilon) * weight, per row. */
void rows_norm(size_t n_rows, size_t width, const float *weight, float epsilon, const float *x, float *y);

/* x += delta. */
void rows_add(size_t n_rows, size_t width, const float *delta, float *x);

/* y = silu(gate) * up; a row of gate_up is gate[width], up[width]. */
void rows_swiglu(size_t n_rows, size_t width, const float *gate_up, float *y);

#endif
