/* Topology, pinning and memory binding through hwloc. */
#include "runtime/topology.h"

#include <omp.h>
#include <stdbool.h>
#include <stdlib.h>

static uint64_t cache_bytes(hwloc_topology_t t, hwloc_obj_type_t type)
{
    const hwloc_obj_t cache = hwloc_get_obj_by_type(t, type, 0);
    return cache && cache->attr ? cache->attr->cache.size : 0;
}

static void add_openmp_places(hwloc_bitmap_t cpus)
{
    if (omp_get_proc_bind() == omp_proc_bind_false) return; /* LLVM's knows places all the same: those of the machine */
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
    return dp_topology_adopt(topology, t);
}

static hwloc_obj_t core_object(hwloc_topology_t t, int core)
{
    const hwloc_obj_t found = hwloc_get_obj_by_type(t, HWLOC_OBJ_CORE, (unsigned)core);
    return found ? found : hwloc_get_obj_by_type(t, HWLOC_OBJ_PU, (unsigned)core);
}

static int find_node(hwloc_topology_t t, int n_nodes, hwloc_obj_t core)
{
    for (int node = 0; node < n_nodes; node++) {
        const hwloc_obj_t n = hwloc_get_obj_by_type(t, HWLOC_OBJ_NUMANODE, (unsigned)node);
        if (n && n->cpuset && core && hwloc_bitmap_intersects(n->cpuset, core->cpuset)) return node;
    }
    return 0;
}

int dp_topology_adopt(dp_topology *topology, hwloc_topology_t t)
{
    *topology = (dp_topology){.hwloc = t,
                              .n_pus = hwloc_get_nbobjs_by_type(t, HWLOC_OBJ_PU),
                              .n_cores = hwloc_get_nbobjs_by_type(t, HWLOC_OBJ_CORE),
                              .n_nodes = hwloc_get_nbobjs_by_type(t, HWLOC_OBJ_NUMANODE),
                              .l1d_bytes = cache_bytes(t, HWLOC_OBJ_L1CACHE),
                              .l2_bytes = cache_bytes(t, HWLOC_OBJ_L2CACHE),
                              .l3_bytes = cache_bytes(t, HWLOC_OBJ_L3CACHE)};
    if (topology->n_cores < 1) topology->n_cores = topology->n_pus; /* some platforms show no cores */
    if (topology->n_nodes < 1) topology->n_nodes = 1;
    int *const table =
        topology->n_pus < 1 ? NULL : calloc((size_t)(topology->n_cores + topology->n_nodes), sizeof *table);
    if (!table) {
        hwloc_topology_destroy(t);
        return -1;
    }
    topology->core_node = table;
    topology->node_cores = table + topology->n_cores;
    for (int core = 0; core < topology->n_cores; core++) {
        const int node = find_node(t, topology->n_nodes, core_object(t, core));
        topology->core_node[core] = node;
        topology->node_cores[node]++;
    }
    return 0;
}

void dp_topology_free(dp_topology *topology)
{
    free(topology->core_node);
    hwloc_topology_destroy(topology->hwloc);
}

/* Threads that nodes have together when each has `level`, or one for each of its cores where these are fewer. */
static int dealt(const dp_topology *topology, int level)
{
    int n = 0;
    for (int node = 0; node < topology->n_nodes; node++)
        n += topology->node_cores[node] < level ? topology->node_cores[node] : level;
    return n;
}

/* Fewer threads than cores are dealt out to the nodes in turn, as far as these have cores; a node's share is spread over
 * its cores. */
static int scattered_core(const dp_topology *topology, int thread, int n_threads)
{
    int level = 0;
    while (dealt(topology, level + 1) <= n_threads) level++;
    int left = n_threads - dealt(topology, level), node = 0, share = 0;
    for (;; node++) {
        const int cores = topology->node_cores[node], more = cores > level && left > 0;
        left -= more;
        share = (cores < level ? cores : level) + more;
        if (thread < share) break;
        thread -= share;
    }
    int nth = (int)((int64_t)thread * topology->node_cores[node] / share), core = 0;
    while (topology->core_node[core] != node || nth-- > 0) core++;
    return core;
}

int dp_topology_core(const dp_topology *topology, dp_pinning pinning, int thread, int n_threads)
{
    if (pinning == DP_PIN_SCATTER && n_threads < topology->n_cores) return scattered_core(topology, thread, n_threads);
    return thread % topology->n_cores;
}

int dp_topology_node_of_core(const dp_topology *topology, int core)
{
    return topology->core_node[core];
}

hwloc_bitmap_t dp_topology_bind(const dp_topology *topology, int core)
{
    const hwloc_obj_t object = core_object(topology->hwloc, core);
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
