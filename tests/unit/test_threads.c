/* Threads: the same bits for any count, pinned or not; concurrent use; affinity as found; no allocation in a step. */
#include <pthread.h>
#include <sched.h>
#include <string.h>

#include "../threads.h"
#include "faults.h"
#include "runtime/team.h"
#include "unit.h"

enum { TOKENS = 5000, HEADS = 8, KV_HEADS = 2, DIM = 64, OUT = HEADS * DIM };

/* Prefill of a chunk, index, growth, dense and sparse decode, a fork cut short, a batch: everything that a run computes,
 * in one array. */
static void compute(dp_runtime *rt, float softcap, float *results)
{
    rng r = {23};
    cache c = cache_create(&r, TOKENS, KV_HEADS, DIM, DIM, DP_BF16);
    dp_sequence_config config = sequence_config(&c, HEADS, DP_BF16);
    config.pending_tokens = 256;
    config.segment_tokens = 1024;
    config.softcap = softcap;
    dp_sequence *s;
    ck_assert_int_eq(dp_sequence_create(rt, &config, &s), DP_OK);
    append(s, &c, 0, 4000, 500);
    float *const q = malloc(500 * OUT * sizeof *q);
    make_queries(&r, &c, 500, HEADS, q);
    ck_assert_int_eq(dp_prefill(s, 0, 500, q, results, NULL), DP_OK);
    ck_assert_int_eq(dp_build_index(s, 0), DP_OK);
    append(s, &c, 4000, TOKENS, 1);
    dp_attention_params params;
    dp_attention_params_init(&params);
    ck_assert_int_eq(dp_decode(s, 0, 1, q, &params, results + 500 * OUT, NULL, NULL), DP_OK);
    params.method = DP_DENSE;
    ck_assert_int_eq(dp_decode(s, 0, 3, q, &params, results + 501 * OUT, NULL, NULL), DP_OK);
    dp_sequence *fork;
    ck_assert_int_eq(dp_sequence_fork(s, &fork), DP_OK);
    ck_assert_int_eq(dp_sequence_truncate(fork, 0, 3500), DP_OK);
    ck_assert_int_eq(dp_build_index(fork, 0), DP_OK);
    dp_decode_request requests[3];
    for (size_t i = 0; i < 3; i++) {
        dp_decode_request_init(&requests[i]);
        requests[i].sequence = i == 1 ? s : fork;
        requests[i].n_queries = i + 1;
        requests[i].q = q;
        requests[i].out = results + (504 + i * (i + 1) / 2) * OUT;
    }
    ck_assert_int_eq(dp_decode_batch(rt, 3, requests), DP_OK);
    dp_sequence_free(fork);
    free(q);
    dp_sequence_free(s);
    cache_free(&c);
}
enum { RESULTS = 510 * OUT };

START_TEST(same_bits_for_any_thread_count)
{
    static const int counts[] = {1, 1, 2, 3, 7, 16};
    static const dp_isa isas[] = {DP_ISA_AUTO, DP_ISA_AVX2, DP_ISA_NEON, DP_ISA_SCALAR};
    float *const first = malloc(RESULTS * sizeof *first), *const now = malloc(RESULTS * sizeof *now);
    for (int i = 0; i < 12; i++) { /* with 1 thread twice: run to run; then pinned */
        dp_runtime_config config;
        dp_runtime_config_init(&config);
        config.n_threads = counts[i % 6];
        config.pinning = i < 6 ? DP_PIN_OFF : i % 2 ? DP_PIN_COMPACT : DP_PIN_SCATTER;
        config.isa = isas[_i % 4];
        dp_runtime *rt;
        const dp_status status = dp_runtime_create(&config, &rt);
        if (status == DP_ERR_UNSUPPORTED && isas[_i % 4] != DP_ISA_AUTO) break; /* not on this machine */
        ck_assert_int_eq(status, DP_OK);
        compute(rt, _i / 4 ? 8 : 0, i ? now : first);
        if (i) ck_assert_mem_eq(now, first, RESULTS * sizeof *now);
        dp_runtime_free(rt);
    }
    free(first), free(now);
}
END_TEST

static void count_members(void *argument, int thread, int n_threads)
{
    (void)thread;
    *(_Atomic int *)argument = n_threads;
}

static int team_of(const dp_runtime *rt)
{
    _Atomic int n = 0;
    dp_team_run(rt, count_members, &n);
    ck_assert_int_eq(n, dp_team_size(rt));
    return n;
}

static void *team_of_another_thread(void *rt)
{
    ck_assert_int_eq(team_of(rt), 3);
    return NULL;
}

/* A thread's limit bounds its teams, not those of others, and changes no bit. */
START_TEST(limits_hold)
{
    dp_runtime *const rt = runtime_with(3, DP_ISA_AUTO);
    float *const first = malloc(RESULTS * sizeof *first), *const now = malloc(RESULTS * sizeof *now);
    ck_assert_int_eq(team_of(rt), 3);
    compute(rt, 0, first);
    static const int32_t limits[] = {1, 2, 5, -1, 2, 0};
    int32_t before = 0;
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        ck_assert_int_eq(dp_limit_threads(limits[i]), before);
        before = limits[i] > 0 ? limits[i] : 0;
        ck_assert_int_eq(team_of(rt), limits[i] < 1 || limits[i] > 3 ? 3 : limits[i]);
        compute(rt, 0, now);
        ck_assert_mem_eq(now, first, RESULTS * sizeof *now);
        pthread_t thread;
        ck_assert_int_eq(pthread_create(&thread, NULL, team_of_another_thread, rt), 0);
        ck_assert_int_eq(pthread_join(thread, NULL), 0);
    }
    dp_runtime_free(rt);
    free(first), free(now);
}
END_TEST

START_TEST(affinity_is_left_alone)
{
    cpu_set_t before, after;
    ck_assert_int_eq(sched_getaffinity(0, sizeof before, &before), 0);
    for (int pinning = 0; pinning < 3; pinning++) {
        dp_runtime_config config;
        dp_runtime_config_init(&config);
        config.pinning = (dp_pinning)pinning;
        dp_runtime *rt;
        ck_assert_int_eq(dp_runtime_create(&config, &rt), DP_OK);
        float *const results = malloc(RESULTS * sizeof *results);
        compute(rt, 0, results);
        ck_assert_int_eq(sched_getaffinity(0, sizeof after, &after), 0);
        ck_assert(CPU_EQUAL(&before, &after));
        dp_runtime_free(rt);
        ck_assert_int_eq(sched_getaffinity(0, sizeof after, &after), 0);
        ck_assert(CPU_EQUAL(&before, &after));
        free(results);
    }
}
END_TEST

typedef struct job {
    dp_runtime *rt;
    float *results;
} job;

static void *run_job(void *argument)
{
    const job *const j = argument;
    compute(j->rt, 0, j->results);
    return NULL;
}

START_TEST(sequences_in_concurrent_threads)
{
    enum { THREADS = 4 };
    dp_runtime *const rt = runtime_with(2, DP_ISA_AUTO);
    pthread_t threads[THREADS];
    job jobs[THREADS];
    for (int i = 0; i < THREADS; i++) {
        jobs[i] = (job){rt, malloc(RESULTS * sizeof(float))};
        ck_assert_int_eq(pthread_create(&threads[i], NULL, run_job, &jobs[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) ck_assert_int_eq(pthread_join(threads[i], NULL), 0);
    for (int i = 1; i < THREADS; i++) ck_assert_mem_eq(jobs[i].results, jobs[0].results, RESULTS * sizeof(float));
    for (int i = 0; i < THREADS; i++) free(jobs[i].results);
    dp_runtime_free(rt);
}
END_TEST

START_TEST(no_allocation_in_a_step)
{
    rng r = {29};
    cache c = cache_create(&r, 3000, 1, DIM, DIM, DP_BF16);
    dp_runtime *const rt = runtime_with(2, DP_ISA_AUTO);
    dp_sequence_config config = sequence_config(&c, 2, DP_BF16);
    dp_sequence *s;
    faults_arm(0, false); /* first that counting works */
    const dp_status created = dp_sequence_create(rt, &config, &s);
    faults_disarm();
    ck_assert_int_eq(created, DP_OK);
    ck_assert_int_gt(faults_counted(), 0);
    append(s, &c, 0, 2990, 500);
    ck_assert_int_gt(faults_held_now().mapped_bytes, 0); /* the library's own memory is seen, too */
    float q[2 * DIM], out[2 * DIM], outs[40][2 * DIM];
    make_queries(&r, &c, 1, 2, q);
    for (size_t t = 2990; t < 3000; t++) {
        append(s, &c, t, t + 1, 1);
        for (int method = DP_DENSE; method <= DP_DOUBLE_P; method++) {
            dp_attention_params params;
            dp_attention_params_init(&params);
            params.method = (dp_method)method;
            faults_arm(0, false);
            const dp_status status = dp_decode(s, 0, 1, q, &params, out, NULL, NULL); /* Check's macros allocate */
            faults_disarm();
            ck_assert_int_eq(status, DP_OK);
            if (t > 2990) ck_assert_int_eq(faults_counted(), 0);
        }
        dp_decode_request requests[40];
        for (int i = 0; i < 40; i++) {
            dp_decode_request_init(&requests[i]);
            requests[i].sequence = s;
            requests[i].q = q;
            requests[i].out = outs[i];
        }
        faults_arm(0, false);
        const dp_status status = dp_decode_batch(rt, 40, requests);
        faults_disarm();
        ck_assert_int_eq(status, DP_OK);
        if (t > 2990) ck_assert_int_eq(faults_counted(), 0);
    }
    dp_sequence_free(s);
    dp_runtime_free(rt);
    cache_free(&c);
}
END_TEST

/* One query, 64, then one again and again: that many are of no size that one needs, and are forgotten, but nobody is short of
 * memory then. */
START_TEST(no_allocation_after_larger_steps)
{
    enum { MANY = 64, STEPS = 3000 };
    rng r = {31};
    cache c = cache_create(&r, 3000, 1, DIM, DIM, DP_BF16);
    dp_runtime *const rt = runtime_with(1, DP_ISA_AUTO);
    dp_sequence_config config = sequence_config(&c, 2, DP_BF16);
    dp_sequence *s;
    ck_assert_int_eq(dp_sequence_create(rt, &config, &s), DP_OK);
    append(s, &c, 0, 3000, 500);
    float *const q = malloc(MANY * 2 * DIM * sizeof *q), *const out = malloc(MANY * 2 * DIM * sizeof *out);
    make_queries(&r, &c, MANY, 2, q);
    if (_i) ck_assert_int_eq(dp_decode(s, 0, 1, q, NULL, out, NULL, NULL), DP_OK);
    ck_assert_int_eq(dp_decode(s, 0, MANY, q, NULL, out, NULL, NULL), DP_OK);
    const uint64_t large = info_of(rt).scratch_bytes;
    if (!_i) ck_assert_int_eq(dp_decode(s, 0, 1, q, NULL, out, NULL, NULL), DP_OK);
    faults_arm(0, false);
    int failed = 0;
    for (int i = 0; i < STEPS; i++) failed += dp_decode(s, 0, 1, q, NULL, out, NULL, NULL) != DP_OK;
    faults_disarm();
    ck_assert_int_eq(failed, 0);
    ck_assert_int_eq(faults_counted(), 0);
    ck_assert_uint_lt(info_of(rt).scratch_bytes, large / 2);
    dp_sequence_free(s);
    dp_runtime_free(rt);
    cache_free(&c);
    free(q), free(out);
}
END_TEST

/* Workers are set free where there are any; none is started for that. */
START_TEST(freeing_starts_no_threads)
{
    dp_runtime_config config;
    dp_runtime_config_init(&config);
    config.n_threads = 16;
    config.pinning = DP_PIN_COMPACT;
    for (int32_t limit = 0; limit < 2; limit++) {
        const int before = threads_of_this_process();
        dp_limit_threads(limit);
        dp_runtime *rt;
        ck_assert_int_eq(dp_runtime_create(&config, &rt), DP_OK);
        if (limit) ck_assert_int_eq(team_of(rt), 1);
        dp_runtime_free(rt);
        ck_assert_int_eq(threads_of_this_process(), before);
    }
    dp_limit_threads(0);
}
END_TEST

int main(void)
{
    Suite *const suite = suite_create("threads");
    TCase *const tc = tcase_create("threads"), *const slow = slow_cases(suite);
    tcase_set_timeout(tc, 200);
    tcase_add_loop_test(slow, same_bits_for_any_thread_count, 0, 5); /* with a soft cap on the best ISA */
    tcase_add_test(slow, limits_hold);
    tcase_add_test(tc, affinity_is_left_alone);
    tcase_add_test(tc, sequences_in_concurrent_threads);
    tcase_add_test(tc, no_allocation_in_a_step);
    tcase_add_loop_test(tc, no_allocation_after_larger_steps, 0, 2);
    tcase_add_test(tc, freeing_starts_no_threads);
    suite_add_tcase(suite, tc);
    return run_suite(suite);
}
