/* clusters.h: RetroInfer's index (Chen et al., arXiv 2505.02922): in segments, spherical k-means over the keys less
 * their mean, by the library's code; centroids and mean values in bf16; a copy of the rows in cluster order. */
#ifndef DOUBLEP_BENCH_CLUSTERS_H
#define DOUBLEP_BENCH_CLUSTERS_H

#include "cache.h"

/* Clusters of consecutive tokens of one layer and KV head. */
typedef struct cluster_segment {
    uint64_t first_token;
    uint32_t n_tokens, n_clusters;
    float *mean_key;       /* [key_dim], the centroids' origin */
    uint16_t *centroids;   /* bf16 [n_clusters][key_dim] */
    uint16_t *mean_values; /* bf16 [n_clusters][value_dim] */
    uint32_t *offset;      /* [n_clusters + 1] */
    uint32_t *token;       /* [n_tokens], in cluster order */
    char *k, *v;           /* [n_tokens] rows, in cluster order */
    void *memory;
} cluster_segment;

/* Clusters tokens [first, first + n) of the cache, `per_cluster` to a centroid. False where there is no memory or oneDNN
 * fails. Runs on the calling thread. */
bool cluster_segment_create(cluster_segment *s, const method_cache *cache, uint32_t layer, uint32_t kv_head,
                            uint64_t first, size_t n, uint32_t per_cluster, uint32_t iterations);
void cluster_segment_free(cluster_segment *s);

#endif
