/* The runtime object: what all sequences share. */
#ifndef DP_RUNTIME_RUNTIME_H
#define DP_RUNTIME_RUNTIME_H

#include <stdatomic.h>

#include "doublep/doublep.h"
#include "memory/budget.h"
#include "runtime/error.h"
#include "runtime/topology.h"
#include "simd/kernels.h"

enum { DP_SCRATCH_SLOTS = 64 };

struct dp_scratch;

struct dp_runtime {
    dp_runtime_config config;
    dp_isa isa;
    unsigned features;
    dp_kernels kernels;
    dp_topology topology;
    int n_threads;
    uint64_t id;      /* unique in the process: tells a thread for which runtime it was bound */
    size_t huge_page; /* bytes, 0: ordinary pages */
    dp_message message;
    dp_budget budget;
    atomic_uint_fast64_t calls;  /* that took a work buffer */
    atomic_size_t scratch_bytes; /* of the budget: work buffers, idle or not */
    _Atomic(struct dp_scratch *) scratch[DP_SCRATCH_SLOTS]; /* idle work buffers, see memory/scratch.h */
};

#endif
