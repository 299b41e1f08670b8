// faiss_kmeans.cpp: see faiss_kmeans.h.
#include "faiss_kmeans.h"

#include <algorithm>
#include <exception>
#include <vector>

#include <faiss/Clustering.h>
#include <faiss/IndexFlat.h>

int faiss_kmeans(const float *x, size_t n, size_t dim, size_t n_means, int iterations, float *centroids)
{
    try {
        faiss::ClusteringParameters parameters;
        parameters.niter = iterations;
        parameters.min_points_per_centroid = 1; // no warning: so few are meant
        parameters.max_points_per_centroid = static_cast<int>(n);
        faiss::Clustering clustering(static_cast<int>(dim), static_cast<int>(n_means), parameters);
        faiss::IndexFlatL2 index(static_cast<faiss::Index::idx_t>(dim));
        clustering.train(static_cast<faiss::Index::idx_t>(n), x, index);
        std::copy(clustering.centroids.begin(), clustering.centroids.end(), centroids);
        return 0;
    } catch (const std::exception &) {
        return -1;
    }
}

double faiss_inertia(const float *x, size_t n, size_t dim, size_t n_means, const float *centroids)
{
    try {
        faiss::IndexFlatL2 index(static_cast<faiss::Index::idx_t>(dim));
        index.add(static_cast<faiss::Index::idx_t>(n_means), centroids);
        std::vector<float> distances(n);
        std::vector<faiss::Index::idx_t> labels(n);
        index.search(static_cast<faiss::Index::idx_t>(n), x, 1, distances.data(), labels.data());
        double sum = 0;
        for (const float distance : distances)
            sum += std::max(static_cast<double>(distance), 0.0);
        return sum;
    } catch (const std::exception &) {
        return -1;
    }
}
