/* What hwloc knows of the machine: cores and NUMA nodes of the process's cpuset, caches, placement of threads and
 * memory. With a synthetic topology (HWLOC_SYNTHETIC) placement is computed but never applied. */
#ifndef DP_RUNTIME_TOPOLOGY_H
#define DP_RUNTIME_TOPOLOGY_H

#include <hwloc.h>
#include <stddef.h>
#include <stdint.h>

#include "doublep/doublep.h"

typedef struct dp_topology {
    hwloc_topology_t hwloc;
    int n_cores, n_pus, n_nodes;
    int *core_node;  /* [n_cores] */
    int *node_cores; /* [n_nodes] how many */
    uint64_t l1d_bytes, l2_bytes, l3_bytes;
} dp_topology;

/* Returns 0, or -1 where hwloc fails. */
int dp_topology_init(dp_topology *topology);

/* The same with a loaded topology of hwloc's, which is dp_topology's from then on, or is destroyed where that fails. */
int dp_topology_adopt(dp_topology *topology, hwloc_topology_t loaded);
void dp_topology_free(dp_topology *topology);

/* The core (logical index) that thread i of n takes, and the NUMA node (logical index) of that core. */
int dp_topology_core(const dp_topology *topology, dp_pinning pinning, int thread, int n_threads);
int dp_topology_node_of_core(const dp_topology *topology, int core);

/* Binds the calling thread to a core and returns where it was allowed before, or NULL where it could not be bound.
 * dp_topology_unbind gives that back. */
hwloc_bitmap_t dp_topology_bind(const dp_topology *topology, int core);
void dp_topology_unbind(const dp_topology *topology, hwloc_bitmap_t before);

/* Sets the memory policy of an address range: one node, or all (node < 0: interleaved). Returns 0 or -1. */
int dp_topology_place(const dp_topology *topology, void *address, size_t bytes, int node);

#endif
