/* linear.h: linear layers, y = x W^T, through oneDNN's matmul primitive.
 *
 * Weights are kept in f32, for prompts, and, where the CPU multiplies bytes exactly, in int8 with a step for each output
 * as well: a token's product takes the time in which memory delivers the weights, and these are a quarter of the bytes
 * (the rows are rounded to two bytes an element). Each form is reordered once into the layout that oneDNN prefers.
 * Primitives are made on first use for a shape and a number of rows, and kept by the executor. */
#ifndef DOUBLEP_TOOL_LINEAR_H
#define DOUBLEP_TOOL_LINEAR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct linear_weights linear_weights;
typedef struct linear_executor linear_executor;

/* w: [n_out][n_in], copied. NULL and a message on failure. */
linear_weights *linear_weights_create(size_t n_in, size_t n_out, const float *w, char *error, size_t error_size);
void linear_weights_free(linear_weights *weights); /* NULL is allowed */
size_t linear_weights_bytes(const linear_weights *weights);

/* Primitives for the calling thread's number of OpenMP threads; used by one thread at a time. */
linear_executor *linear_executor_create(char *error, size_t error_size);
void linear_executor_free(linear_executor *executor); /* NULL is allowed */

/* y[rows][n_out] = x[rows][n_in] W^T; rows = 0 does nothing. In bytes: with the weights in int8, where there are such and
 * all rows are finite; then an output is off by at most max|w| (|x|_1 / 250 + n_in max|x| / 65000), w its weights (and by
 * next to nothing where these or x are below 1e-33). The logits of the shipped model are off by 1 % of their root mean
 * square; a token takes 1 ms with these weights, 3 in f32. */
bool linear_execute(linear_executor *executor, const linear_weights *weights, bool in_bytes, size_t rows, const float *x,
                    float *y, char *error, size_t error_size);

/* Floating-point operations of all products so far: 2 rows n_in n_out each. */
uint64_t linear_executor_flops(const linear_executor *executor);

#endif
