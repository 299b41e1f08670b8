/* Lloyd's algorithm; the products of points and centroids go through oneDNN. */
#include "index/kmeans.h"

#include <math.h>
#include <oneapi/dnnl/dnnl.h>
#include <string.h>

/* The means find their places by samples of the points, which grow: strides 4 4 3 3 2 2 1 1 of eight iterations. Half the
 * products of eight whole ones, for 1.4 % more inertia (FAISS's k-means: 1.35 % more). WHOLE: iterations over all points. */
enum { WHOLE = 2, SAMPLE_PER_MEAN = 5 };

void dp_kmeans_carve(dp_kmeans *p, dp_scratch *scratch)
{
    p->x = dp_scratch_take(scratch, p->n * p->dim * sizeof *p->x);
    p->centroids = dp_scratch_take(scratch, p->n_means * p->dim * sizeof *p->centroids);
    p->assignment = dp_scratch_take(scratch, p->n * sizeof *p->assignment);
    p->count = dp_scratch_take(scratch, p->n_means * sizeof *p->count);
    p->distance = dp_scratch_take(scratch, p->n * sizeof *p->distance);
    p->directions = dp_scratch_take(scratch, p->n_means * p->dim * sizeof *p->directions);
    p->half_norm = dp_scratch_take(scratch, p->n_means * sizeof *p->half_norm);
    p->products = dp_scratch_take(scratch, DP_KMEANS_BLOCK * p->n_means * sizeof *p->products);
    p->difference = dp_scratch_take(scratch, p->dim * sizeof *p->difference);
}

/* What points are compared with: the centroids (nearest: largest x.c - |c|^2 / 2), or their directions (largest x.c). */
static const float *comparands(dp_kmeans *p)
{
    const bool spherical = p->clustering == DP_CLUSTERING_SPHERICAL;
    for (size_t j = 0; j < p->n_means; j++) {
        const float *const c = p->centroids + j * p->dim;
        const float norm2 = p->kernels->dot(c, c, p->dim);
        p->half_norm[j] = spherical ? 0.0f : 0.5f * norm2;
        if (spherical) {
            float *const direction = p->directions + j * p->dim;
            memcpy(direction, c, p->dim * sizeof *c);
            p->kernels->scale(direction, norm2 > 0 ? 1.0f / sqrtf(norm2) : 0.0f, p->dim);
        }
    }
    return spherical ? p->directions : p->centroids;
}

/* Assigns every stride-th point; *changed tells whether any moved. */
static bool assign(dp_kmeans *p, size_t stride, bool *changed)
{
    const float *const c = comparands(p);
    const size_t n_assigned = (p->n + stride - 1) / stride;
    *changed = false;
    for (size_t first = 0; first < n_assigned; first += DP_KMEANS_BLOCK) {
        const size_t n = n_assigned - first < DP_KMEANS_BLOCK ? n_assigned - first : DP_KMEANS_BLOCK;
        const dnnl_dim_t dim = (dnnl_dim_t)p->dim, means = (dnnl_dim_t)p->n_means;
        if (dnnl_sgemm('N', 'T', (dnnl_dim_t)n, means, dim, 1.0f, p->x + first * stride * p->dim,
                       (dnnl_dim_t)stride * dim, c, dim, 0.0f, p->products, means) != dnnl_success)
            return false;
        for (size_t i = 0; i < n; i++) {
            float best;
            const uint32_t j =
                (uint32_t)p->kernels->nearest(p->products + i * p->n_means, p->half_norm, p->n_means, &best);
            uint32_t *const assignment = &p->assignment[(first + i) * stride];
            *changed |= *assignment != j;
            *assignment = j;
        }
    }
    return true;
}

void dp_kmeans_update(dp_kmeans *p)
{
    memset(p->count, 0, p->n_means * sizeof *p->count);
    for (size_t i = 0; i < p->n; i++)
        if (p->assignment[i] != UINT32_MAX) p->count[p->assignment[i]]++;
    for (size_t j = 0; j < p->n_means; j++) /* an empty cluster keeps its centroid: points may come back to it */
        if (p->count[j]) memset(p->centroids + j * p->dim, 0, p->dim * sizeof *p->centroids);
    for (size_t i = 0; i < p->n; i++)
        if (p->assignment[i] != UINT32_MAX)
            p->kernels->axpy(p->centroids + p->assignment[i] * p->dim, p->x + i * p->dim, 1.0f, p->dim);
    for (size_t j = 0; j < p->n_means; j++)
        if (p->count[j]) p->kernels->scale(p->centroids + j * p->dim, 1.0f / (float)p->count[j], p->dim);
}

static void measure(dp_kmeans *p)
{
    for (size_t i = 0; i < p->n; i++) {
        memcpy(p->difference, p->x + i * p->dim, p->dim * sizeof *p->difference);
        p->kernels->axpy(p->difference, p->centroids + p->assignment[i] * p->dim, -1.0f, p->dim);
        p->distance[i] = p->kernels->dot(p->difference, p->difference, p->dim);
    }
}

bool dp_kmeans_run(dp_kmeans *p)
{
    for (size_t j = 0; j < p->n_means; j++)
        memcpy(p->centroids + j * p->dim, p->x + (2 * j + 1) * p->n / (2 * p->n_means) * p->dim,
               p->dim * sizeof *p->centroids);
    memset(p->assignment, 0xff, p->n * sizeof *p->assignment);
    const size_t affordable = p->n / (p->n_means * SAMPLE_PER_MEAN), most = affordable < 4 ? affordable : 4;
    bool changed = true;
    size_t stride = SIZE_MAX;
    for (uint32_t left = p->iterations; left && (changed || stride > 1); left--) {
        const size_t wanted = (left + WHOLE - 1) / WHOLE, sampled = wanted < most ? wanted : most;
        stride = sampled ? sampled : 1;
        if (!assign(p, stride, &changed)) return false;
        if (changed) dp_kmeans_update(p);
    }
    measure(p);
    return true;
}
