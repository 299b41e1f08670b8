/* The OpenMP team and its pinning. Workers (not the calling thread) are bound when they first serve the runtime. */
#include "runtime/team.h"

#include <omp.h>
#include <pthread.h>

#include "runtime/runtime.h"

static _Thread_local uint64_t bound_for;       /* id of the runtime that this thread is bound for, 0: not bound by us */
static _Thread_local hwloc_bitmap_t was_bound; /* where it was allowed before */

/* In a child process, on the one thread that it begins with: the workers that OpenMP keeps for this thread did not come
 * along, and it would wait for them for ever. */
static _Thread_local bool without_workers;

static void child_begins(void)
{
    without_workers = true;
}

static bool watching;

static void watch(void)
{
    watching = !pthread_atfork(NULL, NULL, child_begins);
}

bool dp_team_watch_forks(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    return !pthread_once(&once, watch) && watching;
}

static _Thread_local int32_t limit; /* of the teams that this thread starts; 0: none */

int32_t dp_limit_threads(int32_t n_threads)
{
    const int32_t before = limit;
    limit = n_threads > 0 ? n_threads : 0;
    return before;
}

int dp_team_size(const dp_runtime *rt)
{
    return limit && limit < rt->n_threads ? limit : rt->n_threads;
}

static void unbind_worker(const dp_runtime *rt)
{
    dp_topology_unbind(&rt->topology, was_bound);
    was_bound = NULL;
    bound_for = 0;
}

/* A worker serves whatever runtime calls next: it is bound for that one, or given back what it had. */
static void bind_worker(const dp_runtime *rt, int thread)
{
    const uint64_t wanted = rt->config.pinning == DP_PIN_OFF || thread == 0 ? 0 : rt->id;
    if (bound_for == wanted) return;
    if (bound_for) unbind_worker(rt);
    if (!wanted) return;
    const int core = dp_topology_core(&rt->topology, rt->config.pinning, thread, rt->n_threads);
    was_bound = dp_topology_bind(&rt->topology, core); /* a refusal costs speed, not correctness */
    bound_for = was_bound ? rt->id : 0;
}

static _Thread_local int pinned; /* threads of the largest team that this thread has started to be bound */

void dp_team_run(const dp_runtime *rt, dp_team_fn fn, void *argument)
{
    if (without_workers) {
        const int n_threads = omp_get_max_threads();
        omp_set_num_threads(1); /* oneDNN must not start a team either */
        fn(argument, 0, 1);
        omp_set_num_threads(n_threads);
        return;
    }
    const int n_threads = dp_team_size(rt);
    if (rt->config.pinning != DP_PIN_OFF && n_threads > pinned) pinned = n_threads;
#pragma omp parallel num_threads(n_threads)
    {
        /* In a team of one omp_in_parallel() is false, and oneDNN would start a team of its own: results would then
         * depend on the number of threads. The setting belongs to this task alone and ends with the region. */
        omp_set_num_threads(1);
        const int thread = omp_get_thread_num();
        bind_worker(rt, thread);
        fn(argument, thread, omp_get_num_threads());
    }
}

void dp_team_unbind(const dp_runtime *rt)
{
    const int n_threads = pinned < rt->n_threads ? pinned : rt->n_threads; /* where none was bound, none starts for this */
    if (rt->config.pinning == DP_PIN_OFF || without_workers || !n_threads) return;
#pragma omp parallel num_threads(n_threads)
    if (bound_for == rt->id) unbind_worker(rt);
}

int dp_team_node(const dp_runtime *rt, int thread, int n_threads)
{
    if (rt->config.pinning == DP_PIN_OFF) return (int)((int64_t)thread * rt->topology.n_nodes / n_threads);
    return dp_topology_node_of_core(&rt->topology,
                                    dp_topology_core(&rt->topology, rt->config.pinning, thread, rt->n_threads));
}
