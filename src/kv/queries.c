/* Sums over queries, and what they settle into. */
#include "kv/queries.h"

#include <math.h>
#include <string.h>

#include "memory/budget.h"

static size_t bytes(size_t dim)
{
    return (dim + dim * dim) * sizeof(float);
}

bool dp_queries_reserve(dp_queries *s, dp_runtime *rt, size_t dim)
{
    if (!s->vector) s->vector = dp_heap_resize(rt, NULL, 0, bytes(dim));
    return s->vector != NULL;
}

void dp_queries_add(dp_queries *s, size_t dim, const float *q, size_t stride, size_t n)
{
    float *const moment = dp_queries_factor(s, dim);
    for (size_t r = 0; r < n; r++, q += stride) {
        float norm2 = 0;
        for (size_t i = 0; i < dim; i++) norm2 += q[i] * q[i];
        if (!isfinite(norm2)) continue;
        for (size_t i = 0; i < dim; i++) {
            s->vector[i] += q[i];
            for (size_t j = 0; j <= i; j++) moment[i * dim + j] += q[i] * q[j];
        }
        s->n++;
    }
}

/* Solves L y = y in place. */
static void solve(const float *factor, size_t dim, float *y)
{
    for (size_t i = 0; i < dim; i++) {
        double sum = y[i];
        for (size_t j = 0; j < i; j++) sum -= (double)factor[i * dim + j] * y[j];
        y[i] = (float)(sum / factor[i * dim + i]);
    }
}

/* L of M = L L' over M's lower triangle; M's smallest eigenvalue is 1 - share, so that nothing can go wrong. */
static void factorise(float *m, size_t dim)
{
    for (size_t i = 0; i < dim; i++) {
        for (size_t j = 0; j <= i; j++) {
            double sum = m[i * dim + j];
            for (size_t k = 0; k < j; k++) sum -= (double)m[i * dim + k] * m[j * dim + k];
            m[i * dim + j] = (float)(i == j ? sqrt(sum) : sum / m[j * dim + j]);
        }
        memset(m + i * dim + i + 1, 0, (dim - i - 1) * sizeof *m);
    }
}

void dp_queries_settle(dp_queries *s, size_t dim, float metric_share, float origin_share)
{
    if (s->settled || !s->n) return;
    float *const m = dp_queries_factor(s, dim);
    double trace = 0;
    for (size_t i = 0; i < dim; i++) trace += m[i * dim + i];
    if (!isfinite(trace) || !(trace > 0)) return;
    const double factor = metric_share * (double)dim / trace;
    for (size_t i = 0; i < dim; i++) {
        s->vector[i] *= origin_share / (float)s->n;
        for (size_t j = 0; j <= i; j++) m[i * dim + j] = (float)(factor * m[i * dim + j]);
        m[i * dim + i] += 1 - metric_share;
    }
    factorise(m, dim);
    solve(m, dim, s->vector);
    s->settled = true;
}

bool dp_queries_copy(dp_queries *copy, const dp_queries *s, dp_runtime *rt, size_t dim)
{
    *copy = (dp_queries){.n = s->n, .settled = s->settled};
    if (!s->vector) return true;
    if (!dp_queries_reserve(copy, rt, dim)) return false;
    memcpy(copy->vector, s->vector, bytes(dim));
    return true;
}

void dp_queries_free(dp_queries *s, dp_runtime *rt, size_t dim)
{
    dp_heap_resize(rt, s->vector, dp_queries_bytes(s, dim), 0);
    s->vector = NULL;
}

size_t dp_queries_bytes(const dp_queries *s, size_t dim)
{
    return s->vector ? bytes(dim) : 0;
}

float dp_queries_offset(const dp_queries *s, const dp_kernels *kernels, size_t dim, const float *q, float *offset)
{
    if (!s->settled) {
        memcpy(offset, q, dim * sizeof *q);
    } else {
        const float *const factor = dp_queries_factor(s, dim);
        for (size_t i = 0; i < dim; i++)
            offset[i] = (q[i] - kernels->dot(factor + i * dim, offset, i)) / factor[i * dim + i];
        kernels->axpy(offset, s->vector, -1.0f, dim);
    }
    return kernels->dot(offset, offset, dim);
}

void dp_queries_restore(const dp_queries *s, size_t dim, float *x)
{
    const float *const factor = dp_queries_factor(s, dim);
    for (size_t i = dim; i-- > 0;) {
        x[i] /= factor[i * dim + i];
        for (size_t j = 0; j < i; j++) x[j] -= factor[i * dim + j] * x[i];
    }
}
