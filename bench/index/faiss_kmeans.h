/* faiss_kmeans.h: FAISS's k-means behind a C interface; only built where FAISS is installed. */
#ifndef DOUBLEP_BENCH_FAISS_KMEANS_H
#define DOUBLEP_BENCH_FAISS_KMEANS_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Clusters x[n][dim] into n_means by so many iterations; centroids[n_means][dim]. 0, or -1 on failure. */
int faiss_kmeans(const float *x, size_t n, size_t dim, size_t n_means, int iterations, float *centroids);

/* The sum of the squared distances of x to the nearest centroids; negative on failure. */
double faiss_inertia(const float *x, size_t n, size_t dim, size_t n_means, const float *centroids);

#ifdef __cplusplus
}
#endif

#endif
