/* Topology, pinning and memory binding through hwloc. */
#include "runtime/topology.h"

#include <omp.h>
#include <stdbool.h>

static uint64_t cache_bytes(hwloc_topology_t t, hwloc_obj_type_t type)
{
    const hwloc_obj_t cache = hwloc_get_obj_by_type(t, type, 0);
    return cache && cache->attr ? cache->attr->cache.size : 0;
}

static void add_openmp_places(hwloc_bitmap_t cpus)
{
    for (int place = 0; place < omp_get_num_places(); place++) {
        int ids[1024];
        const int n = omp_get_place_num_procs(place);
        if (n > 1024) continue;
        omp_get_place_proc_ids(place, ids);
        for (int i = 0; i < n; i++) hwloc_bitmap_set(cpus, (unsigned)ids[i]);
    }
}

int dp_topology_init(dp_topology *topology)
{
    hwloc_topology_t t;
    if (hwloc_topology_init(&t)) return -1;
    if (hwloc_topology_load(t)) {
        hwloc_topology_destroy(t);
        return -1;
    }
    if (hwloc_topology_is_thissystem(t)) {
        /* A process bound by its parent (taskset, a job scheduler) must not count the other cores as its own. With
         * OMP_PROC_BIND the OpenMP runtime has bound this thread to one of its places: all of those are ours. */
        const hwloc_bitmap_t bound = hwloc_bitmap_alloc();
        const bool known = bound && !hwloc_get_cpubind(t, bound, HWLOC_CPUBIND_PROCESS) && !hwloc_bitmap_iszero(bound);
        if (known) add_openmp_places(bound);
        if (known) (void)hwloc_topology_restrict(t, bound, HWLOC_RESTRICT_FLAG_REMOVE_CPULESS);
        hwloc_bitmap_free(bound);
    }
    topology->hwloc = t;
    topology->n_pus = hwloc_get_nbobjs_by_type(t, HWLOC_OBJ_PU);
    topology->n_cores = hwloc_get_nbobjs_by_type(t, HWLOC_OBJ_CORE);
    if (topology->n_cores < 1) topology->n_cores = topology->n_pus; /* some platforms show no cores */
    topology->n_nodes = hwloc_get_nbobjs_by_type(t, HWLOC_OBJ_NUMANODE);
    if (topology->n_nodes < 1) topology->n_nodes = 1;
    topology->l1d_bytes = cache_bytes(t, HWLOC_OBJ_L1CACHE);
    topology->l2_bytes = cache_bytes(t, HWLOC_OBJ_L2CACHE);
    topology->l3_bytes = cache_bytes(t, HWLOC_OBJ_L3CACHE);
    return topology->n_pus >= 1 ? 0 : (hwloc_topology_destroy(t), -1);
}

void dp_topology_free(dp_topology *topology)
{
    hwloc_topology_destroy(topology->hwloc);
}

static hwloc_obj_t core_object(const dp_topology *topology, int core)
{
    const hwloc_obj_t found = hwloc_get_obj_by_type(topology->hwloc, HWLOC_OBJ_CORE, (unsigned)core);
    return found ? found : hwloc_get_obj_by_type(topology->hwloc, HWLOC_OBJ_PU, (unsigned)core);
}

int dp_topology_core(const dp_topology *topology, dp_pinning pinning, int thread, int n_threads)
{
    const int n = topology->n_cores;
    if (pinning == DP_PIN_SCATTER && n_threads < n) return (int)((int64_t)thread * n / n_threads);
    return thread % n;
}

int dp_topology_node_of_core(const dp_topology *topology, int core)
{
    const hwloc_obj_t object = core_object(topology, core);
    if (!object) return 0;
    for (int node = 0; node < topology->n_nodes; node++) {
        const hwloc_obj_t n = hwloc_get_obj_by_type(topology->hwloc, HWLOC_OBJ_NUMANODE, (unsigned)node);
        if (n && n->cpuset && hwloc_bitmap_intersects(n->cpuset, object->cpuset)) return node;
    }
    return 0;
}

hwloc_bitmap_t dp_topology_bind(const dp_topology *topology, int core)
{
    const hwloc_obj_t object = core_object(topology, core);
    if (!object || !hwloc_topology_is_thissystem(topology->hwloc)) return NULL;
    const hwloc_bitmap_t before = hwloc_bitmap_alloc();
    if (before && !hwloc_get_cpubind(topology->hwloc, before, HWLOC_CPUBIND_THREAD) &&
        !hwloc_set_cpubind(topology->hwloc, object->cpuset, HWLOC_CPUBIND_THREAD))
        return before;
    hwloc_bitmap_free(before);
    return NULL;
}

void dp_topology_unbind(const dp_topology *topology, hwloc_bitmap_t before)
{
    (void)hwloc_set_cpubind(topology->hwloc, before, HWLOC_CPUBIND_THREAD);
    hwloc_bitmap_free(before);
}

int dp_topology_place(const dp_topology *topology, void *address, size_t bytes, int node)
{
    if (topology->n_nodes < 2 || !hwloc_topology_is_thissystem(topology->hwloc)) return 0;
    if (node < 0)
        return hwloc_set_area_membind(topology->hwloc, address, bytes,
                                      hwloc_topology_get_topology_nodeset(topology->hwloc), HWLOC_MEMBIND_INTERLEAVE,
                                      HWLOC_MEMBIND_BYNODESET);
    const hwloc_obj_t object = hwloc_get_obj_by_type(topology->hwloc, HWLOC_OBJ_NUMANODE, (unsigned)node);
    if (!object) return -1;
    return hwloc_set_area_membind(topology->hwloc, address, bytes, object->nodeset, HWLOC_MEMBIND_BIND,
                                  HWLOC_MEMBIND_BYNODESET);
}
