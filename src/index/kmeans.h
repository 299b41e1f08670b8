/* k-means over the keys of one segment. Deterministic: strided starts, sums in token order, ties to the lower number.
 *
 * Points and centroids meet as bytes where the CPU multiplies those exactly: a step of 1/127 of a vector's largest element
 * moves distances by less than what mostly decides between two clusters, and four products are done in the time of one
 * (on `bench_index`'s keys inertia is 0.02 % larger, the whole index takes half the time). Means and distances are of the
 * points as they are. */
#ifndef DP_INDEX_KMEANS_H
#define DP_INDEX_KMEANS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "doublep/doublep.h"
#include "memory/scratch.h"
#include "simd/kernels.h"

typedef struct dp_kmeans {
    const dp_kernels *kernels;
    size_t n, dim, n_means; /* points, dimensions, clusters wanted (1 to n) */
    uint32_t iterations;
    dp_clustering clustering;
    /* Work and results, carved by dp_kmeans_carve. */
    float *x;             /* [n][dim] in: the points */
    float *centroids;     /* [n_means][dim] out: means of the members */
    uint32_t *assignment; /* [n] out */
    uint32_t *count;      /* [n_means] out: members, 0 is possible */
    float *distance;      /* [n] out: squared distance to the centroid */
    float *directions;    /* [n_means][dim] normalised centroids, spherical only */
    float *half_norm;     /* [n_means] */
    float *products;      /* [DP_KMEANS_BLOCK][n_means], or none: */
    bool in_bytes;
    int8_t *x_bytes;      /* [n][dim] the points and */
    uint8_t *c_panels;    /* what they are compared with, as nearest_in_bytes takes them, in units of */
    int8_t *c_row;        /* [dim] */
    float *x_step;        /* [n] and */
    float *c_step;        /* [n_means] */
    float *difference;    /* [dim] */
} dp_kmeans;

enum { DP_KMEANS_BLOCK = 256 }; /* points per matrix product: points, centroids and products stay in L2 */

void dp_kmeans_carve(dp_kmeans *problem, dp_scratch *scratch);

/* Clusters x. Returns false where oneDNN fails. */
bool dp_kmeans_run(dp_kmeans *problem);

/* Recomputes centroids and count from the assignment; points assigned to UINT32_MAX are in no cluster. */
void dp_kmeans_update(dp_kmeans *problem);

#endif
