/* What the unit tests share: a runtime, sequences filled from a cache. */
#ifndef TESTS_UNIT_UNIT_H
#define TESTS_UNIT_UNIT_H

#include <stdlib.h>

#include "../suite.h"
#include "doublep/doublep.h"
#include "reference.h"

static inline dp_runtime *runtime_with(int n_threads, dp_isa isa)
{
    dp_runtime_config config;
    dp_runtime_config_init(&config);
    config.n_threads = n_threads;
    config.isa = isa;
    dp_runtime *runtime = NULL;
    ck_assert_int_eq(dp_runtime_create(&config, &runtime), DP_OK);
    return runtime;
}

static inline dp_runtime_info info_of(const dp_runtime *rt)
{
    dp_runtime_info info;
    dp_runtime_info_init(&info);
    ck_assert_int_eq(dp_runtime_get_info(rt, &info), DP_OK);
    return info;
}

/* The end of a runtime that has no sequence left, and no memory of one. */
static inline void runtime_end(dp_runtime *rt)
{
    const dp_runtime_info info = info_of(rt);
    ck_assert_uint_eq(info.memory_bytes, info.scratch_bytes);
    dp_runtime_free(rt);
}

static inline dp_sequence_config sequence_config(const cache *c, size_t n_query_heads, dp_type type)
{
    dp_sequence_config config;
    dp_sequence_config_init(&config);
    config.n_query_heads = (uint32_t)n_query_heads;
    config.n_kv_heads = (uint32_t)c->n_kv_heads;
    config.key_dim = (uint32_t)c->key_dim;
    config.value_dim = (uint32_t)c->value_dim;
    config.type = type;
    return config;
}

/* Appends tokens first .. last - 1 in chunks. */
static inline void append_to(dp_sequence *s, uint32_t layer, const cache *c, size_t first, size_t last, size_t chunk)
{
    for (size_t t = first; t < last; t += chunk) {
        const size_t n = last - t < chunk ? last - t : chunk;
        ck_assert_int_eq(dp_append(s, layer, n, c->k + t * c->n_kv_heads * c->key_dim, 0,
                                   c->v + t * c->n_kv_heads * c->value_dim, 0), DP_OK);
    }
}

static inline void append(dp_sequence *s, const cache *c, size_t first, size_t last, size_t chunk)
{
    append_to(s, 0, c, first, last, chunk);
}

static inline dp_memory memory_of(const dp_sequence *s)
{
    dp_memory m;
    dp_memory_init(&m);
    ck_assert_int_eq(dp_sequence_memory(s, &m), DP_OK);
    return m;
}

/* Tests that CK_EXCLUDE_TAGS=slow leaves out: too long for an emulated processor, and it would tell little more there. */
static inline TCase *slow_cases(Suite *suite)
{
    TCase *const tc = tcase_create("slow");
    tcase_set_tags(tc, "slow");
    tcase_set_timeout(tc, 200);
    suite_add_tcase(suite, tc);
    return tc;
}

#endif
