/* rows.c: see rows.h. */
#include "rows.h"

#include <math.h>

void rows_norm(size_t n_rows, size_t width, const float *weight, float epsilon, const float *x, float *y)
{
#pragma omp parallel for if (n_rows > ROWS_SERIAL)
    for (size_t r = 0; r < n_rows; r++) {
        const float *const row = x + r * width;
        double sum = 0;
        for (size_t i = 0; i < width; i++)
            sum += (double)row[i] * (double)row[i];
        const float scale = (float)(1 / sqrt(sum / (double)width + (double)epsilon));
        for (size_t i = 0; i < width; i++)
            y[r * width + i] = row[i] * scale * weight[i];
    }
}

void rows_add(size_t n_rows, size_t width, const float *delta, float *x)
{
#pragma omp parallel for if (n_rows > ROWS_SERIAL)
    for (size_t r = 0; r < n_rows; r++)
        for (size_t i = r * width; i < (r + 1) * width; i++)
            x[i] += delta[i];
}

void rows_swiglu(size_t n_rows, size_t width, const float *gate_up, float *y)
{
#pragma omp parallel for if (n_rows > ROWS_SERIAL)
    for (size_t r = 0; r < n_rows; r++) {
        const float *const gate = gate_up + r * 2 * width, *const up = gate + width;
        for (size_t i = 0; i < width; i++)
            y[r * width + i] = gate[i] / (1 + expf(-gate[i])) * up[i];
    }
}
