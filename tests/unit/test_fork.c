/* Forks: the same bits as the original and as a sequence that went the whole way alone, whatever the other does; memory
 * shared, counted once, and given back by the last, in any order and from any thread. */
#include <pthread.h>
#include <string.h>

#include "kv/sequence.h"
#include "unit.h"

enum { HEADS = 4, KV_HEADS = 2, DIM = 64, OUT = HEADS * DIM, PROMPT = 3000, ALL = 5000 };

typedef struct fixture {
    rng r;
    cache c, other; /* two continuations of one prompt */
    dp_runtime *rt;
    dp_sequence_config config;
    dp_sequence *s;
} fixture;

static dp_sequence *new_sequence(const fixture *f)
{
    dp_sequence *s;
    ck_assert_int_eq(dp_sequence_create(f->rt, &f->config, &s), DP_OK);
    append(s, &f->c, 0, PROMPT, 500);
    return s;
}

static fixture setup_with(dp_huge_pages huge_pages)
{
    fixture f = {.r = {43}};
    f.c = cache_create(&f.r, ALL, KV_HEADS, DIM, DIM, DP_BF16);
    f.other = cache_create(&f.r, ALL, KV_HEADS, DIM, DIM, DP_BF16);
    memcpy(f.other.k, f.c.k, PROMPT * KV_HEADS * DIM * sizeof(float));
    memcpy(f.other.v, f.c.v, PROMPT * KV_HEADS * DIM * sizeof(float));
    dp_runtime_config config;
    dp_runtime_config_init(&config);
    config.n_threads = 2;
    config.huge_pages = huge_pages;
    ck_assert_int_eq(dp_runtime_create(&config, &f.rt), DP_OK);
    f.config = sequence_config(&f.c, HEADS, DP_BF16);
    f.config.segment_tokens = 1024;
    f.config.pending_tokens = 256;
    f.s = new_sequence(&f);
    return f;
}

static fixture setup(void)
{
    return setup_with(DP_HUGE_PAGES_TRANSPARENT);
}

static void teardown(fixture *f)
{
    dp_sequence_free(f->s);
    runtime_end(f->rt);
    cache_free(&f->c);
    cache_free(&f->other);
}

static dp_sequence *fork_of(const dp_sequence *s)
{
    dp_sequence *copy;
    ck_assert_int_eq(dp_sequence_fork(s, &copy), DP_OK);
    return copy;
}

static void decode(const fixture *f, dp_sequence *s, float *out)
{
    rng r = {5};
    float q[OUT];
    make_queries(&r, &f->c, 1, HEADS, q);
    ck_assert_int_eq(dp_decode(s, 0, 1, q, NULL, out, NULL, NULL), DP_OK);
}

static void check_same(const fixture *f, dp_sequence *a, dp_sequence *b)
{
    float x[OUT], y[OUT];
    decode(f, a, x);
    decode(f, b, y);
    ck_assert_mem_eq(x, y, sizeof x);
    const dp_memory m = memory_of(a), n = memory_of(b);
    ck_assert_uint_eq(m.clusters, n.clusters);
    ck_assert_uint_eq(m.clustered_tokens, n.clustered_tokens);
}

/* Both continue, differently, clustering on their way; each is as if the other had never been. */
START_TEST(each_goes_its_own_way)
{
    fixture f = setup();
    dp_sequence *const copy = fork_of(f.s), *const alone = new_sequence(&f), *const other_alone = new_sequence(&f);
    check_same(&f, f.s, copy);
    for (size_t t = PROMPT; t < ALL; t += 10) {
        append(f.s, &f.c, t, t + 10, _i ? 10 : 1);
        append(copy, &f.other, t, t + 10, 5);
        append(alone, &f.c, t, t + 10, _i ? 10 : 1);
        append(other_alone, &f.other, t, t + 10, 5);
        if (t % 100) continue;
        check_same(&f, f.s, alone);
        check_same(&f, copy, other_alone);
    }
    ck_assert_uint_gt(memory_of(copy).clustered_tokens, 2 * KV_HEADS * (ALL - PROMPT) / 2);
    ck_assert_int_eq(dp_sequence_truncate(copy, 0, 1500), DP_OK); /* into what they share */
    ck_assert_int_eq(dp_sequence_truncate(other_alone, 0, 1500), DP_OK);
    check_same(&f, copy, other_alone);
    check_same(&f, f.s, alone);
    dp_sequence_free(copy);
    check_same(&f, f.s, alone);
    dp_sequence_free(alone);
    dp_sequence_free(other_alone);
    teardown(&f);
}
END_TEST

/* The memory of clusters is there once, and is counted as shared while there are two to share it. */
START_TEST(memory_is_shared)
{
    fixture f = setup_with(DP_HUGE_PAGES_OFF); /* so that slack does not hide anything */
    ck_assert_int_eq(dp_build_index(f.s, 0), DP_OK);
    const dp_memory before = memory_of(f.s);
    ck_assert_uint_eq(before.shared_bytes, 0);
    dp_sequence *const copy = fork_of(f.s);
    const dp_memory a = memory_of(f.s), b = memory_of(copy);
    ck_assert_uint_eq(a.reserved_bytes, before.reserved_bytes);
    ck_assert_uint_eq(a.shared_bytes, b.shared_bytes);
    ck_assert_uint_eq(a.row_bytes, b.row_bytes);
    ck_assert_uint_gt(a.shared_bytes, a.index_bytes + a.row_bytes * 9 / 10);
    ck_assert_uint_lt(b.reserved_bytes - b.shared_bytes, 300 << 10); /* its own: sink and tail */
    ck_assert_int_eq(dp_sequence_truncate(f.s, 0, 1500), DP_OK);
    const dp_memory c = memory_of(f.s), d = memory_of(copy);
    ck_assert_uint_lt(c.shared_bytes, a.shared_bytes); /* what the original gave up is the copy's alone */
    ck_assert_uint_eq(c.shared_bytes, d.shared_bytes);
    ck_assert_uint_eq(d.reserved_bytes, b.reserved_bytes);
    dp_sequence_free(copy);
    ck_assert_uint_eq(memory_of(f.s).shared_bytes, 0);
    const dp_memory e = memory_of(f.s);
    ck_assert_uint_lt(e.reserved_bytes - e.row_bytes - e.index_bytes, 300 << 10); /* and goes with it */
    teardown(&f);
}
END_TEST

START_TEST(freed_in_any_order)
{
    static const int orders[6][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
    fixture f = setup();
    float wanted[OUT], out[OUT];
    dp_sequence *s[3] = {f.s};
    s[1] = fork_of(s[0]);
    append(s[1], &f.c, PROMPT, PROMPT + 600, 1);
    s[2] = fork_of(s[1]);
    append(s[0], &f.c, PROMPT, PROMPT + 600, 1);
    decode(&f, s[0], wanted);
    for (int i = 0; i < 3; i++) {
        for (int j = i; j < 3; j++) {
            decode(&f, s[orders[_i][j]], out);
            ck_assert_mem_eq(out, wanted, sizeof out);
        }
        dp_sequence_free(s[orders[_i][i]]);
    }
    f.s = NULL;
    teardown(&f);
}
END_TEST

typedef struct branch {
    const fixture *f;
    dp_sequence *s;
    float out[OUT];
} branch;

static void *run_branch(void *argument)
{
    branch *const b = argument;
    for (int round = 0; round < 3; round++) {
        dp_sequence *const copy = fork_of(b->s);
        append(copy, &b->f->c, PROMPT, ALL, 1);
        ck_assert_int_eq(dp_sequence_truncate(copy, 0, PROMPT - 1), DP_OK);
        dp_sequence_free(copy);
    }
    append(b->s, &b->f->c, PROMPT, ALL, 1);
    decode(b->f, b->s, b->out);
    dp_sequence_free(b->s);
    return NULL;
}

/* A family in as many threads, growing, branching and being freed at the same time. */
START_TEST(branches_in_threads)
{
    enum { BRANCHES = 6 };
    fixture f = setup();
    branch branches[BRANCHES];
    pthread_t threads[BRANCHES];
    for (int i = 0; i < BRANCHES; i++) branches[i] = (branch){.f = &f, .s = fork_of(f.s)};
    dp_sequence_free(f.s); /* the first does not matter more than the others */
    f.s = NULL;
    for (int i = 0; i < BRANCHES; i++) ck_assert_int_eq(pthread_create(&threads[i], NULL, run_branch, &branches[i]), 0);
    for (int i = 0; i < BRANCHES; i++) ck_assert_int_eq(pthread_join(threads[i], NULL), 0);
    float wanted[OUT];
    f.s = new_sequence(&f);
    append(f.s, &f.c, PROMPT, ALL, 1);
    decode(&f, f.s, wanted);
    for (int i = 0; i < BRANCHES; i++) ck_assert_mem_eq(branches[i].out, wanted, sizeof wanted);
    teardown(&f);
}
END_TEST

START_TEST(odd_sequences)
{
    fixture f = setup();
    dp_sequence *empty, *copy = f.s;
    ck_assert_int_eq(dp_sequence_fork(NULL, &copy), DP_ERR_INVALID);
    ck_assert_ptr_null(copy);
    ck_assert_int_eq(dp_sequence_fork(f.s, NULL), DP_ERR_INVALID);
    f.config.n_layers = 2;
    ck_assert_int_eq(dp_sequence_create(f.rt, &f.config, &empty), DP_OK);
    ck_assert_int_eq(dp_sequence_set_dense(empty, 1, 1), DP_OK);
    copy = fork_of(empty);
    for (uint32_t l = 0; l < 2; l++) ck_assert_int_eq(dp_append(copy, l, 2000, f.c.k, 0, f.c.v, 0), DP_OK);
    ck_assert_int_eq(dp_build_index(copy, DP_ALL_LAYERS), DP_OK);
    ck_assert_uint_eq(memory_of(copy).clustered_tokens, KV_HEADS * (2000 - 68)); /* the second layer is dense there, too */
    ck_assert_uint_eq(dp_sequence_tokens(empty, 0), 0);
    dp_sequence_free(empty);
    dp_sequence_free(copy);
    teardown(&f);
}
END_TEST

int main(void)
{
    Suite *const suite = suite_create("fork");
    TCase *const tc = tcase_create("fork");
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, each_goes_its_own_way, 0, 2);
    tcase_add_test(tc, memory_is_shared);
    tcase_add_loop_test(tc, freed_in_any_order, 0, 6);
    tcase_add_test(tc, branches_in_threads);
    tcase_add_test(tc, odd_sequences);
    suite_add_tcase(suite, tc);
    return run_suite(suite);
}
