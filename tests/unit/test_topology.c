/* Machines that are not this one: where threads go and which node keeps what, on synthetic topologies, some of them cut down
 * to what a cgroup leaves. What would be bound, and the memory policies that would be set, are recorded instead (see
 * meson.build: --wrap); on a machine with several nodes the pages themselves are looked at, too. */
#include <hwloc.h>
#include <omp.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "kv/sequence.h"
#include "runtime/team.h"
#include "unit.h"

enum { MOST = 16 };

/* ---- Calculated places ---- */

typedef struct machine {
    const char *synthetic, *allowed; /* a list of PUs, or NULL: all */
    int n_cores, n_pus, n_nodes;
    struct {
        dp_pinning pinning;
        int n_threads, pus[MOST], nodes[MOST]; /* the first PU of the core that a thread takes; the core's node */
    } threads[3];
} machine;

static const machine machines[] = {
    {"core:1 pu:1", NULL, 1, 1, 1, {{DP_PIN_COMPACT, 2, {0, 0}, {0, 0}}, {DP_PIN_SCATTER, 1, {0}, {0}}}},
    {"numa:2 core:4 pu:1", NULL, 8, 8, 2,
     {{DP_PIN_COMPACT, 8, {0, 1, 2, 3, 4, 5, 6, 7}, {0, 0, 0, 0, 1, 1, 1, 1}},
      {DP_PIN_SCATTER, 2, {0, 4}, {0, 1}},
      {DP_PIN_SCATTER, 5, {0, 1, 2, 4, 6}, {0, 0, 0, 1, 1}}}},
    {"numa:2 core:4 pu:2", NULL, 8, 16, 2, /* a thread takes a core, both of its PUs */
     {{DP_PIN_COMPACT, 3, {0, 2, 4}, {0, 0, 0}},
      {DP_PIN_SCATTER, 4, {0, 4, 8, 12}, {0, 0, 1, 1}},
      {DP_PIN_COMPACT, 10, {0, 2, 4, 6, 8, 10, 12, 14, 0, 2}, {0, 0, 0, 0, 1, 1, 1, 1, 0, 0}}}},
    {"pack:2 numa:2 core:2 pu:1", NULL, 8, 8, 4,
     {{DP_PIN_SCATTER, 4, {0, 2, 4, 6}, {0, 1, 2, 3}},
      {DP_PIN_SCATTER, 6, {0, 1, 2, 3, 4, 6}, {0, 0, 1, 1, 2, 3}},
      {DP_PIN_COMPACT, 4, {0, 1, 2, 3}, {0, 0, 1, 1}}}},
    /* uneven: six cores of one node and two of the other */
    {"numa:2 core:6 pu:1", "0-7", 8, 8, 2,
     {{DP_PIN_SCATTER, 2, {0, 6}, {0, 1}},
      {DP_PIN_SCATTER, 4, {0, 3, 6, 7}, {0, 0, 1, 1}},
      {DP_PIN_SCATTER, 7, {0, 1, 2, 3, 4, 6, 7}, {0, 0, 0, 0, 0, 1, 1}}}},
    /* one PU of each core; a hole */
    {"numa:2 core:3 pu:2", "0,2,8,10", 4, 4, 2,
     {{DP_PIN_COMPACT, 4, {0, 2, 8, 10}, {0, 0, 1, 1}}, {DP_PIN_SCATTER, 2, {0, 8}, {0, 1}}}},
    /* all in the second node: there is one node then */
    {"numa:2 core:4 pu:1", "5-7", 3, 3, 1,
     {{DP_PIN_COMPACT, 3, {5, 6, 7}, {0, 0, 0}}, {DP_PIN_SCATTER, 2, {5, 6}, {0, 0}}}},
    {"numa:4 core:1 pu:1", "3", 1, 1, 1, {{DP_PIN_COMPACT, 1, {3}, {0}}}},
};
enum { MACHINES = sizeof machines / sizeof *machines };

static dp_topology topology_of(const machine *m)
{
    hwloc_topology_t t;
    dp_topology topology;
    ck_assert_int_eq(hwloc_topology_init(&t), 0);
    ck_assert_int_eq(hwloc_topology_set_synthetic(t, m->synthetic), 0);
    ck_assert_int_eq(hwloc_topology_load(t), 0);
    if (m->allowed) {
        const hwloc_bitmap_t allowed = hwloc_bitmap_alloc();
        hwloc_bitmap_list_sscanf(allowed, m->allowed);
        ck_assert_int_eq(hwloc_topology_restrict(t, allowed, HWLOC_RESTRICT_FLAG_REMOVE_CPULESS), 0);
        hwloc_bitmap_free(allowed);
    }
    ck_assert_int_eq(dp_topology_adopt(&topology, t), 0);
    return topology;
}

static int first_pu(const dp_topology *topology, int core)
{
    return hwloc_bitmap_first(hwloc_get_obj_by_type(topology->hwloc, HWLOC_OBJ_CORE, (unsigned)core)->cpuset);
}

START_TEST(threads_have_their_places)
{
    const machine *const m = &machines[_i];
    dp_topology topology = topology_of(m);
    ck_assert_int_eq(topology.n_cores, m->n_cores);
    ck_assert_int_eq(topology.n_pus, m->n_pus);
    ck_assert_int_eq(topology.n_nodes, m->n_nodes);
    for (size_t i = 0; i < 3; i++)
        for (int thread = 0; thread < m->threads[i].n_threads; thread++) {
            const int n = m->threads[i].n_threads, core = dp_topology_core(&topology, m->threads[i].pinning, thread, n);
            ck_assert_msg(first_pu(&topology, core) == m->threads[i].pus[thread], "%s: thread %d of %d is on PU %d",
                          m->synthetic, thread, n, first_pu(&topology, core));
            ck_assert_int_eq(dp_topology_node_of_core(&topology, core), m->threads[i].nodes[thread]);
        }
    dp_topology_free(&topology);
}
END_TEST

/* As many threads as cores, or fewer: no core has two, none is outside, and the nodes' shares are even where they can be. */
START_TEST(no_core_has_two_threads)
{
    dp_topology topology = topology_of(&machines[_i]);
    for (int n = 1; n <= topology.n_cores; n++)
        for (dp_pinning pinning = DP_PIN_COMPACT; pinning <= DP_PIN_SCATTER; pinning++) {
            int threads[MOST] = {0}, on_node[MOST] = {0};
            for (int thread = 0; thread < n; thread++) {
                const int core = dp_topology_core(&topology, pinning, thread, n);
                ck_assert_int_ge(core, 0);
                ck_assert_int_lt(core, topology.n_cores);
                ck_assert_int_eq(threads[core]++, 0);
                on_node[dp_topology_node_of_core(&topology, core)]++;
            }
            for (int a = 0; pinning == DP_PIN_SCATTER && a < topology.n_nodes; a++)
                for (int b = 0; b < topology.n_nodes; b++)
                    ck_assert(on_node[b] <= on_node[a] + 1 || on_node[a] == topology.node_cores[a]);
        }
    dp_topology_free(&topology);
}
END_TEST

/* ---- A runtime that takes the synthetic machine for its own ---- */

static bool recording;
static const char *process_cpus; /* where the process is allowed */
static int bound[64];            /* by OpenMP thread: the first PU it was bound to, -1: never, -2: set free again */
static struct policy {
    char *base;
    size_t bytes;
    int node; /* -1: several */
    hwloc_membind_policy_t policy;
} policies[256];
static size_t n_policies;

int __real_hwloc_get_cpubind(hwloc_topology_t t, hwloc_bitmap_t set, int flags);
int __wrap_hwloc_get_cpubind(hwloc_topology_t t, hwloc_bitmap_t set, int flags);
int __wrap_hwloc_get_cpubind(hwloc_topology_t t, hwloc_bitmap_t set, int flags)
{
    if (!recording) return __real_hwloc_get_cpubind(t, set, flags);
    if (flags & HWLOC_CPUBIND_THREAD) hwloc_bitmap_fill(set);
    else hwloc_bitmap_list_sscanf(set, process_cpus);
    return 0;
}

int __real_hwloc_set_cpubind(hwloc_topology_t t, hwloc_const_bitmap_t set, int flags);
int __wrap_hwloc_set_cpubind(hwloc_topology_t t, hwloc_const_bitmap_t set, int flags);
int __wrap_hwloc_set_cpubind(hwloc_topology_t t, hwloc_const_bitmap_t set, int flags)
{
    if (!recording) return __real_hwloc_set_cpubind(t, set, flags);
    bound[omp_get_thread_num()] = hwloc_bitmap_isfull(set) ? -2 : hwloc_bitmap_first(set);
    return 0;
}

int __real_hwloc_set_area_membind(hwloc_topology_t t, const void *base, size_t bytes, hwloc_const_bitmap_t set,
                                  hwloc_membind_policy_t policy, int flags);
int __wrap_hwloc_set_area_membind(hwloc_topology_t t, const void *base, size_t bytes, hwloc_const_bitmap_t set,
                                  hwloc_membind_policy_t policy, int flags);
int __wrap_hwloc_set_area_membind(hwloc_topology_t t, const void *base, size_t bytes, hwloc_const_bitmap_t set,
                                  hwloc_membind_policy_t policy, int flags)
{
    if (!recording) return __real_hwloc_set_area_membind(t, base, bytes, set, policy, flags);
    policies[n_policies++ % 256] = (struct policy){.base = (char *)(uintptr_t)base,
                                                   .bytes = bytes,
                                                   .node = hwloc_bitmap_weight(set) == 1 ? hwloc_bitmap_first(set) : -1,
                                                   .policy = policy};
    return 0;
}

/* The latest policy of an address, NULL where there is none. */
static const struct policy *policy_of(const void *address)
{
    for (size_t i = n_policies; i-- > 0;)
        if (policies[i].base <= (const char *)address && (const char *)address < policies[i].base + policies[i].bytes)
            return &policies[i];
    return NULL;
}

static dp_runtime *runtime_on(const char *synthetic, const char *cpus, dp_pinning pinning, dp_numa numa, int n_threads)
{
    setenv("HWLOC_SYNTHETIC", synthetic, 1);
    setenv("HWLOC_THISSYSTEM", "1", 1);
    recording = true;
    process_cpus = cpus;
    for (int i = 0; i < 64; i++) bound[i] = -1;
    dp_runtime_config config;
    dp_runtime_config_init(&config);
    config.n_threads = n_threads;
    config.pinning = pinning;
    config.numa = numa;
    dp_runtime *rt;
    ck_assert_int_eq(dp_runtime_create(&config, &rt), DP_OK);
    return rt;
}

static dp_sequence *fill(dp_runtime *rt, cache *c, float *out)
{
    rng r = {131};
    *c = cache_create(&r, 3000, 6, 16, 16, DP_BF16);
    dp_sequence_config config = sequence_config(c, 6, DP_BF16);
    config.segment_tokens = 512;
    dp_sequence *s;
    float q[96];
    make_queries(&r, c, 1, 6, q);
    ck_assert_int_eq(dp_sequence_create(rt, &config, &s), DP_OK);
    append(s, c, 0, 3000, 300);
    ck_assert_int_eq(dp_build_index(s, 0), DP_OK);
    ck_assert_int_eq(dp_decode(s, 0, 1, q, NULL, out, NULL, NULL), DP_OK);
    return s;
}

static void nothing(void *argument, int thread, int n_threads)
{
    (void)argument, (void)thread, (void)n_threads;
}

START_TEST(workers_are_bound_and_set_free)
{
    static const int compact[] = {-1, 2, 4, 6, 8, 10, 12, 14}, scattered[] = {-1, 4, 8, 12}, cut[] = {-1, 10, 12, 14};
    static const struct {
        const char *cpus;
        dp_pinning pinning;
        int n_threads, n_came;
        const int *pus;
    } cases[] = {{"0-15", DP_PIN_COMPACT, 0, 8, compact},
                 {"0-15", DP_PIN_SCATTER, 4, 4, scattered},
                 {"8-15", DP_PIN_COMPACT, 0, 4, cut}, /* the process was given one node: no more threads than that has */
                 {"0-15", DP_PIN_OFF, 0, 8, NULL}};
    dp_runtime *const rt =
        runtime_on("numa:2 core:4 pu:2", cases[_i].cpus, cases[_i].pinning, DP_NUMA_LOCAL, cases[_i].n_threads);
    ck_assert_int_eq(info_of(rt).n_threads, cases[_i].n_came);
    dp_team_run(rt, nothing, NULL);
    for (int i = 0; i < cases[_i].n_came; i++) ck_assert_int_eq(bound[i], cases[_i].pus ? cases[_i].pus[i] : -1);
    for (int i = cases[_i].n_came; i < 64; i++) ck_assert_int_eq(bound[i], -1);
    dp_runtime_free(rt);
    for (int i = 1; i < cases[_i].n_came; i++) ck_assert_int_eq(bound[i], cases[_i].pus ? -2 : -1);
    ck_assert_int_eq(bound[0], -1); /* the calling thread never */
}
END_TEST

/* Six heads on one, two, four nodes: whose memory has which policy. The answers know nothing of it. */
START_TEST(heads_have_their_nodes)
{
    static const struct {
        const char *synthetic, *cpus;
        dp_numa numa;
        int nodes[6]; /* as the system numbers them */
    } cases[] = {{"numa:2 core:2 pu:1", "0-3", DP_NUMA_LOCAL, {0, 0, 0, 1, 1, 1}},
                 {"numa:4 core:1 pu:1", "0-3", DP_NUMA_LOCAL, {0, 0, 1, 2, 2, 3}},
                 {"numa:4 core:1 pu:1", "1,3", DP_NUMA_LOCAL, {1, 1, 1, 3, 3, 3}},
                 {"numa:2 core:2 pu:1", "0-3", DP_NUMA_INTERLEAVE, {-1, -1, -1, -1, -1, -1}},
                 {"numa:2 core:2 pu:1", "0-3", DP_NUMA_OFF, {0}},
                 {"numa:2 core:2 pu:1", "2-3", DP_NUMA_LOCAL, {0}}}; /* one node: nothing to choose */
    cache c;
    float out[96], here[96];
    dp_runtime *const plain = runtime_with(2, DP_ISA_AUTO);
    dp_sequence_free(fill(plain, &c, here));
    dp_runtime_free(plain);
    cache_free(&c);
    dp_runtime *const rt = runtime_on(cases[_i].synthetic, cases[_i].cpus, DP_PIN_OFF, cases[_i].numa, 2);
    dp_sequence *const s = fill(rt, &c, out);
    ck_assert_mem_eq(out, here, sizeof out);
    ck_assert_uint_le(n_policies, 256);
    for (int h = 0; h < 6; h++) {
        const dp_head *const head = &s->layers[0].heads[h];
        ck_assert_uint_gt(head->n_segments, 1);
        const void *addresses[4] = {head->segments[0].rows, head->segments[head->n_segments - 1].index, head->sink.k,
                                    head->tail.v};
        for (int i = 0; i < 4; i++) {
            const struct policy *const p = policy_of(addresses[i]);
            if (_i >= 4) {
                ck_assert_ptr_null(p);
                continue;
            }
            ck_assert_ptr_nonnull(p);
            ck_assert_msg(p->node == cases[_i].nodes[h], "head %d, address %d is on node %d", h, i, p->node);
            ck_assert_int_eq(p->policy, cases[_i].nodes[h] < 0 ? HWLOC_MEMBIND_INTERLEAVE : HWLOC_MEMBIND_BIND);
        }
    }
    dp_sequence_free(s);
    dp_runtime_free(rt);
    cache_free(&c);
}
END_TEST

/* Members work where their memory is: with as many nodes as there are shares of the heads, each node has its members. */
START_TEST(members_have_their_nodes)
{
    dp_runtime *const rt = runtime_on("numa:4 core:2 pu:1", "0-7", (dp_pinning)_i, DP_NUMA_LOCAL, 4);
    static const int nodes[3][4] = {{0, 1, 2, 3}, {0, 0, 1, 1}, {0, 1, 2, 3}}; /* off, compact, scattered */
    for (int i = 0; i < 4; i++) ck_assert_int_eq(dp_team_node(rt, i, 4), nodes[_i][i]);
    dp_runtime_free(rt);
}
END_TEST

/* Where this machine has nodes: the pages. */
START_TEST(pages_are_where_they_should_be)
{
    cache c;
    float out[96];
    dp_runtime *const rt = runtime_with(0, DP_ISA_AUTO);
    dp_sequence *const s = fill(rt, &c, out);
    if (rt->topology.n_nodes < 2) printf("real pages are not looked at: this machine has one node\n");
    for (int h = 0; rt->topology.n_nodes > 1 && h < 6; h++) {
        const dp_segment *const segment = &s->layers[0].heads[h].segments[0];
        const hwloc_bitmap_t nodes = hwloc_bitmap_alloc();
        ck_assert_int_eq(hwloc_get_area_memlocation(rt->topology.hwloc, segment->rows, segment->row_bytes, nodes,
                                                    HWLOC_MEMBIND_BYNODESET), 0);
        const int node = h * rt->topology.n_nodes / 6;
        ck_assert(hwloc_bitmap_isequal(
            nodes, hwloc_get_obj_by_type(rt->topology.hwloc, HWLOC_OBJ_NUMANODE, (unsigned)node)->nodeset));
        hwloc_bitmap_free(nodes);
    }
    dp_sequence_free(s);
    dp_runtime_free(rt);
    cache_free(&c);
}
END_TEST

int main(void)
{
    Suite *const suite = suite_create("topology");
    TCase *const tc = tcase_create("topology");
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, threads_have_their_places, 0, MACHINES);
    tcase_add_loop_test(tc, no_core_has_two_threads, 0, MACHINES);
    tcase_add_loop_test(tc, workers_are_bound_and_set_free, 0, 4);
    tcase_add_loop_test(tc, heads_have_their_nodes, 0, 6);
    tcase_add_loop_test(tc, members_have_their_nodes, 0, 3);
    tcase_add_test(tc, pages_are_where_they_should_be);
    suite_add_tcase(suite, tc);
    return run_suite(suite);
}
