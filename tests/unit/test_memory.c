/* The memory limit and the figures: exact, never exceeded, and a sequence that was refused more is as it was. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "index/build.h"
#include "memory/scratch.h"
#include "memory/system.h"
#include "unit.h"

/* Sanitizers touch pages of their own. */
#ifdef __has_feature
#define SANITIZED (__has_feature(thread_sanitizer) || __has_feature(address_sanitizer))
#else
#define SANITIZED 0
#endif

enum { HEADS = 4, KV_HEADS = 2, DIM = 64, OUT = HEADS * DIM, TOKENS = 9000 };

static dp_runtime *limited(uint64_t limit, dp_huge_pages huge_pages)
{
    dp_runtime_config config;
    dp_runtime_config_init(&config);
    config.n_threads = 2;
    config.memory_limit = limit;
    config.huge_pages = huge_pages;
    dp_runtime *rt;
    ck_assert_int_eq(dp_runtime_create(&config, &rt), DP_OK);
    return rt;
}

static dp_sequence *new_sequence_of(dp_runtime *rt, const cache *c, uint32_t tokens_per_cluster)
{
    dp_sequence_config config = sequence_config(c, HEADS, DP_BF16);
    config.segment_tokens = 1024;
    config.pending_tokens = 256;
    config.n_layers = 2;
    config.tokens_per_cluster = tokens_per_cluster;
    dp_sequence *s;
    ck_assert_int_eq(dp_sequence_create(rt, &config, &s), DP_OK);
    return s;
}

static dp_sequence *new_sequence(dp_runtime *rt, const cache *c)
{
    return new_sequence_of(rt, c, 16);
}

/* The runtime's figure is the sum over its sequences and scratch, to the byte, and ends at 0. */
START_TEST(figures_add_up)
{
    rng r = {47};
    cache c = cache_create(&r, TOKENS, KV_HEADS, DIM, DIM, DP_BF16);
    dp_runtime *const rt = limited(0, _i ? DP_HUGE_PAGES_TRANSPARENT : DP_HUGE_PAGES_OFF);
    ck_assert_uint_eq(info_of(rt).memory_bytes, 0);
    dp_sequence *const a = new_sequence(rt, &c), *const b = new_sequence(rt, &c);
    append(a, &c, 0, 4000, 500);
    append(b, &c, 0, 3000, 400);
    ck_assert_int_eq(dp_build_index(a, DP_ALL_LAYERS), DP_OK);
    dp_sequence *fork;
    ck_assert_int_eq(dp_sequence_fork(a, &fork), DP_OK);
    append(fork, &c, 4000, TOKENS, 3);
    ck_assert_int_eq(dp_sequence_truncate(a, 0, 2000), DP_OK);
    const dp_memory ma = memory_of(a), mb = memory_of(b), mf = memory_of(fork);
    dp_runtime_info info = info_of(rt);
    ck_assert_uint_eq(ma.shared_bytes, mf.shared_bytes);
    ck_assert_uint_eq(info.memory_bytes,
                      ma.reserved_bytes + mb.reserved_bytes + mf.reserved_bytes - mf.shared_bytes + info.scratch_bytes);
    ck_assert_uint_ge(info.memory_peak_bytes, info.memory_bytes);
    ck_assert_uint_eq(info.memory_limit, 0);
    dp_sequence_free(a);
    dp_sequence_free(fork);
    dp_sequence_free(b);
    info = info_of(rt);
    ck_assert_uint_eq(info.memory_bytes, info.scratch_bytes);
    ck_assert_uint_gt(info.scratch_bytes, 0);
    dp_runtime_free(rt);
    cache_free(&c);
}
END_TEST

/* Whatever the limit is: what was refused has not happened, and what there is works on. */
START_TEST(refused_at_any_limit)
{
    rng r = {53};
    cache c = cache_create(&r, TOKENS, KV_HEADS, DIM, DIM, DP_BF16);
    dp_runtime *const free_rt = limited(0, DP_HUGE_PAGES_OFF);
    float q[OUT], out[OUT], wanted[OUT];
    make_queries(&r, &c, 1, HEADS, q);
    int refused_appends = 0, done = 0;
    for (uint64_t limit = 1 << 20; !done; limit += limit / 8) {
        dp_runtime *const rt = limited(limit, DP_HUGE_PAGES_OFF);
        dp_sequence *const s = new_sequence(rt, &c), *const reference = new_sequence(free_rt, &c);
        char text[256] = "";
        dp_status status = DP_OK;
        size_t t = 0;
        while (t < TOKENS && status == DP_OK) {
            const size_t n = t < 7000 ? 500 : 25;
            status = dp_append(s, 0, n, c.k + t * KV_HEADS * DIM, 0, c.v + t * KV_HEADS * DIM, 0);
            refused_appends += status != DP_OK;
            if (status == DP_OK) append(reference, &c, t, t + n, n), t += n;
            if (t == 7000 && status == DP_OK) {
                status = dp_build_index(s, 0);
                if (status == DP_OK) ck_assert_int_eq(dp_build_index(reference, 0), DP_OK);
            }
        }
        done = status == DP_OK;
        const dp_runtime_info info = info_of(rt);
        ck_assert_uint_le(info.memory_peak_bytes, limit);
        ck_assert_uint_eq(dp_sequence_tokens(s, 0), t);
        if (status != DP_OK) {
            ck_assert_int_eq(status, DP_ERR_NO_MEMORY);
            ck_assert_ptr_nonnull(strstr(dp_last_error(rt, text, sizeof text), "memory_limit is"));
        }
        if (t) {
            ck_assert_int_eq(dp_decode(reference, 0, 1, q, NULL, wanted, NULL, NULL), DP_OK);
            status = dp_decode(s, 0, 1, q, NULL, out, NULL, NULL); /* this may be refused its scratch, too */
            if (status == DP_OK)
                ck_assert_mem_eq(out, wanted, sizeof out);
            else
                ck_assert_int_eq(status, DP_ERR_NO_MEMORY);
            /* With some of it taken back there is room again. */
            ck_assert_int_eq(dp_sequence_truncate(s, 0, t / 4), DP_OK);
            ck_assert_int_eq(dp_sequence_truncate(reference, 0, t / 4), DP_OK);
            append(s, &c, t / 4, t / 4 + 10, 1);
            append(reference, &c, t / 4, t / 4 + 10, 1);
            ck_assert_int_eq(dp_decode(reference, 0, 1, q, NULL, wanted, NULL, NULL), DP_OK);
            ck_assert_int_eq(dp_decode(s, 0, 1, q, NULL, out, NULL, NULL), DP_OK);
            ck_assert_mem_eq(out, wanted, sizeof out);
        }
        dp_sequence_free(s);
        dp_sequence_free(reference);
        ck_assert_uint_eq(info_of(rt).memory_bytes, info_of(rt).scratch_bytes);
        dp_runtime_free(rt);
    }
    ck_assert_int_gt(refused_appends, 3);
    dp_runtime_free(free_rt);
    cache_free(&c);
}
END_TEST

/* Appends to both layers, token by token where they are decoded; returns the pages that the system had to find. */
static long grow(dp_sequence *s, const cache *c, size_t first, size_t last, size_t chunk)
{
    struct rusage before, after;
    int failed = 0;
    getrusage(RUSAGE_SELF, &before);
    for (uint32_t layer = 0; layer < 2; layer++)
        for (size_t t = first; t < last; t += chunk)
            failed += dp_append(s, layer, chunk, c->k + t * KV_HEADS * DIM, 0, c->v + t * KV_HEADS * DIM, 0) != DP_OK;
    getrusage(RUSAGE_SELF, &after);
    ck_assert_int_eq(failed, 0);
    return after.ru_minflt - before.ru_minflt;
}

/* What was reserved is what the next segments take: no more comes from the system for as many tokens, results are the same, forks
 * share it, and it counts from the beginning, to the byte; where it is not to be had, nothing has changed. Segments of large
 * clusters are built anew with what comes after them. */
START_TEST(reserved_memory_is_used)
{
    enum { PROMPT = 5000, ANSWER = 1500 };
    rng r = {67};
    cache c = cache_create(&r, TOKENS, KV_HEADS, DIM, DIM, DP_BF16);
    dp_runtime *const rt = limited(0, _i & 1 ? DP_HUGE_PAGES_TRANSPARENT : DP_HUGE_PAGES_OFF);
    const uint32_t per_cluster = _i & 2 ? 100 : 12;
    dp_sequence *const s = new_sequence_of(rt, &c, per_cluster), *const plain = new_sequence_of(rt, &c, per_cluster);
    grow(s, &c, 0, PROMPT, 500);
    grow(plain, &c, 0, PROMPT, 500);
    ck_assert_int_eq(dp_build_index(s, DP_ALL_LAYERS), DP_OK);
    ck_assert_int_eq(dp_build_index(plain, DP_ALL_LAYERS), DP_OK);
    const dp_memory before = memory_of(s);
    ck_assert_int_eq(dp_sequence_reserve(s, 0), DP_OK);
    ck_assert_uint_eq(memory_of(s).reserved_bytes, before.reserved_bytes);
    ck_assert_int_eq(dp_sequence_reserve(s, ANSWER / 2), DP_OK);
    ck_assert_int_eq(dp_sequence_reserve(s, ANSWER), DP_OK);
    ck_assert_int_eq(dp_sequence_reserve(s, ANSWER / 4), DP_OK); /* there is more already */
    const dp_memory reserved = memory_of(s);
    ck_assert_uint_ge(reserved.reserved_bytes, before.reserved_bytes + 2 * ANSWER * KV_HEADS * DIM * 4);
    ck_assert_uint_eq(reserved.index_bytes, before.index_bytes);
    const dp_runtime_info info = info_of(rt);
    ck_assert_uint_eq(info.memory_bytes, reserved.reserved_bytes + memory_of(plain).reserved_bytes + info.scratch_bytes);

    dp_sequence *fork;
    ck_assert_int_eq(dp_sequence_fork(s, &fork), DP_OK);
    const long many = grow(plain, &c, PROMPT, PROMPT + ANSWER, 1); /* first, so that work memory is there for the others */
    const long pages = grow(s, &c, PROMPT, PROMPT + ANSWER, 1);
    if (!(_i & 1) && !SANITIZED)
        ck_assert_msg(pages < many / 2, "%ld new pages in spite of the reserve, %ld without", pages, many);
    const dp_memory after = memory_of(s);
    ck_assert_uint_gt(after.index_bytes, reserved.index_bytes);
    ck_assert_uint_le(after.reserved_bytes, reserved.reserved_bytes + (512 << 10)); /* tails, tables of segments */
    grow(fork, &c, PROMPT, PROMPT + ANSWER, 1);
    float q[OUT], out[OUT], wanted[OUT];
    make_queries(&r, &c, 1, HEADS, q);
    ck_assert_int_eq(dp_decode(plain, 0, 1, q, NULL, wanted, NULL, NULL), DP_OK);
    ck_assert_int_eq(dp_decode(s, 0, 1, q, NULL, out, NULL, NULL), DP_OK);
    ck_assert_mem_eq(out, wanted, sizeof out);
    ck_assert_int_eq(dp_decode(fork, 0, 1, q, NULL, out, NULL, NULL), DP_OK);
    ck_assert_mem_eq(out, wanted, sizeof out);
    ck_assert_int_eq(dp_sequence_truncate(s, 0, PROMPT / 2), DP_OK); /* pieces of the reserve come back */
    dp_sequence_free(s);
    dp_sequence_free(fork);
    dp_sequence_free(plain);
    ck_assert_uint_eq(info_of(rt).memory_bytes, info_of(rt).scratch_bytes);
    dp_runtime_free(rt);

    dp_runtime *const small = limited(16 << 20, DP_HUGE_PAGES_OFF);
    dp_sequence *const t = new_sequence(small, &c);
    append(t, &c, 0, PROMPT, 500);
    const dp_memory had = memory_of(t);
    char text[256];
    ck_assert_int_eq(dp_sequence_reserve(t, 1000000), DP_ERR_NO_MEMORY);
    ck_assert_ptr_nonnull(strstr(dp_last_error(small, text, sizeof text), "dp_sequence_reserve: no memory for 1000000 tokens"));
    dp_memory has = memory_of(t);
    ck_assert_uint_le(has.reserved_bytes, had.reserved_bytes + 1024); /* the arena's own tables */
    has.reserved_bytes = had.reserved_bytes;
    ck_assert_mem_eq(&has, &had, sizeof has);
    append(t, &c, PROMPT, PROMPT + 100, 1);
    dp_sequence_free(t);
    dp_runtime_free(small);
    cache_free(&c);
}
END_TEST

/* Refused before a page is touched: the system would end the process. */
START_TEST(more_than_the_system_has)
{
    dp_sequence_config config;
    dp_sequence_config_init(&config);
    config.n_layers = 64;
    config.n_query_heads = config.n_kv_heads = 64;
    config.type = DP_F32;
    dp_runtime *const rt = limited(0, DP_HUGE_PAGES_OFF);
    dp_sequence *s;
    ck_assert_int_eq(dp_sequence_create(rt, &config, &s), DP_OK);
    const dp_memory before = memory_of(s);
    static const size_t tokens[] = {100000000, UINT32_MAX}; /* 400 TB, 18 PB */
    for (size_t i = 0; i < 2; i++) {
        char text[256];
        ck_assert_int_eq(dp_sequence_reserve(s, tokens[i]), DP_ERR_NO_MEMORY);
        dp_last_error(rt, text, sizeof text);
        ck_assert_ptr_nonnull(strstr(text, "that the system has available"));
        ck_assert_uint_eq(memory_of(s).reserved_bytes, before.reserved_bytes);
    }
    dp_sequence_free(s);
    dp_runtime_free(rt);
}
END_TEST

/* ---- What the system has ---- */

static char root[] = "/tmp/doublep-memory-XXXXXX";

/* Writes a file, and makes the folders on its way. */
static void put(const char *path, const char *text)
{
    char name[512];
    for (const char *slash = path; slash; slash = strchr(slash + 1, '/')) {
        snprintf(name, sizeof name, "%s%.*s", root, (int)(slash - path), path);
        mkdir(name, 0700);
    }
    snprintf(name, sizeof name, "%s%s", root, path);
    FILE *const file = fopen(name, "w");
    ck_assert_ptr_nonnull(file);
    fputs(text, file);
    fclose(file);
}

static void expect_mib(uint64_t total, uint64_t available)
{
    uint64_t t, a;
    ck_assert(dp_system_memory_read(root, &t, &a));
    ck_assert_uint_eq(t, total << 20);
    ck_assert_uint_eq(a, available << 20);
}

START_TEST(system_memory)
{
    uint64_t total = 0, available = 0;
    ck_assert_ptr_nonnull(mkdtemp(root));
    ck_assert(!dp_system_memory_read(root, &total, &available));
    put("/proc/meminfo", "MemTotal:  1048576 kB\nMemFree: 100 kB\nMemAvailable:   819200 kB\n");
    expect_mib(1024, 800);
    /* cgroup v2: the group's limit, less what is used but for the page cache; one around it allows less */
    put("/proc/self/cgroup", "0::/pod/container\n");
    expect_mib(1024, 800);
    put("/sys/fs/cgroup/pod/container/memory.max", "536870912\n");
    put("/sys/fs/cgroup/pod/container/memory.current", "314572800\n");
    put("/sys/fs/cgroup/pod/container/memory.stat", "anon 5\ninactive_file 62914560\nactive_file 41943040\n");
    expect_mib(512, 312);
    put("/sys/fs/cgroup/pod/memory.max", "419430400\n");
    put("/sys/fs/cgroup/pod/memory.current", "419430400\n");
    expect_mib(400, 0);
    put("/sys/fs/cgroup/pod/memory.max", "max\n");
    put("/sys/fs/cgroup/pod/container/memory.max", "max\n");
    expect_mib(1024, 800);
    /* v1, seen from a container whose folder is the mount's own */
    put("/proc/self/cgroup", "5:cpu:/x\n4:hugetlb,memory:/docker/0123\n0::/\n");
    put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "268435456\n");
    put("/sys/fs/cgroup/memory/memory.usage_in_bytes", "209715200\n");
    put("/sys/fs/cgroup/memory/memory.stat", "cache 9\ntotal_inactive_file 10485760\ntotal_active_file 41943040\n");
    expect_mib(256, 106);
    put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"); /* none */
    expect_mib(1024, 800);

    ck_assert_int_eq(dp_system_memory(&total, &available), DP_OK);
    ck_assert(available <= total && total > 1 << 20);
    uint64_t alone = 0;
    ck_assert_int_eq(dp_system_memory(&alone, NULL), DP_OK);
    ck_assert_uint_eq(alone, total);
    ck_assert_int_eq(dp_system_memory(NULL, &alone), DP_OK);
    ck_assert_int_eq(dp_system_memory(NULL, NULL), DP_ERR_INVALID);
    char command[64];
    snprintf(command, sizeof command, "rm -r %s", root);
    ck_assert_int_eq(system(command), 0);
}
END_TEST

/* One sequence's memory is what another one may not have, until it is freed. */
START_TEST(sequences_share_the_limit)
{
    rng r = {59};
    cache c = cache_create(&r, 2000, KV_HEADS, DIM, DIM, DP_BF16);
    dp_runtime *const rt = limited(5 << 19, DP_HUGE_PAGES_OFF);
    dp_sequence *const a = new_sequence(rt, &c), *const b = new_sequence(rt, &c);
    append(a, &c, 0, 2000, 2000);
    ck_assert_int_eq(dp_append(a, 1, 2000, c.k, 0, c.v, 0), DP_OK);
    ck_assert_int_eq(dp_append(b, 0, 2000, c.k, 0, c.v, 0), DP_ERR_NO_MEMORY);
    ck_assert_uint_eq(dp_sequence_tokens(b, 0), 0);
    dp_sequence_free(a);
    append(b, &c, 0, 2000, 2000);
    dp_sequence *forks[8];
    int n = 0;
    while (n < 8 && dp_sequence_fork(b, &forks[n]) == DP_OK) n++; /* nothing is clustered: each copies a megabyte */
    ck_assert_int_eq(n, 1);
    ck_assert_ptr_null(forks[1]);
    char text[256];
    ck_assert_ptr_nonnull(
        strstr(dp_last_error(rt, text, sizeof text), "dp_sequence_fork: no memory for the copy: memory_limit"));
    dp_sequence_free(forks[0]);
    dp_sequence_free(b);
    dp_runtime_free(rt);
    dp_runtime *const tiny = limited(1000, DP_HUGE_PAGES_OFF);
    dp_sequence_config config = sequence_config(&c, HEADS, DP_BF16);
    config.n_layers = 100;
    dp_sequence *s;
    ck_assert_int_eq(dp_sequence_create(tiny, &config, &s), DP_ERR_NO_MEMORY);
    ck_assert_ptr_null(s);
    ck_assert_uint_eq(info_of(tiny).memory_bytes, 0);
    dp_runtime_free(tiny);
    cache_free(&c);
}
END_TEST

/* Work buffers: what many callers or a large call needed once does not stay for ever, what is in use does. */
START_TEST(scratch_does_not_pile_up)
{
    enum { BURST = 20, SMALL = 100 << 10, LARGE = 5 << 20 };
    dp_runtime *const rt = limited(0, DP_HUGE_PAGES_OFF);
    dp_scratch *held[BURST];
    for (int i = 0; i < BURST; i++) ck_assert_ptr_nonnull(held[i] = dp_scratch_acquire(rt, i % 2 ? LARGE : SMALL));
    for (int i = 0; i < BURST; i++) dp_scratch_release(rt, held[i]);
    const uint64_t burst = info_of(rt).scratch_bytes;
    ck_assert_uint_ge(burst, BURST / 2 * (uint64_t)(SMALL + LARGE));
    const char *small = NULL;
    for (int i = 0; i < 4 * DP_SCRATCH_CALLS; i++) { /* one caller that now and then needs much */
        dp_scratch *const s = dp_scratch_acquire(rt, SMALL);
        if (i > DP_SCRATCH_CALLS + 300) {
            if (small) ck_assert_ptr_eq(s->base, small); /* always the same */
            small = s->base;
        }
        dp_scratch_release(rt, s);
        if (i % 500 == 0) dp_scratch_release(rt, dp_scratch_acquire(rt, LARGE));
    }
    const uint64_t later = info_of(rt).scratch_bytes;
    ck_assert_uint_ge(later, SMALL + LARGE);
    ck_assert_uint_le(later, 2 * (SMALL + LARGE));
    for (int i = 0; i < 2 * DP_SCRATCH_CALLS; i++) dp_scratch_release(rt, dp_scratch_acquire(rt, SMALL));
    ck_assert_uint_le(info_of(rt).scratch_bytes, 2 * SMALL);
    dp_runtime_free(rt);
}
END_TEST

/* Threads that have nothing to do are given no memory to do it in. */
START_TEST(scratch_is_for_threads_with_work)
{
    rng r = {61};
    cache c = cache_create(&r, 1000, 1, DIM, DIM, DP_BF16);
    dp_runtime *const rt = runtime_with(16, DP_ISA_AUTO);
    dp_sequence_config config = sequence_config(&c, 1, DP_BF16);
    dp_sequence *s;
    ck_assert_int_eq(dp_sequence_create(rt, &config, &s), DP_OK);
    append(s, &c, 0, 1000, 1000);
    ck_assert_int_eq(dp_build_index(s, 0), DP_OK); /* one segment */
    const size_t one = dp_build_scratch_bytes(s, 1000 - 68);
    ck_assert_uint_ge(info_of(rt).scratch_bytes, one);
    ck_assert_uint_le(info_of(rt).scratch_bytes, 2 * one + (2 << 20)); /* a quarter more, in whole pages */
    dp_sequence_free(s);
    dp_runtime_free(rt);
    cache_free(&c);
}
END_TEST

int main(void)
{
    Suite *const suite = suite_create("memory");
    TCase *const tc = tcase_create("memory");
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, figures_add_up, 0, 2);
    tcase_add_test(tc, refused_at_any_limit);
    tcase_add_loop_test(tc, reserved_memory_is_used, 0, 4);
    tcase_add_test(tc, more_than_the_system_has);
    tcase_add_test(tc, system_memory);
    tcase_add_test(tc, sequences_share_the_limit);
    tcase_add_test(tc, scratch_does_not_pile_up);
    tcase_add_test(tc, scratch_is_for_threads_with_work);
    suite_add_tcase(suite, tc);
    return run_suite(suite);
}
