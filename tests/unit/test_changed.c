/* Borrowed rows that change: what is computed is right at once, and in the end there is no trace of the past. */
#include <string.h>

#include "borrowed.h"

/* Writes other rows, into the cache and into the caller's memory, and says so. */
static void change(pair *p, size_t from, size_t to)
{
    cache other = cache_create(&p->r, p->c.n_tokens, p->c.n_kv_heads, p->c.key_dim, p->c.value_dim, DP_BF16);
    const size_t kw = p->c.n_kv_heads * p->c.key_dim, vw = p->c.n_kv_heads * p->c.value_dim;
    memcpy(p->c.k + from * kw, other.k + from * kw, (to - from) * kw * sizeof(float));
    memcpy(p->c.v + from * vw, other.v + from * vw, (to - from) * vw * sizeof(float));
    for (size_t t = from; t < to; t++) store_put(&p->store, pair_format(p), &p->rt->kernels, &p->c, t);
    ck_assert_int_eq(dp_rows_changed(p->borrowing, from % 2 ? 0 : DP_ALL_LAYERS, from, to), DP_OK);
    cache_free(&other);
}

/* Dense attention, Double-P where it may leave nothing out, and prefill are the reference's. */
static void check_right(pair *p)
{
    enum { OUT = 4 * 64 };
    float q[2 * OUT], out[2 * OUT], wanted[2 * OUT];
    const size_t n = dp_unclustered(p->borrowing, &p->borrowing->layers[0]) < 2 ? 1 : 2;
    cache seen = p->c;
    seen.n_tokens = p->n;
    make_queries(&p->r, &seen, n, 4, q);
    reference_attention(&seen, 4, 0.125f, n, q, wanted, NULL);
    for (int how = 0; how < 3; how++) {
        dp_attention_params params;
        dp_attention_params_init(&params);
        params.method = how ? DP_DOUBLE_P : DP_DENSE;
        params.p1 = 1, params.epsilon = 0, params.min_context = 0;
        ck_assert_int_eq(how == 2 ? dp_prefill(p->borrowing, 0, n, q, out, NULL)
                                  : dp_decode(p->borrowing, 0, n, q, &params, out, NULL, NULL),
                         DP_OK);
        ck_assert_double_lt(relative_error(out, wanted, n * OUT), 1e-5);
    }
}

/* What changed is read exactly, the other segments stay; once it is clustered anew there is no trace of the past. */
START_TEST(changed_rows_count_at_once)
{
    static const size_t changes[][2] = {{0, 4}, {1000, 1001}, {500, 1700}, {4, 3000}, {2950, 3000}, {7, 7}, {515, 516}};
    static const int segments[] = {0, 1, 4, 6, 0, 0, 1}; /* of the 6 of 512 tokens (the last is of 372) */
    pair p = pair_create(5, 3300, 512);
    pair_move(&p, _i % LAYOUTS, 24);
    pair_grow(&p, 3000, 300);
    pair_build(&p);
    const uint64_t all = clustered(p.borrowing);
    ck_assert_uint_eq(all, 2 * 2932);
    change(&p, changes[_i][0], changes[_i][1]);
    const uint64_t left = all - 2 * (uint64_t)(segments[_i] == 6 ? 2932 : 512 * segments[_i]);
    ck_assert_uint_eq(clustered(p.borrowing), left);
    check_right(&p);
    float q[4 * 64], out[4 * 64];
    dp_attention_stats stats;
    dp_attention_stats_init(&stats);
    make_queries(&p.r, &p.c, 1, 4, q);
    ck_assert_int_eq(dp_decode(p.borrowing, 0, 1, q, NULL, out, NULL, &stats), DP_OK);
    ck_assert_uint_eq(stats.tokens_exact, 2 * 3000 - left);
    ck_assert_int_eq(stats.sparse, left > 0);

    pair_build(&p);
    ck_assert_uint_eq(clustered(p.borrowing), all);
    dp_sequence_free(p.own); /* as one that saw the new rows only, with the same segments and statistics of queries */
    p.config.borrowed = 0;
    ck_assert_int_eq(dp_sequence_create(p.rt, &p.config, &p.own), DP_OK);
    append(p.own, &p.c, 0, 3000, 300);
    ck_assert_int_eq(dp_build_index(p.own, 0), DP_OK);
    for (int i = 0; i < 4; i++) ck_assert(check_same_bits(&p, 1, false, false));
    pair_grow(&p, 300, 1); /* and goes on like it */
    ck_assert(check_same_bits(&p, 1, false, false));
    pair_free(&p);
}
END_TEST

/* Short appends cluster one stale segment of one head each, a long one all; a dense layer keeps them. */
START_TEST(stale_segments_are_clustered_anew)
{
    pair p = pair_create(6, 5000, 512);
    pair_grow(&p, 3000, 300);
    pair_build(&p);
    const uint64_t all = clustered(p.borrowing);
    change(&p, 100, 1600); /* four segments of each of two heads */
    for (uint64_t n = 8; n-- > 0;) {
        pair_grow(&p, 1, 1);
        ck_assert_uint_eq(clustered(p.borrowing), all - 512 * n);
        if (n % 3 == 0) check_right(&p);
    }
    change(&p, 0, p.n);
    ck_assert_int_eq(dp_sequence_set_dense(p.borrowing, 0, 1), DP_OK);
    pair_grow(&p, 64, 64);
    ck_assert_uint_eq(clustered(p.borrowing), 0);
    check_right(&p);
    ck_assert_int_eq(dp_sequence_set_dense(p.borrowing, 0, 0), DP_OK);
    pair_grow(&p, 64, 64);
    ck_assert_uint_eq(clustered(p.borrowing), all);
    check_right(&p);
    pair_free(&p);
}
END_TEST

/* A life at random, with changes: always the attention over what is there. */
START_TEST(changes_at_any_time)
{
    pair p = pair_create(70 + (uint64_t)_i, 4000, _i % 2 ? 1000 : 128);
    for (int round = 0; round < 40; round++) {
        const size_t left = p.c.n_tokens - p.n, more = below(&p.r, 1200);
        pair_grow(&p, more < left ? more : left, rng_uniform(&p.r) < 0.5f ? 9 : 300);
        if (rng_uniform(&p.r) < 0.4f) pair_build(&p);
        if (rng_uniform(&p.r) < 0.6f && p.n) {
            const size_t from = below(&p.r, p.n), n = below(&p.r, rng_uniform(&p.r) < 0.5f ? 10 : p.n);
            change(&p, from, from + n < p.n ? from + n : p.n);
        }
        if (rng_uniform(&p.r) < 0.5f) pair_truncate(&p, p.n - below(&p.r, rng_uniform(&p.r) < 0.5f ? 50 : p.n));
        if (rng_uniform(&p.r) < 0.3f) pair_move(&p, (int)below(&p.r, LAYOUTS), 1 + (uint32_t)below(&p.r, 64));
        if (rng_uniform(&p.r) < 0.3f) {
            dp_sequence *fork;
            ck_assert_int_eq(dp_sequence_fork(p.borrowing, &fork), DP_OK);
            dp_sequence_free(p.borrowing);
            p.borrowing = fork;
        }
        if (p.n) check_right(&p);
        uint64_t clusters = 0, panels = 0;
        for (uint32_t h = 0; h < 2; h++) {
            const dp_head *const head = &p.borrowing->layers[0].heads[h];
            uint32_t stale = 0;
            for (uint32_t i = 0; i < head->n_segments; i++) {
                stale += dp_segment_stale(&head->segments[i]);
                panels += head->segments[i].n_panels;
                clusters += dp_segment_stale(&head->segments[i]) ? 0 : head->segments[i].n_tokens;
            }
            ck_assert_uint_eq(head->n_stale, stale);
            panels -= head->n_panels;
        }
        ck_assert_uint_eq(clusters, clustered(p.borrowing));
        ck_assert_uint_eq(panels, 0);
    }
    pair_free(&p);
}
END_TEST

int main(void)
{
    Suite *const suite = suite_create("changed");
    TCase *const tc = tcase_create("changed");
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, changed_rows_count_at_once, 0, 7);
    tcase_add_test(tc, stale_segments_are_clustered_anew);
    suite_add_tcase(suite, tc);
    tcase_add_loop_test(slow_cases(suite), changes_at_any_time, 0, 4);
    return run_suite(suite);
}
