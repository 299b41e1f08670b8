/* Abuse that servers commit: fork() after use, several runtimes in one process, many threads on one runtime for a while. */
#include <fenv.h>
#include <float.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "unit.h"

enum { HEADS = 4, KV_HEADS = 2, DIM = 64, OUT = HEADS * DIM, TOKENS = 3600 };

static cache c;
static float q[OUT];

static void data(void)
{
    rng r = {73};
    c = cache_create(&r, TOKENS, KV_HEADS, DIM, DIM, DP_BF16);
    make_queries(&r, &c, 1, HEADS, q);
}

static dp_sequence *filled(dp_runtime *rt, size_t n)
{
    dp_sequence_config config = sequence_config(&c, HEADS, DP_BF16);
    config.pending_tokens = 128;
    config.segment_tokens = 1024;
    dp_sequence *s;
    ck_assert_int_eq(dp_sequence_create(rt, &config, &s), DP_OK);
    append(s, &c, 0, n, 500);
    return s;
}

/* Clusters on the way. */
static void go_on(dp_sequence *s, size_t first, float *out)
{
    append(s, &c, first, first + 300, 1);
    ck_assert_int_eq(dp_decode(s, 0, 1, q, NULL, out, NULL, NULL), DP_OK);
}

typedef struct child_job {
    dp_runtime *rt;
    float *out;
} child_job;

static void *in_new_thread(void *argument)
{
    const child_job *const job = argument;
    dp_sequence *const s = filled(job->rt, 3000);
    go_on(s, 3000, job->out);
    dp_sequence_free(s);
    return NULL;
}

/* What the child does, its status: 0 where it computed what the parent did. */
static int child(int what, dp_runtime *rt, dp_sequence *s, const float *wanted)
{
    float out[OUT];
    memset(out, 0, sizeof out);
    pthread_t thread;
    dp_runtime *own = NULL;
    switch (what) {
    case 0: return 0;                      /* nothing */
    case 1: go_on(s, 3000, out); break;    /* the parent's objects */
    case 2: dp_sequence_free(s), s = NULL; /* fallthrough */
    case 3:                                /* a new runtime, of one thread or more */
        own = runtime_with(what == 2 ? 1 : 3, DP_ISA_AUTO);
        in_new_thread(&(child_job){own, out});
        break;
    default: /* a thread of the child's, with a team, on the parent's runtime */
        if (pthread_create(&thread, NULL, in_new_thread, &(child_job){rt, out})) return 2;
        pthread_join(thread, NULL);
    }
    const int status = memcmp(out, wanted, sizeof out) != 0;
    dp_sequence_free(s);
    dp_runtime_free(own);
    dp_runtime_free(rt);
    return status;
}

START_TEST(fork_after_use)
{
    data();
    dp_runtime_config config;
    dp_runtime_config_init(&config);
    config.n_threads = 3;
    config.pinning = _i % 2 ? DP_PIN_COMPACT : DP_PIN_OFF;
    dp_runtime *rt;
    ck_assert_int_eq(dp_runtime_create(&config, &rt), DP_OK);
    dp_sequence *const s = filled(rt, 3000), *const copy = filled(rt, 3000);
    float wanted[OUT];
    go_on(copy, 3000, wanted);
    const pid_t pid = fork();
    ck_assert_int_ge(pid, 0);
    if (!pid) {
        alarm(60); /* ends by a signal if it hangs */
        dp_sequence_free(copy);
        _exit(child(_i / 2, rt, s, wanted));
    }
    int status;
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert_msg(WIFEXITED(status), "the child was ended by signal %d", WTERMSIG(status));
    ck_assert_int_eq(WEXITSTATUS(status), 0);
    float out[OUT];
    go_on(s, 3000, out); /* the parent has noticed nothing */
    ck_assert_mem_eq(out, wanted, sizeof out);
    dp_sequence_free(s);
    dp_sequence_free(copy);
    dp_runtime_free(rt);
    cache_free(&c);
}
END_TEST

/* Runtimes of different sizes and pinnings take turns on the same OpenMP workers. */
START_TEST(several_runtimes)
{
    enum { RUNTIMES = 4 };
    data();
    dp_runtime *rt[RUNTIMES];
    dp_sequence *s[RUNTIMES];
    float wanted[OUT], out[OUT];
    for (int i = 0; i < RUNTIMES; i++) {
        dp_runtime_config config;
        dp_runtime_config_init(&config);
        config.n_threads = 1 + i;
        config.pinning = (dp_pinning)(i % 3);
        ck_assert_int_eq(dp_runtime_create(&config, &rt[i]), DP_OK);
        s[i] = filled(rt[i], 2400);
    }
    for (size_t t = 2400; t + 300 <= TOKENS; t += 300)
        for (int i = 0; i < RUNTIMES; i++) {
            go_on(s[i], t, i ? out : wanted);
            if (i) ck_assert_mem_eq(out, wanted, sizeof out);
        }
    for (int i = 0; i < RUNTIMES; i++) { /* each ends while the others are in use */
        dp_sequence_free(s[i]);
        dp_runtime_free(rt[i]);
        if (i + 1 == RUNTIMES) continue;
        ck_assert_int_eq(dp_decode(s[i + 1], 0, 1, q, NULL, out, NULL, NULL), DP_OK);
        ck_assert_mem_eq(out, wanted, sizeof out);
    }
    cache_free(&c);
}
END_TEST

enum { CALLERS = 6 };

typedef struct caller {
    dp_runtime *rt;
    dp_sequence *s;
    int rounds;
    float out[OUT];
} caller;

/* A request's life: a fork of a prompt, an answer, an end. */
static void *serve(void *argument)
{
    caller *const me = argument;
    for (int i = 0; i < me->rounds; i++) {
        dp_sequence *answer;
        ck_assert_int_eq(dp_sequence_fork(me->s, &answer), DP_OK);
        go_on(answer, 2400, me->out);
        ck_assert_int_eq(dp_sequence_truncate(answer, 0, 2000), DP_OK);
        ck_assert_int_eq(dp_build_index(answer, 0), DP_OK);
        dp_sequence_free(answer);
    }
    return NULL;
}

static uint64_t serve_all(caller *callers, int rounds)
{
    pthread_t threads[CALLERS];
    for (int i = 0; i < CALLERS; i++) {
        callers[i].rounds = rounds;
        ck_assert_int_eq(pthread_create(&threads[i], NULL, serve, &callers[i]), 0);
    }
    for (int i = 0; i < CALLERS; i++) ck_assert_int_eq(pthread_join(threads[i], NULL), 0);
    const dp_runtime_info info = info_of(callers->rt);
    return info.memory_bytes - info.scratch_bytes;
}

START_TEST(many_callers)
{
    data();
    dp_runtime *const rt = runtime_with(2, DP_ISA_AUTO);
    caller callers[CALLERS];
    for (int i = 0; i < CALLERS; i++) callers[i] = (caller){.rt = rt, .s = filled(rt, 2400)};
    const uint64_t first = serve_all(callers, 1), later = serve_all(callers, 4), last = serve_all(callers, 4);
    ck_assert_uint_le(last, later);
    ck_assert_uint_le(later, first + (64 << 10)); /* the arenas' tables have a size to reach */
    for (int i = 1; i < CALLERS; i++) ck_assert_mem_eq(callers[i].out, callers[0].out, sizeof callers[i].out);
    for (int i = 0; i < CALLERS; i++) dp_sequence_free(callers[i].s);
    dp_runtime_free(rt);
    cache_free(&c);
}
END_TEST

/* What a caller would notice: bytes on its standard output and error, signal handlers, rounding, denormals. */
START_TEST(process_is_left_alone)
{
    data();
    struct sigaction before[65] = {0};
    for (int i = 1; i < 65; i++) (void)sigaction(i, NULL, &before[i]);
    FILE *const said = tmpfile();
    ck_assert_ptr_nonnull(said);
    fflush(NULL);
    const int out = dup(STDOUT_FILENO), err = dup(STDERR_FILENO);
    dup2(fileno(said), STDOUT_FILENO), dup2(fileno(said), STDERR_FILENO);
    ck_assert_int_eq(fesetround(FE_UPWARD), 0); /* the caller's own choice stays */

    dp_runtime *const rt = runtime_with(2, DP_ISA_AUTO);
    dp_sequence *const s = filled(rt, 3000);
    float answer[OUT];
    go_on(s, 3000, answer);
    const dp_status refused = dp_append(s, 7, 1, q, 0, q, 0); /* an error is not printed either */
    dp_sequence_free(s);
    dp_runtime_free(rt);

    const int rounding = fegetround();
    fesetround(FE_TONEAREST);
    fflush(NULL);
    dup2(out, STDOUT_FILENO), dup2(err, STDERR_FILENO);
    close(out), close(err);
    ck_assert_int_eq(refused, DP_ERR_INVALID);
    ck_assert_int_eq(rounding, FE_UPWARD);
    volatile float small = FLT_MIN;
    small = small / 4;
    ck_assert(small > 0); /* results are not flushed to zero */
    small = small * 2;
    ck_assert(small == FLT_MIN / 2); /* nor are operands */
    ck_assert_int_eq(lseek(fileno(said), 0, SEEK_END), 0);
    fclose(said);
    for (int i = 1; i < 65; i++) {
        struct sigaction after = {0};
        (void)sigaction(i, NULL, &after);
        ck_assert(after.sa_handler == before[i].sa_handler && after.sa_flags == before[i].sa_flags);
    }
    cache_free(&c);
}
END_TEST

int main(void)
{
    Suite *const suite = suite_create("processes");
    TCase *const tc = tcase_create("processes"), *const forks = tcase_create("forks");
    tcase_set_timeout(tc, 150);
    tcase_set_timeout(forks, 150);
    tcase_set_tags(forks, "forks"); /* more than the OpenMP tool that ThreadSanitizer needs can take */
    tcase_add_loop_test(forks, fork_after_use, 0, 10);
    suite_add_tcase(suite, forks);
    tcase_add_test(tc, several_runtimes);
    tcase_add_test(tc, many_callers);
    tcase_add_test(tc, process_is_left_alone);
    suite_add_tcase(suite, tc);
    return run_suite(suite);
}
