/* Lloyd's algorithm; the products of points and centroids go through oneDNN, or are of bytes. */
#include "index/kmeans.h"

#include <math.h>
#include <oneapi/dnnl/dnnl.h>
#include <string.h>

#include "simd/quantise.h"

void dp_kmeans_carve(dp_kmeans *p, dp_scratch *scratch)
{
    p->x = dp_scratch_take(scratch, p->n * p->dim * sizeof *p->x);
    p->centroids = dp_scratch_take(scratch, p->n_means * p->dim * sizeof *p->centroids);
    p->assignment = dp_scratch_take(scratch, p->n * sizeof *p->assignment);
    p->count = dp_scratch_take(scratch, p->n_means * sizeof *p->count);
    p->distance = dp_scratch_take(scratch, p->n * sizeof *p->distance);
    p->directions = dp_scratch_take(scratch, p->n_means * p->dim * sizeof *p->directions);
    p->half_norm = dp_scratch_take(scratch, p->n_means * sizeof *p->half_norm);
    p->in_bytes = p->kernels->nearest_in_bytes != NULL;
    const size_t bytes = p->in_bytes ? 1 : 0, n_panels = (p->n_means + DP_PANEL - 1) / DP_PANEL;
    p->products = dp_scratch_take(scratch, (1 - bytes) * DP_KMEANS_BLOCK * p->n_means * sizeof *p->products);
    p->x_bytes = dp_scratch_take(scratch, bytes * p->n * p->dim);
    p->c_panels = dp_scratch_take(scratch, bytes * n_panels * DP_PANEL * p->dim);
    p->c_row = dp_scratch_take(scratch, bytes * p->dim);
    p->x_step = dp_scratch_take(scratch, bytes * p->n * sizeof *p->x_step);
    p->c_step = dp_scratch_take(scratch, bytes * p->n_means * sizeof *p->c_step);
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

/* The clusters of the n points from number `first` on. */
static bool nearest_of_block(const dp_kmeans *p, const float *c, size_t first, size_t n, uint32_t *cluster)
{
    const dnnl_dim_t dim = (dnnl_dim_t)p->dim, means = (dnnl_dim_t)p->n_means, rows = (dnnl_dim_t)n;
    if (dnnl_sgemm('N', 'T', rows, means, dim, 1.0f, p->x + first * p->dim, dim, c, dim, 0.0f, p->products, means) !=
        dnnl_success)
        return false;
    float best;
    for (size_t i = 0; i < n; i++)
        cluster[i] = (uint32_t)p->kernels->nearest(p->products + i * p->n_means, p->half_norm, p->n_means, &best);
    return true;
}

/* What points are compared with, in bytes and panels. */
static void pack(dp_kmeans *p, const float *c)
{
    for (size_t i = 0; i < p->n_means; i++) {
        uint8_t *const place = p->c_panels + i / DP_PANEL * DP_PANEL * p->dim + i % DP_PANEL * 4;
        p->c_step[i] = dp_quantise(c + i * p->dim, p->dim, p->c_row);
        for (size_t j = 0; j < p->dim; j++) place[j / 4 * 4 * DP_PANEL + j % 4] = (uint8_t)(p->c_row[j] + 128);
    }
}

/* Assigns every point; *changed tells whether any moved. */
static bool assign(dp_kmeans *p, bool *changed)
{
    const float *const c = comparands(p);
    if (p->in_bytes) pack(p, c);
    *changed = false;
    for (size_t first = 0; first < p->n; first += DP_KMEANS_BLOCK) {
        const size_t n = p->n - first < DP_KMEANS_BLOCK ? p->n - first : DP_KMEANS_BLOCK;
        uint32_t cluster[DP_KMEANS_BLOCK];
        if (p->in_bytes)
            p->kernels->nearest_in_bytes(p->x_bytes + first * p->dim, p->x_step + first, n, p->c_panels, p->c_step, p->half_norm,
                                         p->n_means, p->dim, cluster);
        else if (!nearest_of_block(p, c, first, n, cluster))
            return false;
        *changed |= memcmp(p->assignment + first, cluster, n * sizeof *cluster) != 0;
        memcpy(p->assignment + first, cluster, n * sizeof *cluster);
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
    if (p->in_bytes) dp_quantise_rows(p->x, p->n, p->dim, p->x_bytes, p->x_step);
    bool changed = true;
    for (uint32_t i = 0; i < p->iterations && changed; i++) {
        if (!assign(p, &changed)) return false;
        if (changed) dp_kmeans_update(p);
    }
    measure(p);
    return true;
}
