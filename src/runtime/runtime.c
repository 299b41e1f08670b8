/* Creating a runtime: configuration, ISA choice, topology. */
#include "runtime/runtime.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "memory/pages.h"
#include "memory/scratch.h"
#include "runtime/structs.h"
#include "runtime/team.h"

enum { MAX_THREADS = 1024 };

static const char *const isa_names[DP_ISA_COUNT] = {"auto", "scalar", "avx2", "avx512", "neon"};

const char *dp_isa_name(dp_isa isa)
{
    return (unsigned)isa < DP_ISA_COUNT ? isa_names[isa] : "unknown";
}

unsigned dp_version(void)
{
    return DP_VERSION_NUMBER;
}

void dp_runtime_config_init(dp_runtime_config *config)
{
    memset(config, 0, sizeof *config);
    config->struct_size = sizeof *config;
    config->pinning = DP_PIN_OFF;
    config->isa = DP_ISA_AUTO;
    config->huge_pages = DP_HUGE_PAGES_TRANSPARENT;
    config->numa = DP_NUMA_LOCAL;
}

/* Settles DP_ISA_AUTO: the environment's word first, then the best that runs. */
static dp_status choose_isa(dp_isa wanted, unsigned features, dp_kernels *kernels, dp_isa *chosen)
{
    const char *const name = wanted == DP_ISA_AUTO ? getenv("DOUBLEP_ISA") : NULL;
    if (name && *name) {
        int found = -1;
        for (int i = 0; i < DP_ISA_COUNT; i++)
            if (!strcmp(name, isa_names[i])) found = i;
        if (found < 0)
            return dp_fail(NULL, DP_ERR_INVALID,
                           "dp_runtime_create: DOUBLEP_ISA is \"%s\", must be auto, scalar, avx2, avx512 or neon",
                           name);
        wanted = (dp_isa)found;
    }
    if (wanted != DP_ISA_AUTO) {
        if (dp_kernels_init(kernels, wanted, features))
            return dp_fail(NULL, DP_ERR_UNSUPPORTED, "dp_runtime_create: this machine or build has no %s",
                           isa_names[wanted]);
        *chosen = wanted;
        return DP_OK;
    }
    static const dp_isa best_first[] = {DP_ISA_AVX512, DP_ISA_AVX2, DP_ISA_NEON, DP_ISA_SCALAR};
    for (size_t i = 0; i < sizeof best_first / sizeof *best_first; i++)
        if (!dp_kernels_init(kernels, best_first[i], features)) {
            *chosen = best_first[i];
            return DP_OK;
        }
    return dp_fail(NULL, DP_ERR_UNSUPPORTED, "dp_runtime_create: no kernels for this machine");
}

static dp_status check_config(const dp_runtime_config *c)
{
    if (c->n_threads < 0 || c->n_threads > MAX_THREADS)
        return dp_fail(NULL, DP_ERR_INVALID, "dp_runtime_create: n_threads is %d, must be in [0, %d]", c->n_threads,
                       MAX_THREADS);
    if ((unsigned)c->pinning > DP_PIN_SCATTER)
        return dp_fail(NULL, DP_ERR_INVALID, "dp_runtime_create: pinning is %d, no such policy", (int)c->pinning);
    if ((unsigned)c->isa >= DP_ISA_COUNT)
        return dp_fail(NULL, DP_ERR_INVALID, "dp_runtime_create: isa is %d, no such ISA", (int)c->isa);
    if ((unsigned)c->huge_pages > DP_HUGE_PAGES_TRANSPARENT)
        return dp_fail(NULL, DP_ERR_INVALID, "dp_runtime_create: huge_pages is %d, no such policy", (int)c->huge_pages);
    if ((unsigned)c->numa > DP_NUMA_OFF)
        return dp_fail(NULL, DP_ERR_INVALID, "dp_runtime_create: numa is %d, no such policy", (int)c->numa);
    return DP_OK;
}

dp_status dp_runtime_create(const dp_runtime_config *config, dp_runtime **runtime)
{
    static atomic_uint_fast64_t next_id = 1;
    if (!runtime) return dp_fail(NULL, DP_ERR_INVALID, "dp_runtime_create: runtime is NULL");
    *runtime = NULL;
    dp_runtime_config c;
    dp_runtime_config_init(&c);
    if (config && !DP_STRUCT_IN(&c, config))
        return dp_fail(NULL, DP_ERR_INVALID, "dp_runtime_create: struct_size is %u; call dp_runtime_config_init first",
                       config->struct_size);
    dp_status status = check_config(&c);
    if (status) return status;

    dp_runtime *const rt = dp_team_watch_forks() ? calloc(1, sizeof *rt) : NULL;
    if (!rt) return dp_fail(NULL, DP_ERR_NO_MEMORY, "dp_runtime_create: out of memory");
    rt->config = c;
    rt->features = dp_cpu_features();
    status = choose_isa(c.isa, rt->features, &rt->kernels, &rt->isa);
    if (status) {
        free(rt);
        return status;
    }
    if (dp_topology_init(&rt->topology)) {
        free(rt);
        return dp_fail(NULL, DP_ERR_SYSTEM, "dp_runtime_create: hwloc cannot read the topology");
    }
    rt->n_threads = c.n_threads ? c.n_threads : rt->topology.n_cores;
    if (rt->n_threads > MAX_THREADS) rt->n_threads = MAX_THREADS;
    rt->id = atomic_fetch_add(&next_id, 1);
    rt->huge_page = c.huge_pages == DP_HUGE_PAGES_TRANSPARENT ? dp_huge_page_bytes() : 0;
    rt->budget.limit = c.memory_limit;
    atomic_flag_clear(&rt->message.busy);
    *runtime = rt;
    return DP_OK;
}

void dp_runtime_free(dp_runtime *runtime)
{
    if (!runtime) return;
    dp_team_unbind(runtime);
    dp_scratch_free_idle(runtime);
    dp_topology_free(&runtime->topology);
    free(runtime);
}

void dp_runtime_info_init(dp_runtime_info *info)
{
    memset(info, 0, sizeof *info);
    info->struct_size = sizeof *info;
}

dp_status dp_runtime_get_info(const dp_runtime *runtime, dp_runtime_info *info)
{
    if (!runtime) return dp_fail(NULL, DP_ERR_INVALID, "dp_runtime_get_info: runtime is NULL");
    dp_runtime_info full;
    dp_runtime_info_init(&full);
    full.isa = runtime->isa;
    for (int isa = DP_ISA_SCALAR; isa < DP_ISA_COUNT; isa++) {
        dp_kernels unused;
        if (!dp_kernels_init(&unused, (dp_isa)isa, runtime->features)) full.isas_available |= 1u << isa;
    }
    full.bf16_instructions = (runtime->isa == DP_ISA_AVX512 && (runtime->features & DP_CPU_AVX512_BF16)) ||
                             (runtime->isa == DP_ISA_NEON && (runtime->features & DP_CPU_NEON_BF16));
    full.n_threads = runtime->n_threads;
    full.n_cores = runtime->topology.n_cores;
    full.n_pus = runtime->topology.n_pus;
    full.n_numa_nodes = runtime->topology.n_nodes;
    full.l1d_bytes = runtime->topology.l1d_bytes;
    full.l2_bytes = runtime->topology.l2_bytes;
    full.l3_bytes = runtime->topology.l3_bytes;
    full.huge_page_bytes = runtime->huge_page;
    full.memory_limit = runtime->budget.limit;
    full.memory_bytes = atomic_load(&runtime->budget.used);
    full.memory_peak_bytes = atomic_load(&runtime->budget.peak);
    full.scratch_bytes = atomic_load(&runtime->scratch_bytes);
    if (!DP_STRUCT_OUT(info, &full))
        return dp_fail(
            (dp_runtime *)runtime, DP_ERR_INVALID,
            "dp_runtime_get_info: info is NULL or its struct_size is wrong; call dp_runtime_info_init first");
    return DP_OK;
}
